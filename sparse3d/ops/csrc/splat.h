// What the instruction sets' blending kernels share with the code that calls them.
#pragma once
#include "common.h"

constexpr float SPLAT_ALPHA_MIN = 1.f / 255, SPLAT_ALPHA_MAX = 0.999f, SPLAT_LIGHT_MIN = 1e-4f;
constexpr float SPLAT_LOG_MIN = -7.99435343685886f;  // log2 of SPLAT_ALPHA_MIN
// A Gaussian as the kernels read it: mean x, y; ux, uy, vy and log2 of the opacity, so that a pixel at
// mean + (dx, dy) with u = ux dx + uy dy and v = vy dy has alpha = 2^(opacity - u^2 - v^2); the x (y) of
// the least u^2 + v^2 on a line of constant y (x), per y (x). Where the conic is of no ellipse u = dx,
// v = dy, and the first of the last two is not a number. Then the colors, if at most SPLAT_COLORS.
constexpr int SPLAT_RECORD = 16, SPLAT_COLORS = 8;
// Sums of the gradient per list entry: s, s u, s v, s u^2, s u v, s v^2, |x|, |y|, then channels; as wide
// as stride() says.
constexpr int SPLAT_MOMENTS = 8;
constexpr float LOG2_E = 1.44269504088896341f;

struct SplatCall {
  const float* records;       // [rows, SPLAT_RECORD]
  const float* conics;        // [rows, 3]
  const float* colors;        // [rows, channels]
  const float* backgrounds;   // [images, channels] or null
  const uint8_t* shown;       // [images, down, across] or null: tiles to draw
  const int32_t* offsets;     // [images, down, across], where each tile's list begins
  const int32_t* ids;         // [entries] rows
  int64_t channels, entries, images, width, height, tile, across, down, absolute;
  float* image;               // [images, height, width, channels]
  float* transmittance;       // [images, height, width]
  int32_t* looked_at;         // [images, height, width]
  const float* grad_image;    // [images, height, width, channels], for the gradient
  const float* grad_light;    // [images, height, width] or null, that of the transmittance

  int64_t tiles() const { return images * down * across; }
  int64_t begin(int64_t tile) const { return offsets[tile]; }
  int64_t end(int64_t tile) const { return tile + 1 < tiles() ? offsets[tile + 1] : entries; }
  // of a row's sums: whole vectors
  int64_t stride() const { return (SPLAT_MOMENTS + channels + 15) / 16 * 16; }
};

// Floats that a thread needs to work on a tile.
inline int64_t splat_scratch(int64_t channels) { return 16 * 16 * (channels + 3) + 16 * channels + 16; }

struct SplatKernels {
  void (*forward)(const SplatCall& call, int64_t tile, float* scratch);
  // writes the sums [entries of the tile, stride] of the tile's list
  void (*gradient)(const SplatCall& call, int64_t tile, float* scratch, float* sums);
};

#define SPLAT_HIDDEN __attribute__((visibility("hidden")))
SPLAT_HIDDEN extern const SplatKernels splat_plain, splat_avx2, splat_avx512;
