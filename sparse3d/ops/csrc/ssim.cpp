// Structural similarity of planes and its gradient: an 11x11 Gaussian window, zero padding.

#include <algorithm>
#include <vector>

#include "common.h"

namespace {

constexpr int kTaps = 11, kHalf = 5;

#define S3D_CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))

// out[x] = sum over t of window[t] * row[x + t - 5], zero outside the row.
S3D_CLONES void blur_along(const float* row, int64_t width, const float* window, float* padded,
                           float* out) {
  std::fill(padded, padded + kHalf, 0.0f);
  std::copy(row, row + width, padded + kHalf);
  std::fill(padded + kHalf + width, padded + 2 * kHalf + width, 0.0f);
  for (int64_t x = 0; x < width; ++x) {
    float sum = 0;
    for (int t = 0; t < kTaps; ++t) sum += window[t] * padded[x + t];
    out[x] = sum;
  }
}

// out[x] = sum over rows y + t - 5 of the plane.
S3D_CLONES void blur_across(const float* plane, int64_t y, int64_t height, int64_t width,
                            const float* window, float* out) {
  std::fill(out, out + width, 0.0f);
  for (int t = 0; t < kTaps; ++t) {
    int64_t from = y + t - kHalf;
    if (from < 0 || from >= height) continue;
    const float* row = plane + from * width;
    float weight = window[t];
    for (int64_t x = 0; x < width; ++x) out[x] += weight * row[x];
  }
}

S3D_CLONES void products(const float* a, const float* b, int64_t width, float* out) {
  for (int64_t x = 0; x < width; ++x) {
    out[x] = a[x];
    out[width + x] = b[x];
    out[2 * width + x] = a[x] * a[x];
    out[3 * width + x] = b[x] * b[x];
    out[4 * width + x] = a[x] * b[x];
  }
}

// The map of a row in `value`, and its derivatives by the blurred a, a^2 and ab in `slopes`.
S3D_CLONES void similarity(const float* blurred, int64_t width, float c1, float c2, float* value,
                           float* const* slopes) {
  const float *ma = blurred, *mb = blurred + width, *aa = blurred + 2 * width,
              *bb = blurred + 3 * width, *ab = blurred + 4 * width;
  for (int64_t x = 0; x < width; ++x) {
    float m1 = ma[x], m2 = mb[x];
    float top1 = 2 * m1 * m2 + c1, top2 = 2 * (ab[x] - m1 * m2) + c2;
    float low1 = m1 * m1 + m2 * m2 + c1, low2 = aa[x] - m1 * m1 + bb[x] - m2 * m2 + c2;
    float inverse = 1 / (low1 * low2);
    float s = top1 * top2 * inverse;
    value[x] = s;
    float by_ab = 2 * top1 * inverse;
    float by_aa = -s / low2;
    slopes[0][x] = 2 * m2 * (top2 - top1) * inverse + 2 * m1 * s * (1 / low2 - 1 / low1);
    slopes[1][x] = by_aa;
    slopes[2][x] = by_ab;
  }
}

S3D_CLONES void combine(const float* a, const float* b, const float* blurred, int64_t width,
                        float* out) {
  for (int64_t x = 0; x < width; ++x)
    out[x] = blurred[x] + 2 * a[x] * blurred[width + x] + b[x] * blurred[2 * width + x];
}

}  // namespace

// a, b, gradient: [planes, height, width]; window: [11]; sums: [planes * height], of the map's rows.
// scratch: [8, planes, height, width]. The gradient is that of the sum of the map by a.
EXPORT int64_t s3d_ssim(const float* a, const float* b, int64_t planes, int64_t height,
                        int64_t width, const float* window, double c1, double c2, float* scratch,
                        double* sums, float* gradient, int64_t threads) {
  const int64_t plane = height * width, whole = planes * plane, rows = planes * height;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> line(5 * width), padded(width + 2 * kHalf), value(width);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      products(a + r * width, b + r * width, width, line.data());
      for (int k = 0; k < 5; ++k)
        blur_along(line.data() + k * width, width, window, padded.data(),
                   scratch + k * whole + r * width);
    }
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t p = r / height, y = r % height;
      for (int k = 0; k < 5; ++k)
        blur_across(scratch + k * whole + p * plane, y, height, width, window,
                    line.data() + k * width);
      float* slopes[3];
      for (int k = 0; k < 3; ++k) slopes[k] = scratch + (5 + k) * whole + r * width;
      similarity(line.data(), width, static_cast<float>(c1), static_cast<float>(c2), value.data(),
                 slopes);
      double sum = 0;
      for (int64_t x = 0; x < width; ++x) sum += value[x];
      sums[r] = sum;
    }
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r)
      for (int k = 0; k < 3; ++k)
        blur_along(scratch + (5 + k) * whole + r * width, width, window, padded.data(),
                   scratch + k * whole + r * width);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t p = r / height, y = r % height;
      for (int k = 0; k < 3; ++k)
        blur_across(scratch + k * whole + p * plane, y, height, width, window,
                    line.data() + k * width);
      combine(a + r * width, b + r * width, line.data(), width, gradient + r * width);
    }
  }
  return 0;
}
