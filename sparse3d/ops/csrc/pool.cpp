// Pooling over an out-in table [offsets, n_out] (-1 = no input). A block of outputs belongs to one thread
// and meets the offsets in order, so nothing depends on the number of threads.
#include "common.h"

#include <omp.h>
#include <string.h>

#include <algorithm>
#include <atomic>

constexpr int64_t POOL_BLOCK = 512;

// Calls body(output row, input row) for the pairs of each block, offset after offset. Returns 1 when the
// table names a row outside [0, n_in), which is left out; else 0.
template <class Start, class Body>
static int64_t for_pairs(const int32_t* table, int64_t n_in, int64_t n_out, int64_t offsets,
                         int64_t threads, const Start& start, const Body& body) {
  std::atomic<bool> legal{true};
#pragma omp parallel for schedule(dynamic, 1) num_threads(useful_threads(threads, n_out, 2 * POOL_BLOCK))
  for (int64_t first = 0; first < n_out; first += POOL_BLOCK) {
    const int64_t last = std::min(n_out, first + POOL_BLOCK);
    start(first, last);
    for (int64_t k = 0; k < offsets; k++)
      for (int64_t o = first; o < last; o++) {
        const int64_t i = table[k * n_out + o];
        if (i >= n_in)
          legal = false;
        else if (i >= 0)
          body(o, i);
      }
  }
  return !legal;
}

// x [n_in, channels] -> y [n_out, channels], the sum of the rows that the table names.
EXPORT int64_t s3d_pool_sum(const float* x, const int32_t* table, int64_t n_in, int64_t n_out,
                            int64_t offsets, int64_t channels, float* y, int64_t threads) try {
  return for_pairs(
      table, n_in, n_out, offsets, threads,
      [&](int64_t first, int64_t last) {
        memset(y + first * channels, 0, sizeof(float) * (last - first) * channels);
      },
      [&](int64_t o, int64_t i) {
        const float* from = x + i * channels;
        float* to = y + o * channels;
        for (int64_t c = 0; c < channels; c++) to[c] += from[c];
      });
} OR_SHORTAGE

// Maxima y [n_out, channels] and the rows that hold them, -1 where the table names none (y is 0 there).
// Of equal values the smallest row holds.
EXPORT int64_t s3d_pool_max(const float* x, const int32_t* table, int64_t n_in, int64_t n_out,
                            int64_t offsets, int64_t channels, float* y, int32_t* holder, int64_t threads) try {
  return for_pairs(
      table, n_in, n_out, offsets, threads,
      [&](int64_t first, int64_t last) {
        memset(y + first * channels, 0, sizeof(float) * (last - first) * channels);
        memset(holder + first * channels, 0xff, sizeof(int32_t) * (last - first) * channels);
      },
      [&](int64_t o, int64_t i) {
        const float* from = x + i * channels;
        float* best = y + o * channels;
        int32_t* row = holder + o * channels;
        for (int64_t c = 0; c < channels; c++) {
          const bool wins =
              (row[c] < 0) | (from[c] > best[c]) | ((from[c] == best[c]) & ((int32_t)i < row[c]));
          best[c] = wins ? from[c] : best[c];
          row[c] = wins ? (int32_t)i : row[c];
        }
      });
} OR_SHORTAGE

// dx [n_in, channels]: each output's gradient goes to the row that holds its maximum. reverse [offsets, n_in].
EXPORT int64_t s3d_pool_max_grad(const float* dy, const int32_t* holder, const int32_t* reverse,
                                 int64_t n_out, int64_t n_in, int64_t offsets, int64_t channels,
                                 float* dx, int64_t threads) try {
  return for_pairs(
      reverse, n_out, n_in, offsets, threads,
      [&](int64_t first, int64_t last) {
        memset(dx + first * channels, 0, sizeof(float) * (last - first) * channels);
      },
      [&](int64_t i, int64_t o) {
        const float* from = dy + o * channels;
        const int32_t* row = holder + o * channels;
        float* to = dx + i * channels;
        for (int64_t c = 0; c < channels; c++) to[c] += row[c] == (int32_t)i ? from[c] : 0.f;
      });
} OR_SHORTAGE
