// Depth from pictures with known cameras: a plane sweep, and its costs made smooth along lines.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common.h"

namespace {

constexpr int64_t kPlanes = 16;  // of a piece of work: what a pixel gets at once
constexpr int64_t kRows = 32;
constexpr int64_t kMostRadius = 8;

struct View {
  const float* image;
  int64_t height, width;
  const float* rotation;  // [3, 3] from the reference's pixels to this view's, infinitely far
  const float* shift;     // [3], times the inverse depth
};

// GCC's generic tuning takes lanes apart and loads them one by one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define S3D_GATHERS __attribute__((target("tune=skylake")))
#else
#define S3D_GATHERS
#endif
#define S3D_KERNELS "stereo_kernel.h"
#include "levels.h"

struct Kernels {
  decltype(&plain::warp) warp;
  decltype(&plain::sum_lines) sum_lines;
  decltype(&plain::sum_columns) sum_columns;
  decltype(&plain::unlikeness) unlikeness;
  decltype(&plain::best_mean) best_mean;
  decltype(&plain::step) step;
  decltype(&plain::add) add;
  decltype(&plain::winner) winner;
};

Kernels best_kernels() {
  const int level = best_level(0);
  return {S3D_AT(level, warp),        S3D_AT(level, sum_lines),  S3D_AT(level, sum_columns),
          S3D_AT(level, unlikeness),  S3D_AT(level, best_mean),  S3D_AT(level, step),
          S3D_AT(level, add),         S3D_AT(level, winner)};
}

// The costs of a path at the pixel where it is.
struct Paths {
  const Kernels& kernels;
  std::vector<uint16_t> a, b;
  uint16_t least = 0;
  Paths(const Kernels& kernels, int64_t planes)
      : kernels(kernels), a(planes + 2, 0x7fff), b(planes + 2, 0x7fff) {}

  void begin(const uint8_t* cost, int64_t planes) {
    least = 0xffff;
    for (int64_t p = 0; p < planes; ++p) {
      a[p + 1] = cost[p];
      least = std::min(least, a[p + 1]);
    }
  }
  void go(const uint8_t* cost, int64_t planes, uint16_t small, uint16_t large) {
    least = static_cast<uint16_t>(
        kernels.step(cost, a.data(), planes, least, small, large, b.data()));
    std::swap(a, b);
  }
};

}  // namespace

