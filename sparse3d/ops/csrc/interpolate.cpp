// Weighted sums of chosen rows, and their gradients. Sums run in the order of the neighbours (forward)
// and of the queries (gradient by the values): no result depends on the number of threads.
#include <algorithm>
#include <vector>

#include "common.h"

// out [queries, channels]; index [queries, k] rows of values, -1: none.
EXPORT int64_t s3d_weighted_rows(const float* values, const int64_t* index, const float* weights,
                                 int64_t queries, int64_t k, int64_t channels, float* out,
                                 int64_t threads) try {
  const int team = useful_threads(threads, queries, 256);
#pragma omp parallel for schedule(static) num_threads(team)
  for (int64_t q = 0; q < queries; ++q) {
    float* __restrict to = out + q * channels;
    std::fill(to, to + channels, 0.0f);
    for (int64_t n = 0; n < k; ++n) {
      const int64_t row = index[q * k + n];
      if (row < 0) continue;
      const float weight = weights[q * k + n];
      const float* __restrict from = values + row * channels;
      for (int64_t c = 0; c < channels; ++c) to[c] += weight * from[c];
    }
  }
  return 0;
} OR_SHORTAGE

// d_values [rows, channels], d_weights [queries, k].
EXPORT int64_t s3d_weighted_rows_backward(const float* grad, const float* values, const int64_t* index,
                                          const float* weights, int64_t rows, int64_t queries, int64_t k,
                                          int64_t channels, float* d_values, float* d_weights,
                                          int64_t threads) try {
  // who uses each row: places in index, ascending
  std::vector<int64_t> starts(rows + 1, 0), users(queries * k);
  for (int64_t at = 0; at < queries * k; ++at)
    if (index[at] >= 0) ++starts[index[at] + 1];
  for (int64_t row = 0; row < rows; ++row) starts[row + 1] += starts[row];
  std::vector<int64_t> next(starts.begin(), starts.end() - 1);
  for (int64_t at = 0; at < queries * k; ++at)
    if (index[at] >= 0) users[next[index[at]]++] = at;

  const int team = useful_threads(threads, rows + queries, 256);
#pragma omp parallel num_threads(team)
  {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < rows; ++row) {
      float* __restrict to = d_values + row * channels;
      std::fill(to, to + channels, 0.0f);
      for (int64_t u = starts[row]; u < starts[row + 1]; ++u) {
        const float weight = weights[users[u]];
        const float* __restrict from = grad + users[u] / k * channels;
        for (int64_t c = 0; c < channels; ++c) to[c] += weight * from[c];
      }
    }
#pragma omp for schedule(static)
    for (int64_t q = 0; q < queries; ++q)
      for (int64_t n = 0; n < k; ++n) {
        const int64_t row = index[q * k + n];
        float sum = 0;
        for (int64_t c = 0; row >= 0 && c < channels; ++c)
          sum += grad[q * channels + c] * values[row * channels + c];
        d_weights[q * k + n] = sum;
      }
  }
  return 0;
} OR_SHORTAGE
