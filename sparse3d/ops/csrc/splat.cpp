// Blending Gaussians into pixels, and its gradient: the part that is the same on every processor.
#include "splat.h"

#include <math.h>
#include <omp.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr int64_t AHEAD = 64;  // entries: their rows lie anywhere in memory

// Memory of one call, which its thread keeps for the next one: fresh pages would have to be cleared, and
// that takes up to a tenth of the time. Large memory is given back.
class Workspace {
 public:
  explicit Workspace(int64_t floats) {
    if (size >= floats + 16) return;
    give_back();
    kept.reset(new float[floats + 16]);
    size = floats + 16;
  }
  ~Workspace() {
    if (size > MOST_KEPT) give_back();
  }
  float* aligned() const { return (float*)(((uintptr_t)kept.get() + 63) / 64 * 64); }

 private:
  static constexpr int64_t MOST_KEPT = (int64_t)1 << 23;  // floats
  static void give_back() {
    kept.reset();
    size = 0;
  }
  static thread_local std::unique_ptr<float[]> kept;
  static thread_local int64_t size;
};
thread_local std::unique_ptr<float[]> Workspace::kept;
thread_local int64_t Workspace::size = 0;

// level: 0 the best that the processor has, 1 plain, 2 AVX2, 3 AVX-512 (or the next lower one).
const SplatKernels& kernels(int64_t level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("bmi2");
  if ((level == 0 || level == 3) && avx2 && avx512) return splat_avx512;
  if (level != 1 && avx2) return splat_avx2;
#endif
  return splat_plain;
}

void make_record(const SplatCall& q, const float* means, const float* opacities, int64_t row, float* r) {
  const float *mean = means + 2 * row, *conic = q.conics + 3 * row;
  const float a = 0.5f * LOG2_E * conic[0], b = LOG2_E * conic[1], c = 0.5f * LOG2_E * conic[2];
  const double rest = c - 0.25 * b * b / a;
  const bool ellipse = a > 0 && rest > 0;
  r[0] = mean[0], r[1] = mean[1];
  r[2] = ellipse ? sqrtf(a) : 1.f;
  r[3] = ellipse ? 0.5f * b / r[2] : 0.f;
  r[4] = ellipse ? (float)sqrt(rest) : 1.f;
  r[5] = log2f(opacities[row]);
  r[6] = ellipse ? -0.5f * b / a : NAN;
  r[7] = -0.5f * b / c;
  if (q.channels <= SPLAT_COLORS)
    memcpy(r + 8, q.colors + q.channels * row, sizeof(float) * q.channels);
}

// Rows of one image that a list may name, in every tile: 1 when it names others, or offsets fall.
int64_t check_lists(const SplatCall& q, int64_t rows) {
  int64_t before = 0, wrong = 0;
  for (int64_t t = 0; t < q.tiles(); t++) {
    wrong |= q.offsets[t] < before;
    before = q.offsets[t];
  }
  wrong |= before > q.entries;
  uint32_t largest = 0;  // a negative number is large
  for (int64_t i = 0; i < q.entries; i++) largest = std::max(largest, (uint32_t)q.ids[i]);
  return wrong | (q.entries && largest >= (uint64_t)rows);
}

// Adds the sums of tiles' entries to those of their Gaussians in the order of the lists, whichever tile is
// ready first: the result is the same for any number of threads, none of which waits for another's tile.
class InOrder {
 public:
  // One thread adds what it has just written, from its cache; several may be some tiles apart.
  static int64_t slots(int64_t threads, int64_t floats) {
    return threads == 1 ? 1 : std::max(threads, std::min(8 * threads, (threads << 20) / (floats + 1)));
  }
  // parts: slots of `floats` each, the most that a tile has.
  InOrder(const SplatCall& q, float* sums, float* parts, int64_t slots, int64_t floats)
      : q_(q), sums_(sums), parts_(parts), floats_(floats), ready_(slots) {}

  // Where to write the sums of a tile's entries.
  float* room(int64_t tile) {
    while (tile - added_ >= slots()) {
      add();
      // The thread whose tile is next may wait for this one's core.
      if (tile - added_ >= slots()) std::this_thread::yield();
    }
    return at(tile);
  }
  void ready(int64_t tile) {
    ready_[tile % slots()] = tile + 1;
    add();
  }

