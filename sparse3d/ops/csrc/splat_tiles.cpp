// Lists of the Gaussians that reach each tile, front to back.
#include <math.h>
#include <omp.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common.h"
#include "radix_sort.h"

namespace {

constexpr float SLACK = 0.03f;  // of twice the exponent: far above the rounding errors

struct Scene {
  const float *means, *conics, *opacities;  // [rows, 2], [rows, 3] or null, [rows] or null
  const int32_t* radii;                     // [rows, 2]
  int64_t rows, tile, across, down;
};

struct Box {
  int64_t left, top, right, bottom;
};

// floor and ceil of x, kept within 0 .. limit; 0 of what is not a number.
inline int64_t floor_in(float x, int64_t limit) {
  return x > 0 ? (x < (float)limit ? (int32_t)x : limit) : 0;
}
inline int64_t ceil_in(float x, int64_t limit) {
  const int64_t down = floor_in(x, limit);
  return down + (down < limit && (float)down < x);
}

// The tiles that a Gaussian's box reaches; none where it is not seen.
inline Box box_of(const Scene& s, int64_t row) {
  const int32_t *r = s.radii + 2 * row;
  if (r[0] <= 0 || r[1] <= 0) return {0, 0, 0, 0};
  const float size = (float)s.tile, *mean = s.means + 2 * row;
  const float x = mean[0] / size, y = mean[1] / size;
  const float w = (float)r[0] / size, h = (float)r[1] / size;
  return {floor_in(x - w, s.across), floor_in(y - h, s.down), ceil_in(x + w, s.across),
          ceil_in(y + h, s.down)};
}

inline float between(float x, float low, float high) { return std::min(std::max(x, low), high); }

// Calls body(y, first x, one past the last x) for rows of tiles in which a Gaussian reaches a pixel
// with an alpha of 1/255, or, without conics, for those of its box.
template <class Body>
inline void for_spans(const Scene& s, int64_t row, const Body& body) {
  const Box box = box_of(s, row);
  if (box.left >= box.right || box.top >= box.bottom) return;
  float a = 0, b = 0, c = 0, det = 0, level = 0;
  if (s.conics) {
    a = s.conics[3 * row], b = s.conics[3 * row + 1], c = s.conics[3 * row + 2];
    det = (float)((double)a * c - (double)b * b);
    level = 2 * logf(255 * s.opacities[row]) + SLACK;
    if (!(level > 0)) return;  // fainter than 1/255 everywhere
  }
  if (!(a > 0 && c > 0 && det > 0)) {  // no ellipse is known
    for (int64_t y = box.top; y < box.bottom; y++) body(y, box.left, box.right);
    return;
  }
  const float *mean = s.means + 2 * row, size = (float)s.tile, per_size = 1 / size;
  const float per_a = 1 / a, square = level * a;
  const float highest = sqrtf(square / det), turn = b * sqrtf(level / (c * det));
  for (int64_t y = box.top; y < box.bottom; y++) {
    const float above = (float)(y * s.tile) + 0.5f - mean[1], below = above + size - 1;
    const float low = std::max(above, -highest), high = std::min(below, highest);
    if (low > high) continue;
    const float v = between(-turn, low, high), u = between(turn, low, high);
    const float right = (sqrtf(std::max(0.f, square - det * v * v)) - b * v) * per_a;
    const float left = (-sqrtf(std::max(0.f, square - det * u * u)) - b * u) * per_a;
    const float end = (mean[0] + right - 0.5f) * per_size;
    const int64_t first = ceil_in((mean[0] + left + 0.5f) * per_size, s.across) - 1;
    const int64_t last = end >= 0 ? floor_in(end, s.across) + 1 : 0;
    const int64_t from = std::max(first, box.left), to = std::min(last, box.right);
    if (from < to) body(y, from, to);
  }
}

struct Entry {
  int32_t tile, row;  // the tile of all images
};

constexpr int64_t AHEAD = 16;  // in the order of depth, rows lie anywhere in memory

inline void prefetch(const Scene& s, const int32_t* counts, int64_t row) {
  __builtin_prefetch(s.means + 2 * row);
  __builtin_prefetch(s.radii + 2 * row);
  __builtin_prefetch(counts + row, 1);
  if (!s.conics) return;
  __builtin_prefetch(s.conics + 3 * row);
  __builtin_prefetch(s.opacities + row);
}

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

}  // namespace

