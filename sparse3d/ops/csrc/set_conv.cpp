// Set convolution without gradients: for each point the maximum over its neighbours of three layers,
// each normalised over all edges of the cloud. Edges are worked on a chunk of points at a time; sums
// run over fixed ranges in order, so the bits do not depend on the number of threads.
#include <math.h>
#include <omp.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common.h"

#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

constexpr int64_t kPoints = 8;  // of a chunk: its rows stay in the cache
constexpr int kTile = 6;        // rows multiplied at once
constexpr int64_t kRun = 32;    // rows that are summed in float before they join a double

struct Layer {
  const float *weight, *norm_weight, *norm_bias;  // [in, out], [width], [width]
  float *centre, *scale, *shift;                  // near the mean; the norm as factor and summand
};

struct Problem {
  int64_t points, k, width, chunk_rows;  // width: a multiple of 16
  const float* own;                      // [points, width] the features' part of the first layer
  const int64_t* index;                  // [points, k]
  const float* offsets;                  // [points * k, 3]
  const float* weight1;                  // [3, width]
  float slope;
  Layer layers[3];
  float* rows;   // [points * k, width] the second layer
  float* best;   // [points, width]
  double* sums;  // [chunks, 2 * width]
};

#define S3D_KERNELS "set_conv_kernel.h"
#include "levels.h"

struct Kernels {
  void (*pass)(const Problem&, int, int64_t, float*);
  void (*last_norm)(const Problem&, int64_t);
  void (*first_layer)(const Problem&, int64_t, int64_t, float*);
};

Kernels best() {
  const int level = best_level(0);
  return {S3D_AT(level, pass), S3D_AT(level, last_norm), S3D_AT(level, first_layer)};
}

// Factor and summand by which a layer's rows are normalised, from the sums of all chunks.
void finish(const Problem& p, const Layer& layer, int64_t chunks, double eps) {
  const double count = (double)p.points * p.k;
  for (int64_t c = 0; c < p.width; ++c) {
    double first = 0, second = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      first += p.sums[chunk * 2 * p.width + c];
      second += p.sums[chunk * 2 * p.width + p.width + c];
    }
    const double mean = first / count, spread = std::max(second / count - mean * mean, 0.0);
    const double scale = layer.norm_weight[c] / sqrt(spread + eps);
    layer.scale[c] = (float)scale;
    layer.shift[c] = (float)(layer.norm_bias[c] - scale * (mean + layer.centre[c]));
  }
}

// A value near the mean of each channel: that of the first row, which keeps the squares small.
void centre_of(const Problem& p, int number, const Kernels& kernels, std::vector<float>& line) {
  const Layer& layer = p.layers[number];
  if (number == 0) return kernels.first_layer(p, 0, 1, layer.centre);
  const Layer& before = p.layers[number - 1];
  if (number == 1)
    kernels.first_layer(p, 0, 1, line.data());
  else
    std::copy_n(p.rows, p.width, line.data());
  std::fill_n(layer.centre, p.width, 0.0f);
  for (int64_t k = 0; k < p.width; ++k) {
    float value = line[k] * before.scale[k] + before.shift[k];
    if (value < 0) value *= p.slope;
    for (int64_t c = 0; c < p.width; ++c) layer.centre[c] += value * layer.weight[k * p.width + c];
  }
}

}  // namespace

// out [points, width] > own [points, width], index [points, k] >= 0, offsets [points * k, 3], weight1
// [3, width], weight2 and weight3 [in, out], norms [3][2][width]: weight and bias of each norm. The
// last norm's weight must not be negative; points and k > 0; width: a multiple of 16.
EXPORT int64_t s3d_set_conv(const float* own, const int64_t* index, const float* offsets,
                            int64_t points, int64_t k, int64_t width, const float* weight1,
                            const float* weight2, const float* weight3, const float* norms,
                            double eps, double slope, float* out, int64_t threads) try {
  const int64_t chunks = (points + kPoints - 1) / kPoints;
  const int64_t chunk_rows = (kPoints * k + kTile - 1) / kTile * kTile;
  const std::unique_ptr<float[]> rows(new float[points * k * width]);
  const std::unique_ptr<double[]> sums(new double[chunks * 2 * width]);
  std::vector<float> lines(9 * width), line(width);
  Problem problem = {points, k,     width, chunk_rows, own,        index, offsets,
                     weight1, (float)slope, {},    rows.get(), out,        sums.get()};
  const float* weights[3] = {nullptr, weight2, weight3};
  for (int i = 0; i < 3; ++i) {
    float* mine = lines.data() + 3 * i * width;
    problem.layers[i] = {weights[i],  norms + 2 * i * width, norms + (2 * i + 1) * width, mine,
                         mine + width, mine + 2 * width};
  }
  const Kernels kernels = best();
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, chunks, 4))
  {
    std::vector<float> memory;
    shortage.within([&] { memory.resize(2 * chunk_rows * width); });
    for (int number = 0; number < 3; ++number) {
#pragma omp single
      {
        centre_of(problem, number, kernels, line);
        std::fill_n(problem.sums, chunks * 2 * width, 0.0);
      }
#pragma omp for schedule(static)
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        if (shortage.none()) kernels.pass(problem, number, chunk, memory.data());
#pragma omp single
      finish(problem, problem.layers[number], chunks, eps);
    }
#pragma omp for schedule(static)
    for (int64_t point = 0; point < points; ++point) kernels.last_norm(problem, point);
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE
