// What the instruction sets' projection kernels share with the code that calls them.
#pragma once
#include "common.h"

constexpr int64_t PROJECT_CHUNK = 1024;  // Gaussians at a time: fixed, because it orders the sums

struct ProjectCall {
  // [batch, count, ...]: 3, 4, 3; covars 6 in place of quats and scales (then null); opacities or null
  const float *means, *quats, *scales, *covars, *opacities;
  const float *viewmats, *Ks;  // [batch, cameras, 4, 4], [batch, cameras, 3, 3]
  int64_t batch, count, cameras, width, height, model, compensate;
  float eps2d, near, far, radius_clip;
  // [batch, cameras, count, ...]: 2, 2, 1, 3, 1
  int32_t* radii;
  float *means2d, *depths, *conics, *compensations;
  // the gradients of the above, null where they are 0, and by the inputs
  const float *d_means2d, *d_depths, *d_conics, *d_compensations;
  float *d_means, *d_quats, *d_scales, *d_covars;
  double* d_views;  // [chunks, cameras, 12]: rows of the rotation, each with its translation

  int64_t chunks() const { return (count + PROJECT_CHUNK - 1) / PROJECT_CHUNK; }
};

struct HarmonicsCall {
  // [images, count, 3], as dirs; [images or 1, count, ...]: 3 of the constant coefficient, and 3 times
  // `others` of the rest, rows `apart` and `others_apart` floats from one to the next
  const float *dirs, *grad, *first, *rest;
  const uint8_t* masks;  // [images, count] or null
  int64_t images, count, apart, others, others_apart, degree, shared;
  float *colors, *d_dirs, *d_first, *d_rest;  // shared: one set of coefficients for all images
};
