// Products with the transport kernel K[i, j] = exp((f0_i . f1_j - 1) / eps), 0 from the radius on and
// between samples, without ever holding K: blocks of it are made, used and forgotten.
#include <math.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "common.h"

#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

constexpr int64_t kBlock = 64;

// Points of one cloud in an order that keeps neighbours together, padded to whole blocks per sample.
struct Side {
  int64_t blocks = 0;
  std::vector<int64_t> row;      // the caller's row in each place, -1: padding
  std::vector<int64_t> sample;  // of each block
  std::vector<float> low, high;  // [blocks, 3]
  std::vector<float> memory, coordinates[3];
  const float* place[3];  // [places] each; padding lies at infinity
  const float* features = nullptr;  // [places, C]
  const float* turned = nullptr;    // [blocks][C, kBlock]

  Side(const float* points, const int64_t* starts, int64_t samples) {
    for (int64_t s = 0; s < samples; ++s)
      for (int64_t from = starts[s]; from < starts[s + 1]; from += kBlock) {
        const int64_t to = std::min(from + kBlock, starts[s + 1]);
        sample.push_back(s);
        for (int64_t at = from; at < to; ++at) row.push_back(at);
        row.resize(++blocks * kBlock, -1);
      }
    const float none = std::numeric_limits<float>::infinity();
    for (int axis = 0; axis < 3; ++axis) coordinates[axis].assign(row.size(), none);
    low.assign(3 * blocks, none);
    high.assign(3 * blocks, -none);
    for (size_t at = 0; at < row.size(); ++at) {
      if (row[at] < 0) continue;
      for (int axis = 0; axis < 3; ++axis) {
        const float value = points[3 * row[at] + axis];
        coordinates[axis][at] = value;
        float &least = low[at / kBlock * 3 + axis], &most = high[at / kBlock * 3 + axis];
        least = std::min(least, value);
        most = std::max(most, value);
      }
    }
    for (int axis = 0; axis < 3; ++axis) place[axis] = coordinates[axis].data();
  }

  // Rows [places, width] of `from` [.., columns], zeros elsewhere.
  std::vector<float> rows_of(const float* from, int64_t columns, int64_t width) const {
    std::vector<float> out(row.size() * width, 0.0f);
    for (size_t at = 0; at < row.size(); ++at)
      if (row[at] >= 0) std::copy_n(from + row[at] * columns, columns, out.data() + at * width);
    return out;
  }

  // The same block by block with columns first: [blocks][columns, kBlock].
  std::vector<float> turned_rows(const float* from, int64_t columns) const {
    std::vector<float> out(row.size() * columns, 0.0f);
    for (size_t at = 0; at < row.size(); ++at) {
      if (row[at] < 0) continue;
      float* to = out.data() + at / kBlock * kBlock * columns + at % kBlock;
      for (int64_t c = 0; c < columns; ++c) to[c * kBlock] = from[row[at] * columns + c];
    }
    return out;
  }

  // Whether a point of block `at` can be nearer than the radius to one of block `there`.
  bool touches(int64_t at, const Side& other, int64_t there, float radius2) const {
    if (sample[at] != other.sample[there]) return false;
    float far = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const float gap = std::max(std::max(low[3 * at + axis] - other.high[3 * there + axis],
                                          other.low[3 * there + axis] - high[3 * at + axis]),
                                 0.0f);
      far += gap * gap;
    }
    return far < radius2 * 1.0001f;
  }
};

struct Problem {
  const Side *rows, *columns;
  int64_t channels, rank, width;  // width: a multiple of 16
  float inverse, radius2;
  const float *left, *right;  // P [places, rank], Q [blocks][rank, kBlock], or null
  const float* values;        // X [places, width]
  float* out;                 // [places, width]
};

#define S3D_KERNELS "transport_kernel.h"
#include "levels.h"

}  // namespace

// out [N, width] = (K o P Q^T) X. features [N, channels] and [M, channels]; points [., 3]; starts
// [samples + 1]: first row of each sample, whose rows should lie near those that follow; left [N, rank] and right [M, rank], or null;
// values [M, width].
EXPORT int64_t s3d_transport_product(const float* features0, const float* points0,
                                     const int64_t* starts0, const float* features1,
                                     const float* points1, const int64_t* starts1, int64_t samples,
                                     int64_t channels, double eps, double radius, const float* left,
                                     const float* right, int64_t rank, const float* values,
                                     int64_t width, float* out, int64_t threads) try {
  Side rows(points0, starts0, samples), columns(points1, starts1, samples);
  const int64_t padded = (width + 15) / 16 * 16;
  const std::vector<float> left_rows = left ? rows.rows_of(left, rank, rank) : std::vector<float>();
  const std::vector<float> right_rows = left ? columns.turned_rows(right, rank) : std::vector<float>();
  const std::vector<float> value_rows = columns.rows_of(values, width, padded);
  rows.memory = rows.rows_of(features0, channels, channels);
  rows.features = rows.memory.data();
  columns.memory = columns.turned_rows(features1, channels);
  columns.turned = columns.memory.data();
  std::vector<float> found(rows.row.size() * padded);
  const Problem problem = {&rows,
                           &columns,
                           channels,
                           rank,
                           padded,
                           (float)(1.0 / eps),
                           (float)(radius * radius),
                           left ? left_rows.data() : nullptr,
                           right_rows.data(),
                           value_rows.data(),
                           found.data()};
  void (*const block_of_rows)(const Problem&, int64_t, float*) = S3D_AT(best_level(0), block_of_rows);
  const int team = useful_threads(threads, rows.blocks, 2);
  Shortage shortage;
#pragma omp parallel num_threads(team)
  {
    std::vector<float> memory;
    shortage.within([&] { memory.resize(2 * kBlock * kBlock + kBlock * padded); });
#pragma omp for schedule(dynamic, 1)
    for (int64_t row = 0; row < rows.blocks; ++row)
      if (shortage.none()) block_of_rows(problem, row, memory.data());
  }
  shortage.raise();
  for (size_t at = 0; at < rows.row.size(); ++at)
    if (rows.row[at] >= 0) std::copy_n(found.data() + at * padded, width, out + rows.row[at] * width);
  return 0;
} OR_SHORTAGE
