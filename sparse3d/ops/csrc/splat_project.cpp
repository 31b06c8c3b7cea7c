// Projection of Gaussians and spherical harmonics, with their gradients.
#include "splat_project.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

#define S3D_KERNELS "splat_project_kernel.h"
#include "levels.h"

}  // namespace

// Sizes and layouts as in ProjectCall. model: 0 pinhole, 1 ortho, 2 fisheye.
EXPORT int64_t s3d_splat_project(const float* means, const float* covars, const float* quats,
                                 const float* scales, const float* viewmats, const float* Ks,
                                 const float* opacities, int64_t batch, int64_t count,
                                 int64_t cameras, int64_t width, int64_t height, double eps2d,
                                 double near, double far, double radius_clip, int64_t compensate,
                                 int64_t model, int32_t* radii, float* means2d, float* depths,
                                 float* conics, float* compensations, int64_t level,
                                 int64_t threads) try {
  ProjectCall p = {};
  p.means = means, p.covars = covars, p.quats = quats, p.scales = scales, p.viewmats = viewmats;
  p.Ks = Ks, p.opacities = opacities, p.batch = batch, p.count = count, p.cameras = cameras;
  p.width = width, p.height = height, p.model = model, p.compensate = compensate;
  p.eps2d = (float)eps2d, p.near = (float)near, p.far = (float)far;
  p.radius_clip = (float)radius_clip;
  p.radii = radii, p.means2d = means2d, p.depths = depths, p.conics = conics;
  p.compensations = compensations;
  const int64_t tasks = batch * p.chunks();
  const int chosen = best_level(level);
#pragma omp parallel for num_threads(useful_threads(threads, tasks, 2)) schedule(dynamic, 1)
  for (int64_t t = 0; t < tasks; t++) {
    const int64_t b = t / p.chunks(), chunk = t % p.chunks();
    S3D_AT(chosen, project(p, b, chunk));
  }
  return 0;
} OR_SHORTAGE

// d_views [batch, cameras, 4, 4]; of covars, or of quats and scales, the others are null.
EXPORT int64_t s3d_splat_project_gradient(
    const float* d_means2d, const float* d_depths, const float* d_conics,
    const float* d_compensations, const int32_t* radii, const float* means, const float* covars,
    const float* quats, const float* scales, const float* viewmats, const float* Ks, int64_t batch,
    int64_t count, int64_t cameras, int64_t width, int64_t height, double eps2d, int64_t model,
    float* d_means, float* d_covars, float* d_quats, float* d_scales, float* d_views, int64_t level,
    int64_t threads) try {
  ProjectCall p = {};
  p.means = means, p.covars = covars, p.quats = quats, p.scales = scales, p.viewmats = viewmats;
  p.Ks = Ks, p.batch = batch, p.count = count, p.cameras = cameras;
  p.width = width, p.height = height, p.model = model, p.eps2d = (float)eps2d;
  p.radii = const_cast<int32_t*>(radii), p.d_means2d = d_means2d, p.d_depths = d_depths;
  p.d_conics = d_conics, p.d_compensations = d_compensations;
  p.d_means = d_means, p.d_covars = d_covars, p.d_quats = d_quats, p.d_scales = d_scales;
  std::vector<double> views(batch * p.chunks() * cameras * 12);
  p.d_views = views.data();
  const int64_t tasks = batch * p.chunks();
  const int chosen = best_level(level);
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, tasks, 2))
  {
    std::vector<float> memory;
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < tasks; t++) {
      const int64_t b = t / p.chunks(), chunk = t % p.chunks();
      shortage.within([&] { S3D_AT(chosen, pull_back(p, b, chunk, memory)); });
    }
  }
  shortage.raise();
  memset(d_views, 0, sizeof(float) * batch * cameras * 16);
  for (int64_t image = 0; image < batch * cameras; image++)
    for (int64_t k = 0; k < 12; k++) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < p.chunks(); chunk++)
        sum += views[((image / cameras * p.chunks() + chunk) * cameras + image % cameras) * 12 + k];
      d_views[16 * image + k] = (float)sum;
    }
  return 0;
} OR_SHORTAGE

constexpr int64_t HARMONICS_CHUNK = 1024;

// dirs [images, count, 3], coeffs [images, count, terms, 3] or, shared, [count, terms, 3], masks
// [images, count] or null -> colors as dirs. rest: null, or the coefficients but the constant ones,
// [.., count, others, 3]; terms is then 1.
static HarmonicsCall harmonics_call(const float* dirs, const float* coeffs, const float* rest,
                                    const uint8_t* masks, int64_t images, int64_t count,
                                    int64_t terms, int64_t others, int64_t degree,
                                    int64_t shared) {
  HarmonicsCall q = {};
  q.dirs = dirs, q.first = coeffs, q.rest = rest ? rest : coeffs + 3, q.masks = masks;
  q.images = images, q.count = count, q.apart = 3 * terms, q.others = rest ? others : terms - 1;
  q.others_apart = 3 * (rest ? others : terms), q.degree = degree, q.shared = shared;
  return q;
}

EXPORT int64_t s3d_splat_harmonics(const float* dirs, const float* coeffs, const float* rest,
                                   const uint8_t* masks, int64_t images, int64_t count,
                                   int64_t terms, int64_t others, int64_t degree, int64_t shared,
                                   float* colors, int64_t level, int64_t threads) try {
  HarmonicsCall q =
      harmonics_call(dirs, coeffs, rest, masks, images, count, terms, others, degree, shared);
  q.colors = colors;
  const int64_t chunks = (count + HARMONICS_CHUNK - 1) / HARMONICS_CHUNK, tasks = images * chunks;
  const int chosen = best_level(level);
#pragma omp parallel for num_threads(useful_threads(threads, tasks, 2)) schedule(dynamic, 1)
  for (int64_t t = 0; t < tasks; t++) {
    const int64_t first = t % chunks * HARMONICS_CHUNK, image = t / chunks;
    const int64_t end = std::min(count, first + HARMONICS_CHUNK);
    S3D_AT(chosen, harmonics(q, image, first, end));
  }
  return 0;
} OR_SHORTAGE

// The gradient of the above: grad as colors -> d_dirs as dirs, d_coeffs as coeffs, d_rest as rest.
EXPORT int64_t s3d_splat_harmonics_gradient(const float* grad, const float* dirs,
                                            const float* coeffs, const float* rest,
                                            const uint8_t* masks, int64_t images, int64_t count,
                                            int64_t terms, int64_t others, int64_t degree,
                                            int64_t shared, float* d_dirs, float* d_coeffs,
                                            float* d_rest, int64_t level, int64_t threads) try {
  HarmonicsCall q =
      harmonics_call(dirs, coeffs, rest, masks, images, count, terms, others, degree, shared);
  q.grad = grad, q.d_dirs = d_dirs, q.d_first = d_coeffs, q.d_rest = rest ? d_rest : d_coeffs + 3;
  const int64_t chunks = (count + HARMONICS_CHUNK - 1) / HARMONICS_CHUNK;
  const int chosen = best_level(level);
#pragma omp parallel for num_threads(useful_threads(threads, chunks, 2)) schedule(dynamic, 1)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t first = chunk * HARMONICS_CHUNK, end = std::min(count, first + HARMONICS_CHUNK);
    for (int64_t image = 0; image < images; image++) S3D_AT(chosen, harmonics_gradient(q, image, first, end));
  }
  return 0;
} OR_SHORTAGE
