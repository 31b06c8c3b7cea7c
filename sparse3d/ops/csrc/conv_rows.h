// How rows of outputs begin and end, in terms of the struct `Vec` of conv_kernels.h.
#pragma once
#include <string.h>

#include "conv.h"

namespace {

constexpr int64_t W = Vec::WIDTH;

inline void start_rows(const ConvCall& q, float* y, int64_t len) {
  const int64_t width = q.groups * q.cout;
  if (!q.bias) {
    memset(y, 0, sizeof(float) * len * width);
    return;
  }
  for (int64_t r = 0; r < len; r++) memcpy(y + r * width, q.bias, sizeof(float) * width);
}

// y * scale + shift + residual and the ReLU, while the rows are in the cache.
inline void finish_rows(const ConvCall& q, float* y, int64_t len) {
  const int64_t width = q.groups * q.cout;
  if (!q.scale && !q.residual && !q.relu) return;
  const float* residual = q.residual ? q.residual + (y - q.y) : nullptr;
  for (int64_t r = 0; r < len; r++, y += width, residual += residual ? width : 0)
    for (int64_t c = 0; c < width; c += W) {
      const Vec::Mask m = Vec::mask((int)(width - c < W ? width - c : W));
      Vec::Reg v = Vec::load(y + c, m);
      if (q.scale) v = Vec::fma(v, Vec::load(q.scale + c, m), Vec::load(q.shift + c, m));
      if (residual) v = Vec::fma(Vec::all(1), v, Vec::load(residual + c, m));
      Vec::store(y + c, m, q.relu ? Vec::positive(v) : v);
    }
}

}  // namespace
