// Batch norm over rows [n, channels]. Sums run over fixed ranges of rows, added in order: the bits do
// not depend on the number of threads.
#include "common.h"

#include <math.h>
#include <omp.h>

#include <algorithm>
#include <vector>

constexpr int64_t NORM_RANGE = 2048;  // rows per partial sum
constexpr int64_t NORM_RUN = 32;      // rows that are summed in float before they join a double

// The loops over rows, compiled for wide vectors too; nothing is fused, so the bits are the same.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

// Sums over rows of x - from, and of its square, added to sums [2 * channels].
WIDE static void add_moments(const float* __restrict x, int64_t rows, int64_t channels,
                             const float* __restrict from, float* __restrict sums) {
  for (int64_t r = 0; r < rows; r++, x += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float d = x[c] - from[c];
      sums[c] += d;
      sums[channels + c] += d * d;
    }
}

WIDE static void normalize(const float* __restrict x, int64_t rows, int64_t channels,
                           const float* __restrict mean, const float* __restrict scale,
                           const float* __restrict bias, float floor, float* __restrict y) {
  for (int64_t r = 0; r < rows; r++, x += channels, y += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float value = (x[c] - mean[c]) * scale[c] + bias[c];
      y[c] = value < floor ? floor : value;  // NaN stays NaN
    }
}

// Sums of the gradient that reaches the norm (where y is above `floor`) and of it times x - mean.
WIDE static void add_gradients(const float* __restrict dy, const float* __restrict x,
                               const float* __restrict y, int64_t rows, int64_t channels,
                               const float* __restrict mean, float floor, float* __restrict sums) {
  for (int64_t r = 0; r < rows; r++, dy += channels, x += channels, y += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float grad = y[c] > floor ? dy[c] : 0.f;
      sums[c] += grad;
      sums[channels + c] += grad * (x[c] - mean[c]);
    }
}

// dx = scale * (gradient - first - (x - mean) * second)
WIDE static void row_gradients(const float* __restrict dy, const float* __restrict x,
                               const float* __restrict y, int64_t rows, int64_t channels,
                               const float* __restrict mean, const float* __restrict scale,
                               const float* __restrict first, const float* __restrict second,
                               float floor, float* __restrict dx) {
  for (int64_t r = 0; r < rows; r++, dy += channels, x += channels, y += channels, dx += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float grad = y[c] > floor ? dy[c] : 0.f;
      dx[c] = scale[c] * (grad - first[c] - (x[c] - mean[c]) * second[c]);
    }
}

// Totals [2 * channels] over all rows of what add(first row, rows, float sums) adds up.
template <class Add>
static std::vector<double> sum_rows(int64_t n, int64_t channels, int64_t threads, const Add& add) {
  const int64_t width = 2 * channels, ranges = (n + NORM_RANGE - 1) / NORM_RANGE;
  std::vector<double> partial(ranges * width, 0.0), total(width, 0.0);
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, n * channels, 1 << 15))
  {
    std::vector<float> run;
    shortage.within([&] { run.resize(width); });
#pragma omp for schedule(static)
    for (int64_t s = 0; s < ranges; s++) {
      if (!shortage.none()) continue;
      const int64_t end = std::min(n, (s + 1) * NORM_RANGE);
      for (int64_t first = s * NORM_RANGE; first < end; first += NORM_RUN) {
        std::fill(run.begin(), run.end(), 0.f);
        add(first, std::min(NORM_RUN, end - first), run.data());
        for (int64_t c = 0; c < width; c++) partial[s * width + c] += run[c];
      }
    }
  }
  shortage.raise();
  for (int64_t s = 0; s < ranges; s++)
    for (int64_t c = 0; c < width; c++) total[c] += partial[s * width + c];
  return total;
}

// Calls body(first row, rows) for runs of rows, in parallel.
template <class Body>
static void for_runs(int64_t n, int64_t channels, int64_t threads, const Body& body) {
#pragma omp parallel for schedule(static) num_threads(useful_threads(threads, n * channels, 1 << 15))
  for (int64_t first = 0; first < n; first += NORM_RUN) body(first, std::min(NORM_RUN, n - first));
}

// x, y [n, channels], n > 0; weight, bias, mean, variance (biased) [channels]; relu: y is not below 0.
EXPORT int64_t s3d_batch_norm(const float* x, int64_t n, int64_t channels, const float* weight,
                              const float* bias, double eps, int64_t relu, float* y, float* mean,
                              float* variance, int64_t threads) try {
  const float* from = x;  // the first row: a value near the mean keeps the squares small
  const std::vector<double> total =
      sum_rows(n, channels, threads, [=](int64_t first, int64_t rows, float* sums) {
        add_moments(x + first * channels, rows, channels, from, sums);
      });
  std::vector<float> scale(channels);
  for (int64_t c = 0; c < channels; c++) {
    const double away = total[c] / n;
    const double spread = std::max(total[channels + c] / n - away * away, 0.0);
    mean[c] = (float)(from[c] + away);
    variance[c] = (float)spread;
    scale[c] = (float)(weight[c] / sqrt(spread + eps));
  }
  const float floor = relu ? 0.f : -INFINITY;
  for_runs(n, channels, threads, [&](int64_t first, int64_t rows) {
    normalize(x + first * channels, rows, channels, mean, scale.data(), bias, floor,
              y + first * channels);
  });
  return 0;
} OR_SHORTAGE

// Gradients of s3d_batch_norm with output y: dx [n, channels], d_weight and d_bias [channels].
EXPORT int64_t s3d_batch_norm_backward(const float* dy, const float* x, const float* y, int64_t n,
                                       int64_t channels, const float* weight, const float* mean,
                                       const float* variance, double eps, int64_t relu, float* dx,
                                       float* d_weight, float* d_bias, int64_t threads) try {
  const float floor = relu ? 0.f : -INFINITY;
  const std::vector<double> total =
      sum_rows(n, channels, threads, [=](int64_t first, int64_t rows, float* sums) {
        const int64_t at = first * channels;
        add_gradients(dy + at, x + at, y + at, rows, channels, mean, floor, sums);
      });
  std::vector<float> scale(channels), first(channels), second(channels);
  for (int64_t c = 0; c < channels; c++) {
    const double inverse = 1 / sqrt(variance[c] + eps);
    d_bias[c] = (float)total[c];
    d_weight[c] = (float)(total[channels + c] * inverse);
    scale[c] = (float)(weight[c] * inverse);
    first[c] = (float)(total[c] / n);
    second[c] = (float)(total[channels + c] * inverse * inverse / n);
  }
  for_runs(n, channels, threads, [&](int64_t row, int64_t rows) {
    const int64_t at = row * channels;
    row_gradients(dy + at, x + at, y + at, rows, channels, mean, scale.data(), first.data(),
                  second.data(), floor, dx + at);
  });
  return 0;
} OR_SHORTAGE