// reference: [height, width] 0..1. images: those of `count` views, one after the other; sizes:
// [count, 2] height and width. rotations: [count, 3, 3], shifts: [count, 3], in pixels.
// share, mean, deviation: [height, width] 1 / pixels of a window, its mean, its deviation.
// cost: [height, width, planes].
EXPORT int64_t s3d_plane_sweep(const float* reference, int64_t height, int64_t width,
                               const float* images, const int64_t* sizes, const float* rotations,
                               const float* shifts, int64_t count, const float* inverse,
                               int64_t planes, int64_t radius, int64_t best, double floor,
                               const float* share, const float* mean, const float* deviation,
                               uint8_t* cost, int64_t threads) {
  if (radius > kMostRadius) return -1;
  const Kernels kernels = best_kernels();
  std::vector<View> views(count);
  for (int64_t j = 0; j < count; ++j) {
    views[j] = {images, sizes[2 * j], sizes[2 * j + 1], rotations + 9 * j, shifts + 3 * j};
    images += sizes[2 * j] * sizes[2 * j + 1];
  }
  const int64_t bands = (height + kRows - 1) / kRows, blocks = (planes + kPlanes - 1) / kPlanes;
  const int64_t taps = 2 * radius + 1;
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint8_t> piece(kPlanes * kRows * width);
    std::vector<float> ring(taps * width), inside(taps * width), narrow(3 * width),
        line(width + 2 * radius, 0.0f), sums(3 * width), costs(count * kRows * width);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < bands * blocks; ++task) {
      const int64_t from = task / blocks * kRows, to = std::min(height, from + kRows);
      const int64_t first = task % blocks * kPlanes, number = std::min(planes - first, kPlanes);
      for (int64_t k = 0; k < number; ++k) {
        for (int64_t j = 0; j < count; ++j) {
          int64_t ready = std::max<int64_t>(from - radius, 0);
          for (int64_t y = from; y < to; ++y) {
            const int64_t top = std::max<int64_t>(y - radius, 0),
                          end = std::min(height, y + radius + 1);
            for (; ready < end; ++ready)
              kernels.warp(views[j], inverse[first + k], static_cast<float>(ready), width,
                   ring.data() + ready % taps * width, inside.data() + ready % taps * width);
            const float *lines[2 * kMostRadius + 1], *own[2 * kMostRadius + 1];
            for (int64_t row = top; row < end; ++row) {
              lines[row - top] = ring.data() + row % taps * width;
              own[row - top] = reference + row * width;
            }
            kernels.sum_lines(lines, own, end - top, width, narrow.data());
            for (int64_t s = 0; s < 3; ++s) {
              std::memcpy(line.data() + radius, narrow.data() + s * width, width * sizeof(float));
              kernels.sum_columns(line.data(), taps, width, sums.data() + s * width);
            }
            const int64_t at = y * width;
            kernels.unlikeness(sums.data(), width, share + at, mean + at, deviation + at,
                       inside.data() + y % taps * width, static_cast<float>(floor),
                       costs.data() + ((y - from) * count + j) * width);
          }
        }
        for (int64_t y = from; y < to; ++y)
          kernels.best_mean(costs.data() + (y - from) * count * width, count, best, width,
                    piece.data() + (k * kRows + y - from) * width);
      }
      for (int64_t y = from; y < to; ++y)
        for (int64_t x = 0; x < width; ++x) {
          uint8_t* out = cost + (y * width + x) * planes + first;
          const uint8_t* in = piece.data() + (y - from) * width + x;
          for (int64_t k = 0; k < number; ++k) out[k] = in[k * kRows * width];
        }
    }
  }
  return 0;
}

// cost: [height, width, planes]; along, across: [height, width] what a jump to a pixel costs from
// the one to its left and from that above. sum: [height, width, planes] of the costs of four paths.
// best: [height, width] the plane of the least sum, between planes where three sums say so.
EXPORT int64_t s3d_smooth_planes(const uint8_t* cost, int64_t height, int64_t width, int64_t planes,
                                 int64_t small, const int16_t* along, const int16_t* across,
                                 uint16_t* sum, float* best, int64_t threads) {
  const Kernels kernels = best_kernels();
  const uint16_t little = static_cast<uint16_t>(small);
#pragma omp parallel num_threads(threads)
  {
    Paths path(kernels, planes);
    // A line of `length` pixels that lie `stride` apart; jumps: those of its pixels.
    auto both_ways = [&](int64_t first, int64_t length, int64_t stride, const int16_t* jumps) {
      for (int back = 0; back < 2; ++back)
        for (int64_t i = 0; i < length; ++i) {
          const int64_t at = first + (back ? length - 1 - i : i) * stride;
          const uint8_t* own = cost + at * planes;
          if (!i)
            path.begin(own, planes);
          else
            path.go(own, planes, little, static_cast<uint16_t>(jumps[back ? at + stride : at]));
          kernels.add(path.a.data(), planes, sum + at * planes);
        }
    };
#pragma omp for schedule(static)
    for (int64_t y = 0; y < height; ++y) {
      std::memset(sum + y * width * planes, 0, width * planes * sizeof(uint16_t));
      both_ways(y * width, width, 1, along);
    }
#pragma omp for schedule(static)
    for (int64_t x = 0; x < width; ++x) both_ways(x, height, width, across);
#pragma omp for schedule(static)
    for (int64_t at = 0; at < height * width; ++at)
      best[at] = kernels.winner(sum + at * planes, planes);
  }
  return 0;
}
