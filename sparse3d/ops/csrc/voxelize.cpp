// Points to voxels: cells of points, unique keys, reductions over the points of a voxel.
#include <math.h>

#include <algorithm>

#include "radix_sort.h"

namespace {

enum { kFine = 0, kNotFinite = 1, kBatch = 2, kTooFar = 3 };

// Rows of each segment in ascending order: rows[start[s]] .. rows[start[s + 1] - 1].
struct Segments {
  std::vector<int64_t> start, rows;
  bool valid = true;

  Segments(const int64_t* index, int64_t n, int64_t segments) : start(segments + 1, 0) {
    for (int64_t i = 0; i < n; ++i) {
      if (index[i] < -1 || index[i] >= segments) {
        valid = false;
        return;
      }
      if (index[i] >= 0) ++start[index[i] + 1];
    }
    for (int64_t s = 0; s < segments; ++s) start[s + 1] += start[s];
    rows.resize(start[segments]);
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < n; ++i)
      if (index[i] >= 0) rows[next[index[i]]++] = i;
  }
};

// The hot loops over the channels of one row, compiled for several instruction sets.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define S3D_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define S3D_CLONES
#endif

S3D_CLONES void add_row(const float* __restrict row, int64_t channels, double* __restrict total) {
  for (int64_t c = 0; c < channels; ++c) total[c] += row[c];
}

S3D_CLONES void raise_to_row(const float* __restrict row, int32_t number, int64_t channels,
                             float* __restrict best, int32_t* __restrict first) {
  for (int64_t c = 0; c < channels; ++c) {
    const bool better = (row[c] > best[c]) | ((row[c] != row[c]) & (best[c] == best[c]));  // NaN wins
    best[c] = better ? row[c] : best[c];
    first[c] = better ? number : first[c];
  }
}

// Bits of a float as an integer that keeps the order of all floats.
inline int32_t ordered(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

}  // namespace

// Cells [n, 1+dims] int32 (batch, x, ...) of points [n, dims]; batch is -1 outside a bounded grid.
// bounds: the least and the largest of each column over the kept rows. Returns 0, or a reason why the
// points cannot be used; the caller then says which.
EXPORT int64_t s3d_cells(const float* points, const int64_t* batch, int64_t n, int64_t dims,
                         const float* size, const float* origin, const int64_t* shape,
                         int32_t* cells, int64_t* bounds, int64_t threads) try {
  const int columns = (int)dims + 1;
  const int team = useful_threads(threads, n, 1 << 14);
  int problem = kFine;
  const size_t apart = (size_t)columns + 16;  // no two threads write to one cache line
  std::vector<int64_t> low(team * apart, INT64_MAX), high(team * apart, INT64_MIN);
#pragma omp parallel num_threads(team) reduction(max : problem)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    int64_t* least = &low[self * apart];
    int64_t* most = &high[self * apart];
    int found = kFine;
    for (int64_t i = n * self / count; i < n * (self + 1) / count; ++i) {
      int32_t* cell = cells + i * columns;
      if (batch[i] < 0 || batch[i] > INT32_MAX) found = kBatch;
      bool kept = true;
      for (int64_t d = 0; d < dims; ++d) {
        const float at = (points[i * dims + d] - origin[d]) / size[d];
        const bool fits = at >= -2147483648.0f && at < 2147483648.0f;
        const int32_t whole = fits ? (int32_t)at : 0;
        const int32_t floored = whole - ((float)whole > at);
        if (!isfinite(points[i * dims + d])) found = kNotFinite;
        if (shape) {
          kept &= fits && floored >= 0 && floored < shape[d];
        } else if (!fits) {
          found = kTooFar;
        }
        cell[1 + d] = floored;
      }
      cell[0] = kept ? (int32_t)batch[i] : -1;
      if (!kept) continue;
      for (int c = 0; c < columns; ++c) {
        least[c] = std::min<int64_t>(least[c], cell[c]);
        most[c] = std::max<int64_t>(most[c], cell[c]);
      }
    }
    problem = std::max(problem, found);
  }
  for (int c = 0; c < columns; ++c) {
    bounds[c] = INT64_MAX;
    bounds[columns + c] = INT64_MIN;
    for (int t = 0; t < team; ++t) {
      bounds[c] = std::min(bounds[c], low[t * apart + c]);
      bounds[columns + c] = std::max(bounds[columns + c], high[t * apart + c]);
    }
  }
  return problem;
} OR_SHORTAGE

// Keys [n] of cells [n, columns]; -1 where the batch is negative.
EXPORT int64_t s3d_cell_keys(const int32_t* cells, int64_t n, int64_t columns, const int64_t* low,
                             const int64_t* strides, int64_t* keys, int64_t threads) try {
#pragma omp parallel for num_threads(useful_threads(threads, n, 1 << 15))
  for (int64_t i = 0; i < n; ++i) {
    int64_t key = 0;
    for (int64_t c = 0; c < columns; ++c) key += (cells[i * columns + c] - low[c]) * strides[c];
    keys[i] = cells[i * columns] < 0 ? -1 : key;
  }
  return 0;
} OR_SHORTAGE

// Unique keys, ascending, the first row of each, and for each row its place among them; negative keys
// are left out (-1). Returns how many there are.
EXPORT int64_t s3d_unique_keys(const int64_t* keys, int64_t n, int64_t* unique, int64_t* first,
                               int64_t* inverse, int64_t threads) try {
  int64_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, keys[i]);
  const int bits = radix::bits_of((uint64_t)largest);
  const auto key_of = [&](int64_t i) {  // those left out go behind the rest
    return keys[i] < 0 ? (uint64_t)1 << bits : (uint64_t)keys[i];
  };
  const radix::Sorted sorted(n, bits + 1, key_of, threads);
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = sorted.row(i), key = keys[row];
    inverse[row] = -1;
    if (key < 0) continue;
    if (!found || unique[found - 1] != key) {
      unique[found] = key;
      first[found++] = row;
    }
    inverse[row] = found - 1;
  }
  return found;
} OR_SHORTAGE

// Sum, or mean, of the rows of each segment, in float64; counts [segments]. `stride`: floats from
// one row to the next. Returns 1 when an index is out of range.
EXPORT int64_t s3d_segment_sum(const float* values, int64_t stride, const int64_t* index,
                               int64_t n, int64_t channels, int64_t segments, int64_t mean,
                               float* out, int64_t* counts, int64_t threads) try {
  const Segments group(index, n, segments);
  if (!group.valid) return 1;
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, n * channels, 1 << 14))
  {
    std::vector<double> total;
    shortage.within([&] { total.resize(channels); });
#pragma omp for schedule(static)
    for (int64_t s = 0; s < segments; ++s) {
      if (!shortage.none()) continue;
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t k = group.start[s]; k < group.start[s + 1]; ++k)
        add_row(values + group.rows[k] * stride, channels, total.data());
      counts[s] = group.start[s + 1] - group.start[s];
      const double divisor = mean ? (double)std::max<int64_t>(counts[s], 1) : 1.0;
      for (int64_t c = 0; c < channels; ++c) out[s * channels + c] = (float)(total[c] / divisor);
    }
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE

