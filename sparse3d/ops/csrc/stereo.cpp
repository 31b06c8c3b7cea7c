// Depth from pictures with known cameras: a plane sweep, and its costs made smooth along lines.

#include <algorithm>
#include <math.h>
#include <cstring>
#include <vector>

#include "common.h"

namespace {

constexpr int64_t kPlanes = 16;  // of a piece of work: what a pixel gets at once
constexpr int64_t kRows = 64;
constexpr int64_t kMostRadius = 8;
constexpr float kUnseen = 4.0f;  // above every cost, which is at most 2

constexpr float kWhite = 65535.0f;  // of a picture with 16 bits: those of 8 bits stay exact

struct View {
  const uint64_t* squares;  // 16 bits each: a pixel, the next one, and those below: one load for all
  int64_t height, width;
  const float* rotation;  // [3, 3] from the reference's pixels to this view's, infinitely far
  const float* shift;     // [3], times the inverse depth
};

struct Surface {
  const float* depth;  // [height, width], 0: not known
  int64_t height, width;
  const float *rotation, *shift;    // as a view's
  const float *back, *back_shift;   // the same from this picture to the reference's
  const float* center;              // [3] where it was taken, in the reference's frame
};

void square_up(const float* image, int64_t height, int64_t width, uint64_t* squares) {
  auto bits = [&](int64_t y, int64_t x) {
    const float v = image[std::min(y, height - 1) * width + std::min(x, width - 1)];
    return static_cast<uint64_t>(std::min(std::max(v, 0.0f), 1.0f) * kWhite + 0.5f);
  };
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      squares[y * width + x] = bits(y, x) | bits(y, x + 1) << 16 | bits(y + 1, x) << 32 |
                               bits(y + 1, x + 1) << 48;
}

// GCC's generic tuning takes lanes apart and loads them one by one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define S3D_GATHERS __attribute__((target("tune=skylake")))
#else
#define S3D_GATHERS
#endif
#define S3D_KERNELS "stereo_kernel.h"
#include "levels.h"

struct Kernels {
  decltype(&plain::aim) aim;
  decltype(&plain::blend) blend;
  decltype(&plain::confirm) confirm;
  decltype(&plain::sum_lines) sum_lines;
  decltype(&plain::unlikeness) unlikeness;
  decltype(&plain::best_mean) best_mean;
  decltype(&plain::step) step;
  decltype(&plain::add) add;
  decltype(&plain::winner) winner;
};

Kernels best_kernels() {
  const int level = best_level(0);
  return {S3D_AT(level, aim), S3D_AT(level, blend),       S3D_AT(level, confirm),   S3D_AT(level, sum_lines),
          S3D_AT(level, unlikeness), S3D_AT(level, best_mean),
          S3D_AT(level, step),        S3D_AT(level, add),        S3D_AT(level, winner)};
}

// Loads one by one: on Zen 4, whose gathers are slow, the whole sweep takes 0.8 of the time so.
void pick(const uint64_t* __restrict squares, const int32_t* __restrict index, int64_t width,
          uint64_t* __restrict out) {
  for (int64_t i = 0; i < width; ++i) out[i] = squares[index[i]];
}

// The costs of a path at the pixel where it is.
struct Paths {
  const Kernels& kernels;
  std::vector<uint16_t> a, b;
  uint16_t least = 0;
  explicit Paths(const Kernels& kernels) : kernels(kernels) {}