// Tiles that each Gaussian's box reaches -> counts [rows].
EXPORT int64_t s3d_splat_box_tiles(const float* means, const int32_t* radii, int64_t rows, int64_t tile,
                                   int64_t across, int64_t down, int32_t* counts, int64_t threads) {
  const Scene s = {means, nullptr, nullptr, radii, rows, tile, across, down};
#pragma omp parallel for num_threads(useful_threads(threads, rows, 4096)) schedule(static)
  for (int64_t i = 0; i < rows; i++) {
    const Box box = box_of(s, i);
    const int64_t wide = std::max<int64_t>(box.right - box.left, 0);
    counts[i] = (int32_t)(wide * std::max<int64_t>(box.bottom - box.top, 0));
  }
  return 0;
}

// means, radii [rows, 2], depths, image_ids [rows], conics [rows, 3] and opacities [rows] or null ->
// counts [rows], tiles of each Gaussian (in: those of its box); keys and ids, room for the sum of the
// boxes' counts: sorted keys (image, tile, depth bits) and the rows they belong to.
// Returns the number of entries, or -1 when an image is not in [0, images).
EXPORT int64_t s3d_splat_list_tiles(const float* means, const int32_t* radii, const float* depths,
                                    const int64_t* image_ids, const float* conics,
                                    const float* opacities, int64_t rows, int64_t images,
                                    int64_t tile, int64_t across, int64_t down, int32_t* counts,
                                    int64_t* keys, int32_t* ids, int64_t threads) {
  const Scene s = {means, conics, opacities, radii, rows, tile, across, down};
  const int64_t tiles = across * down, all = images * tiles;
  std::vector<radix::Item> order;
  order.reserve(rows);
  uint64_t largest = 0;
  for (int64_t i = 0; i < rows; i++) {
    if (image_ids[i] < 0 || image_ids[i] >= images) return -1;
    if (!counts[i]) continue;
    const uint64_t key = (uint64_t)image_ids[i] << 32 | bits_of(depths[i]);
    largest = std::max(largest, key);
    order.push_back({key, i});
  }
  radix::sort(order, radix::bits_of(largest), threads);
  const int64_t seen = (int64_t)order.size();
  std::vector<int64_t> work(seen + 1);  // before each, to share it out
  for (int64_t i = 0; i < seen; i++) {
    if (i + AHEAD < seen) __builtin_prefetch(counts + order[i + AHEAD].row);
    work[i + 1] = work[i] + counts[order[i].row] + 4;
  }
  const int team = useful_threads(threads, seen, 1024);
  std::vector<int64_t> place((size_t)team * all), starts(all + 1);
  int64_t total = 0;
  const int shift = 64 - __builtin_clzll((uint64_t)tiles);
#pragma omp parallel num_threads(team)
  {
    const int64_t count = omp_get_num_threads(), self = omp_get_thread_num();
    const auto share = [&](int64_t t) {
      return std::lower_bound(work.begin(), work.end(), work[seen] * t / count) - work.begin();
    };
    const int64_t from = share(self), to = self + 1 == count ? seen : share(self + 1);
    int64_t* mine = &place[(size_t)self * all];
    std::unique_ptr<Entry[]> own(new Entry[work[to] - work[from] + 1]);
    Entry* next = own.get();
    for (int64_t i = from; i < to; i++) {
      if (i + AHEAD < to) prefetch(s, counts, order[i + AHEAD].row);
      const int64_t row = order[i].row, first = (int64_t)(order[i].key >> 32) * tiles;
      const Entry* before = next;
      for_spans(s, row, [&](int64_t y, int64_t begin, int64_t end) {
        for (int64_t t = first + y * across + begin; t < first + y * across + end; t++) {
          *next++ = {(int32_t)t, (int32_t)row};
          mine[t]++;
        }
      });
      counts[row] = (int32_t)(next - before);
    }
#pragma omp barrier
#pragma omp single
    for (int64_t t = 0; t < all; t++) {
      starts[t] = total;
      for (int64_t thread = 0; thread < count; thread++) {
        int64_t& slot = place[(size_t)thread * all + t];
        const int64_t here = slot;
        slot = total;
        total += here;
      }
      starts[t + 1] = total;
    }
    for (const Entry* e = own.get(); e < next; e++) ids[mine[e->tile]++] = e->row;
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t t = 0; t < all; t++) {
      const uint64_t high = (uint64_t)(t / tiles) << shift | (uint64_t)(t % tiles);
      for (int64_t i = starts[t]; i < starts[t + 1]; i++)
        keys[i] = (int64_t)(high << 32 | bits_of(depths[ids[i]]));
    }
  }
  return total;
}