// Largest value of each segment and channel, and its smallest row; 0 and -1 for an empty segment.
EXPORT int64_t s3d_segment_max(const float* values, const int64_t* index, int64_t n,
                               int64_t channels, int64_t segments, float* out, int64_t* argmax,
                               int64_t threads) try {
  const Segments group(index, n, segments);
  if (!group.valid) return 1;
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, n * channels, 1 << 14))
  {
    std::vector<int32_t> winner;  // counts rows of the segment
    shortage.within([&] { winner.resize(channels); });
#pragma omp for schedule(static)
    for (int64_t s = 0; s < segments; ++s) {
      if (!shortage.none()) continue;
      const int64_t* rows = group.rows.data() + group.start[s];
      const int64_t size = group.start[s + 1] - group.start[s];
      float* best = out + s * channels;
      int64_t* first = argmax + s * channels;
      if (size == 0) {
        std::fill(best, best + channels, 0.0f);
        std::fill(first, first + channels, -1);
        continue;
      }
      std::copy(values + rows[0] * channels, values + (rows[0] + 1) * channels, best);
      std::fill(winner.begin(), winner.end(), 0);
      for (int64_t k = 1; k < size; ++k)
        raise_to_row(values + rows[k] * channels, (int32_t)k, channels, best, winner.data());
      for (int64_t c = 0; c < channels; ++c) first[c] = rows[winner[c]];
    }
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE

constexpr int64_t kAhead = 24;  // rows whose memory is asked for before they are read

// Gradient of a sum or mean: the segment's gradient, times 1 / count where counts are given.
EXPORT int64_t s3d_segment_spread(const float* grad, const int64_t* index, const int64_t* counts,
                                  int64_t n, int64_t channels, float* out, int64_t threads) try {
#pragma omp parallel for num_threads(useful_threads(threads, n * channels, 1 << 15)) schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    float* row = out + i * channels;
    const int64_t coming = index[std::min(i + kAhead, n - 1)];
    __builtin_prefetch(grad + std::max<int64_t>(coming, 0) * channels);
    if (index[i] < 0) {
      std::fill(row, row + channels, 0.0f);
      continue;
    }
    const float* from = grad + index[i] * channels;
    const float divisor = counts ? (float)std::max<int64_t>(counts[index[i]], 1) : 1.0f;
    if (divisor == 1)
      std::copy(from, from + channels, row);
    else
      for (int64_t c = 0; c < channels; ++c) row[c] = from[c] / divisor;
  }
  return 0;
} OR_SHORTAGE

// Gradient of a maximum: `out` [n, channels], zeroed by the caller, gets each at its winning row.
EXPORT int64_t s3d_segment_max_spread(const float* grad, const int64_t* argmax, int64_t segments,
                                      int64_t channels, float* out, int64_t threads) try {
#pragma omp parallel for num_threads(useful_threads(threads, segments * channels, 1 << 15)) \
    schedule(static)
  for (int64_t s = 0; s < segments; ++s)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t row = argmax[s * channels + c];
      if (row >= 0) out[row * channels + c] = grad[s * channels + c];  // rows of segments are disjoint
    }
  return 0;
} OR_SHORTAGE

// Rank [n] of each row among the rows of its segment, in row order; -1 where the index is -1.
EXPORT int64_t s3d_segment_ranks(const int64_t* index, int64_t n, int64_t segments, int64_t* ranks) try {
  std::vector<int64_t> next(segments, 0);
  for (int64_t i = 0; i < n; ++i) ranks[i] = index[i] < 0 ? -1 : next[index[i]]++;
  return 0;
} OR_SHORTAGE

// Rows with a segment, ordered by segment and then by their values, first column slowest.
// Returns how many.
EXPORT int64_t s3d_canonical_order(const float* values, const int64_t* index, int64_t n,
                                   int64_t channels, int64_t segments, int64_t* order,
                                   int64_t threads) try {
  Segments group(index, n, segments);
  if (!group.valid) return -1;
#pragma omp parallel for num_threads(useful_threads(threads, n, 1 << 13)) schedule(dynamic, 64)
  for (int64_t s = 0; s < segments; ++s) {
    int64_t* begin = group.rows.data() + group.start[s];
    int64_t* end = group.rows.data() + group.start[s + 1];
    std::sort(begin, end, [&](int64_t a, int64_t b) {
      for (int64_t c = 0; c < channels; ++c) {
        const int32_t left = ordered(values[a * channels + c]);
        const int32_t right = ordered(values[b * channels + c]);
        if (left != right) return left < right;
      }
      return a < b;
    });
  }
  std::copy(group.rows.begin(), group.rows.end(), order);
  return (int64_t)group.rows.size();
} OR_SHORTAGE