  void make_room(int64_t planes) {
    for (auto* line : {&a, &b}) line->assign(planes + 2, 0x7fff);
  }

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
                               uint8_t* cost, int64_t threads) try {
  if (radius > kMostRadius) return -1;
  const Kernels kernels = best_kernels();
  int64_t pixels = 0;
  for (int64_t j = 0; j < count; ++j) pixels += sizes[2 * j] * sizes[2 * j + 1];
  std::vector<uint64_t> squares(pixels);
  std::vector<View> views(count);
  uint64_t* own = squares.data();
  for (int64_t j = 0; j < count; ++j) {
    const int64_t rows = sizes[2 * j], columns = sizes[2 * j + 1];
    square_up(images, rows, columns, own);
    views[j] = {own, rows, columns, rotations + 9 * j, shifts + 3 * j};
    images += rows * columns;
    own += rows * columns;
  }
  const int64_t bands = (height + kRows - 1) / kRows, blocks = (planes + kPlanes - 1) / kPlanes;
  const int64_t taps = 2 * radius + 1;
  Shortage shortage;
#pragma omp parallel num_threads(threads)
  {
    const int64_t padded = width + 2 * radius, ring = taps * width;
    std::vector<uint8_t> piece;
    std::vector<float> shown, inside;  // of each view the lines of a window
    std::vector<float> narrow, sums, costs, seeing, right_of, below;
    std::vector<int32_t> index;
    std::vector<uint64_t> picked;
    shortage.within([&] {
      piece.resize(kPlanes * kRows * width);
      for (auto* lines : {&shown, &inside}) lines->resize(count * ring);
      narrow.resize(3 * padded), sums.resize(3 * width), costs.resize(count * width);
      for (auto* line : {&seeing, &right_of, &below}) line->resize(width);
      index.resize(width), picked.resize(width);
    });
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < bands * blocks; ++task) {
      if (!shortage.none()) continue;
      const int64_t from = task / blocks * kRows, to = std::min(height, from + kRows);
      const int64_t first = task % blocks * kPlanes, number = std::min(planes - first, kPlanes);
      for (int64_t k = 0; k < number; ++k) {
        int64_t ready = std::max<int64_t>(from - radius, 0);
        for (int64_t y = from; y < to; ++y) {
          const int64_t top = std::max<int64_t>(y - radius, 0),
                        end = std::min(height, y + radius + 1);
          for (; ready < end; ++ready)
            for (int64_t j = 0; j < count; ++j) {
              const int64_t at = j * ring + ready % taps * width;
              kernels.aim(views[j], inverse[first + k], static_cast<float>(ready), width,
                          index.data(), right_of.data(), below.data(), inside.data() + at);
              pick(views[j].squares, index.data(), width, picked.data());
              kernels.blend(picked.data(), right_of.data(), below.data(), width,
                            shown.data() + at);
            }
          const float *lines[2 * kMostRadius + 1], *own[2 * kMostRadius + 1];
          for (int64_t row = top; row < end; ++row) own[row - top] = reference + row * width;
          for (int64_t j = 0; j < count; ++j) {
            for (int64_t row = top; row < end; ++row)
              lines[row - top] = shown.data() + j * ring + row % taps * width;
            kernels.sum_lines(lines, own, end - top, width, padded, narrow.data() + radius);
            const int64_t at = y * width;
            kernels.unlikeness(narrow.data(), padded, taps, width, share + at, mean + at,
                               deviation + at, inside.data() + j * ring + y % taps * width,
                               static_cast<float>(floor), sums.data(), costs.data() + j * width);
          }
          kernels.best_mean(costs.data(), count, best, width, seeing.data(),
                            piece.data() + (k * kRows + y - from) * width);
        }
      }
      for (int64_t y = from; y < to; ++y)
        for (int64_t x = 0; x < width; ++x) {
          uint8_t* out = cost + (y * width + x) * planes + first;
          const uint8_t* in = piece.data() + (y - from) * width + x;
          for (int64_t k = 0; k < number; ++k) out[k] = in[k * kRows * width];
        }
    }
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE

// cost: [height, width, planes]; along, across: [height, width] what a jump to a pixel costs from
// the one to its left and from that above. sum: [height, width, planes] of the costs of four paths.
// best: [height, width] the plane of the least sum, between planes where three sums say so.
EXPORT int64_t s3d_smooth_planes(const uint8_t* cost, int64_t height, int64_t width, int64_t planes,
                                 int64_t small, const int16_t* along, const int16_t* across,
                                 uint16_t* sum, float* best, int64_t threads) try {
  const Kernels kernels = best_kernels();
  const uint16_t little = static_cast<uint16_t>(small);
  Shortage shortage;
#pragma omp parallel num_threads(threads)
  {
    Paths path(kernels);
    shortage.within([&] { path.make_room(planes); });
    // A line of `length` pixels that lie `stride` apart; jumps: those of its pixels.
    auto both_ways = [&](int64_t first, int64_t length, int64_t stride, const int16_t* jumps) {
      for (int back = 0; back < 2 && shortage.none(); ++back)
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
  shortage.raise();
  return 0;
} OR_SHORTAGE

// depth: [height, width] of the reference, 0: not known; rays: [3, 3], the inverse of its camera's
// matrix. depths: those of `count` others, one after the other; sizes: [count, 2] height and width.
// rotations, shifts: as of a sweep's views; backs, back_shifts: the same the other way; centers:
// [count, 3]. voices, asked, doubt: [height, width] how many others confirm a pixel; how many would if it
// were right; the least of their misses (and a quarter pixel) over the sine of the angle of the rays.
EXPORT int64_t s3d_confirm_depths(const float* depth, int64_t height, int64_t width,
                                  const float* rays, const float* depths, const int64_t* sizes,
                                  const float* rotations, const float* shifts, const float* backs,
                                  const float* back_shifts, const float* centers, int64_t count,
                                  double most_miss, double most_apart, double least_sine,
                                  int32_t* voices, int32_t* asked, float* doubt, int64_t threads) try {
  const Kernels kernels = best_kernels();
  std::vector<Surface> others(count);
  for (int64_t j = 0; j < count; ++j) {
    others[j] = {depths,         sizes[2 * j],        sizes[2 * j + 1],     rotations + 9 * j,
                 shifts + 3 * j, backs + 9 * j, back_shifts + 3 * j, centers + 3 * j};
    depths += sizes[2 * j] * sizes[2 * j + 1];
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t y = 0; y < height; ++y) {
    const int64_t at = y * width;
    std::fill(voices + at, voices + at + width, 0);
    std::fill(asked + at, asked + at + width, 0);
    std::fill(doubt + at, doubt + at + width, HUGE_VALF);
    for (const Surface& other : others)
      kernels.confirm(other, rays, static_cast<float>(y), width, static_cast<float>(most_miss),
                      static_cast<float>(most_apart), static_cast<float>(least_sine), depth + at,
                      voices + at, asked + at, doubt + at);
  }
  return 0;
} OR_SHORTAGE