 private:
  int64_t slots() const { return (int64_t)ready_.size(); }
  float* at(int64_t tile) const { return parts_ + tile % slots() * floats_; }
  bool next_is_ready() const {
    const int64_t tile = added_;
    return ready_[tile % slots()] == tile + 1;
  }

  // Adds all tiles that are ready, unless another thread does; it looks again after it has let go.
  void add() {
    while (next_is_ready() && !busy_.exchange(true)) {
      for (; next_is_ready(); ++added_) add_tile(added_);
      busy_ = false;
    }
  }

  void add_tile(int64_t tile) {
    const int64_t stride = q_.stride(), end = q_.end(tile);
    const float* from = at(tile);
    for (int64_t i = q_.begin(tile); i < end; i++, from += stride) {
      // the last ones fetch for the next tile
      if (i + AHEAD < q_.entries) __builtin_prefetch(sums_ + q_.ids[i + AHEAD] * stride, 1);
      float* to = sums_ + q_.ids[i] * stride;
      for (int64_t k = 0; k < stride; k++) to[k] += from[k];
    }
  }

  const SplatCall& q_;
  float *sums_, *parts_;
  const int64_t floats_;
  std::vector<std::atomic<int64_t>> ready_;  // the number, from 1 on, of the tile in each slot
  std::atomic<int64_t> added_{0};            // tiles
  std::atomic<bool> busy_{false};
};

}  // namespace

// means [rows, 2], conics [rows, 3], colors [rows, channels], opacities [rows], backgrounds [images,
// channels] or null, shown [images, down, across] or null, offsets likewise, ids [entries] -> image
// [images, height, width, channels], transmittance and looked_at [images, height, width].
// Returns 1 when the lists name rows that are not there, else 0.
EXPORT int64_t s3d_splat_composite(const float* means, const float* conics, const float* colors,
                                   const float* opacities, const float* backgrounds,
                                   const uint8_t* shown, const int32_t* offsets, const int32_t* ids,
                                   int64_t rows, int64_t channels, int64_t entries, int64_t images,
                                   int64_t width, int64_t height, int64_t tile, int64_t across,
                                   int64_t down, float* image, float* transmittance,
                                   int32_t* looked_at, int64_t level, int64_t threads) try {
  SplatCall q = {};
  q.conics = conics, q.colors = colors, q.backgrounds = backgrounds, q.shown = shown;
  q.offsets = offsets, q.ids = ids;
  q.channels = channels, q.entries = entries, q.images = images, q.width = width, q.height = height;
  q.tile = tile, q.across = across, q.down = down;
  q.image = image, q.transmittance = transmittance, q.looked_at = looked_at;
  if (check_lists(q, rows)) return 1;
  const Workspace workspace(SPLAT_RECORD * rows);
  float* r = workspace.aligned();
  q.records = r;
  const SplatKernels& kernel = kernels(level);
  Shortage shortage;
#pragma omp parallel num_threads((int)threads)
  {
    std::vector<float> scratch;
    shortage.within([&] { scratch.resize(splat_scratch(channels)); });
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; i++)
      make_record(q, means, opacities, i, r + SPLAT_RECORD * i);
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < q.tiles(); t++)
      if (shortage.none()) kernel.forward(q, t, scratch.data());
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE

// The gradient of the above: grads of image and transmittance (or null), and what the forward pass wrote ->
// d_means, d_absolute [rows, 2], d_conics [rows, 3], d_colors [rows, channels], d_opacities [rows].
EXPORT int64_t s3d_splat_composite_gradient(
    const float* grad_image, const float* grad_light, const float* means, const float* conics,
    const float* colors, const float* opacities, const float* backgrounds, const uint8_t* shown,
    const int32_t* offsets, const int32_t* ids, float* transmittance, int32_t* looked_at,
    int64_t rows, int64_t channels, int64_t entries, int64_t images, int64_t width, int64_t height,
    int64_t tile, int64_t across, int64_t down, int64_t absolute, float* d_means, float* d_absolute,
    float* d_conics, float* d_colors, float* d_opacities, int64_t level, int64_t threads) try {
  SplatCall q = {};
  q.conics = conics, q.colors = colors, q.backgrounds = backgrounds, q.shown = shown;
  q.offsets = offsets, q.ids = ids;
  q.channels = channels, q.entries = entries, q.images = images, q.width = width, q.height = height;
  q.tile = tile, q.across = across, q.down = down, q.absolute = absolute;
  q.transmittance = transmittance, q.looked_at = looked_at;
  q.grad_image = grad_image, q.grad_light = grad_light;
  if (check_lists(q, rows)) return 1;
  const SplatKernels& kernel = kernels(level);
  const int64_t stride = q.stride();
  int64_t most = 0;
  for (int64_t t = 0; t < q.tiles(); t++) most = std::max(most, (q.end(t) - q.begin(t)) * stride);
  const int64_t slots = InOrder::slots(threads, most);
  const Workspace workspace(SPLAT_RECORD * rows + rows * stride + slots * most);
  float *r = workspace.aligned(), *sums = r + SPLAT_RECORD * rows;
  q.records = r;
  InOrder total(q, sums, sums + rows * stride, slots, most);
  std::atomic<int64_t> next{0};  // tiles begin in their order: none waits for one that has not begun
  Shortage shortage;
#pragma omp parallel num_threads((int)threads)
  {
    const int64_t count = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t low = rows * self / count, high = rows * (self + 1) / count;
    std::vector<float> scratch;
    const bool ready = shortage.within([&] { scratch.resize(splat_scratch(channels)); });
    memset(sums + low * stride, 0, sizeof(float) * (high - low) * stride);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; i++)
      make_record(q, means, opacities, i, r + SPLAT_RECORD * i);
    for (int64_t t = ready ? next++ : q.tiles(); t < q.tiles(); t = next++) {
      kernel.gradient(q, t, scratch.data(), total.room(t));
      total.ready(t);
    }
#pragma omp barrier
    for (int64_t i = low; i < high; i++) {
      const float *s = sums + i * stride, *conic = conics + 3 * i, *record = r + SPLAT_RECORD * i;
      // back from u and v to x and y
      const float per_u = 1 / record[2], per_v = 1 / record[4], skew = record[3] * per_v;
      const float x = (s[1] - skew * s[2]) * per_u, y = s[2] * per_v;
      d_means[2 * i] = conic[0] * x + conic[1] * y;
      d_means[2 * i + 1] = conic[1] * x + conic[2] * y;
      d_absolute[2 * i] = s[6] / LOG2_E;
      d_absolute[2 * i + 1] = s[7] / LOG2_E;
      d_conics[3 * i] = -0.5f * (s[3] - skew * (2 * s[4] - skew * s[5])) * per_u * per_u;
      d_conics[3 * i + 1] = -(s[4] - skew * s[5]) * per_u * per_v;
      d_conics[3 * i + 2] = -0.5f * s[5] * per_v * per_v;
      d_opacities[i] = s[0] == 0 ? 0.f : s[0] / opacities[i];
      memcpy(d_colors + channels * i, s + SPLAT_MOMENTS, sizeof(float) * channels);
    }
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE

// What the backgrounds [images, channels] get of the gradient of images of `pixels` pixels: where light is
// left. The sums of runs of pixels, each by one thread, are added in their order.
EXPORT int64_t s3d_splat_background_gradient(const float* grad_image, const float* transmittance,
                                             int64_t images, int64_t pixels, int64_t channels,
                                             float* d_backgrounds, int64_t threads) try {
  constexpr int64_t RUN = 4096;
  const int64_t runs = (pixels + RUN - 1) / RUN;
  std::vector<double> sums(images * runs * channels, 0.0);
#pragma omp parallel for num_threads(useful_threads(threads, images * runs, 4)) schedule(static)
  for (int64_t r = 0; r < images * runs; r++) {
    const int64_t first = r / runs * pixels + r % runs * RUN;
    const int64_t end = first + std::min(RUN, pixels - r % runs * RUN);
    double* sum = &sums[r * channels];
    for (int64_t i = first; i < end; i++)
      for (int64_t k = 0; k < channels; k++)
        sum[k] += (double)transmittance[i] * grad_image[i * channels + k];
  }
  for (int64_t image = 0; image < images; image++)
    for (int64_t k = 0; k < channels; k++) {
      double sum = 0;
      for (int64_t r = image * runs; r < (image + 1) * runs; r++) sum += sums[r * channels + k];
      d_backgrounds[image * channels + k] = (float)sum;
    }
  return 0;
} OR_SHORTAGE
