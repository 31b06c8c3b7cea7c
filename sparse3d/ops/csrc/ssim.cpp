// Structural similarity of pictures and its gradient: an 11x11 Gaussian window, zero padding.

#include <algorithm>
#include <vector>

#include "common.h"

namespace {

constexpr int kTaps = 11, kHalf = 5;
constexpr int64_t kLeastRows = 32;  // of a band: what lies around it is worked on twice

#define S3D_KERNELS "ssim_kernel.h"
#include "levels.h"

struct Kernels {
  decltype(&plain::blur_along) blur_along;
  decltype(&plain::blur_across) blur_across;
  decltype(&plain::products) products;
  decltype(&plain::similarity) similarity;
  decltype(&plain::combine) combine;
};

Kernels best_kernels() {
  const int level = best_level(0);
  return {S3D_AT(level, blur_along), S3D_AT(level, blur_across), S3D_AT(level, products),
          S3D_AT(level, similarity), S3D_AT(level, combine)};
}

// The last rows of some blurred lines; those outside the picture are zero.
class Ring {
 public:
  Ring(int64_t lines, int64_t width)
      : lines(lines), width(width), rows(kTaps * lines * width), zeros(width, 0.0f) {}
  float* at(int64_t y, int64_t line) { return rows.data() + (y % kTaps * lines + line) * width; }
  // The rows about y of a line, of a picture with `height` rows.
  void around(int64_t y, int64_t line, int64_t height, const float** out) {
    for (int t = 0; t < kTaps; ++t) {
      const int64_t row = y + t - kHalf;
      out[t] = row < 0 || row >= height ? zeros.data() : at(row, line);
    }
  }

 private:
  int64_t lines, width;
  std::vector<float> rows, zeros;
};

}  // namespace

// a, b, gradient: [height, width, channels]; window: [11], symmetric; sums: [height], of the map's
// rows. The gradient is `scale` times that of the sum of the map by a.
//
// Three stages follow each other down the picture, five rows apart, and what passes from one to the
// next stays in the cache: products blurred along the rows; these blurred across them, the map and
// its slopes, blurred along; slopes blurred across.
EXPORT int64_t s3d_ssim(const float* a, const float* b, int64_t height, int64_t width,
                        int64_t channels, const float* window, double c1, double c2, double scale,
                        double* sums, float* gradient, int64_t threads) try {
  const Kernels kernels = best_kernels();
  const int64_t row = width * channels, margin = kHalf * channels, padded = row + 2 * margin;
  const int64_t bands = std::max<int64_t>(std::min(threads, height / kLeastRows), 1);
  Shortage shortage;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(bands))
  for (int64_t band = 0; band < bands; ++band)
    shortage.within([&] {
      Ring pictures(4, row), slopes(3, row);
      std::vector<float> lines(4 * padded, 0.0f), blurred(4 * row), value(row);
      const int64_t from = height * band / bands, to = height * (band + 1) / bands;
      const int64_t first = std::max<int64_t>(from - 2 * kHalf, 0);
      const float* rows[kTaps];
      for (int64_t y = first; y < to + 2 * kHalf; ++y) {
        if (y < height) {
          kernels.products(a + y * row, b + y * row, row, padded, lines.data() + margin);
          for (int k = 0; k < 4; ++k)
            kernels.blur_along(lines.data() + k * padded, row, channels, window,
                               pictures.at(y, k));
        }
        const int64_t middle = y - kHalf;
        if (middle >= std::max<int64_t>(from - kHalf, 0) && middle < std::min(height, to + kHalf)) {
          for (int k = 0; k < 4; ++k) {
            pictures.around(middle, k, height, rows);
            kernels.blur_across(rows, row, window, blurred.data() + k * row);
          }
          const double sum = kernels.similarity(
              blurred.data(), row, static_cast<float>(c1), static_cast<float>(c2), padded,
              value.data(), lines.data() + margin);
          if (middle >= from && middle < to) sums[middle] = sum;
          for (int k = 0; k < 3; ++k)
            kernels.blur_along(lines.data() + k * padded, row, channels, window,
                               slopes.at(middle, k));
        }
        const int64_t last = y - 2 * kHalf;
        if (last >= from && last < to) {
          for (int k = 0; k < 3; ++k) {
            slopes.around(last, k, height, rows);
            kernels.blur_across(rows, row, window, blurred.data() + k * row);
          }
          kernels.combine(a + last * row, b + last * row, blurred.data(), row,
                          static_cast<float>(scale), gradient + last * row);
        }
      }
    });
  shortage.raise();
  return 0;
} OR_SHORTAGE
