// Lists of the Gaussians that reach each tile, front to back.
#include <math.h>
#include <omp.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "common.h"
#include "radix_sort.h"

#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

constexpr float SLACK = 0.03f;  // of twice the exponent: far above the rounding errors

struct Scene {
  const float *means, *conics, *opacities;  // [rows, 2], [rows, 3] or null, [rows] or null
  const int32_t* radii;                     // [rows, 2]
  int64_t rows, tile, across, down;
};

// The tiles of up to 16 Gaussians: for each tall[lane] rows of tiles from top[lane] on, of which row i
// goes from left(i)[lane] to before right(i)[lane].
struct Spans {
  static constexpr int MOST = 16;
  int32_t top[MOST], tall[MOST];
  std::vector<int32_t> ends;

  int32_t* left(int64_t i) { return &ends[2 * MOST * i]; }
  int32_t* right(int64_t i) { return left(i) + MOST; }
};

#define S3D_KERNELS "splat_tiles_kernel.h"
#include "levels.h"

constexpr int64_t AHEAD = 32;  // in the order of depth, rows lie anywhere in memory

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
                                   int64_t across, int64_t down, int32_t* counts, int64_t threads) try {
  const Scene s = {means, nullptr, nullptr, radii, rows, tile, across, down};
  constexpr int64_t CHUNK = 1024;
  const int level = best_level(0);
#pragma omp parallel for num_threads(useful_threads(threads, rows, 4096)) schedule(static)
  for (int64_t i = 0; i < rows; i += CHUNK) S3D_AT(level, count(s, i, std::min(rows, i + CHUNK), counts));
  return 0;
} OR_SHORTAGE

// means, radii [rows, 2], depths, image_ids [rows], conics [rows, 3] and opacities [rows] or null ->
// counts [rows], tiles of each Gaussian (in: those of its box); keys and ids, room for the sum of the
// boxes' counts: sorted keys (image, tile, depth bits) and the rows they belong to.
// Returns the number of entries, or -1 when an image is not in [0, images).
EXPORT int64_t s3d_splat_list_tiles(const float* means, const int32_t* radii, const float* depths,
                                    const int64_t* image_ids, const float* conics,
                                    const float* opacities, int64_t rows, int64_t images,
                                    int64_t tile, int64_t across, int64_t down, int32_t* counts,
                                    int64_t* keys, int32_t* ids, int64_t threads) try {
  const Scene s = {means, conics, opacities, radii, rows, tile, across, down};
  const int shift = 64 - __builtin_clzll((uint64_t)(across * down));
  const int64_t all = images << shift;
  uint64_t least = UINT64_MAX, largest = 0;
  int64_t seen = 0;
  const auto key_of = [&](int64_t i) { return (uint64_t)image_ids[i] << 32 | bits_of(depths[i]); };
  for (int64_t i = 0; i < rows; i++) {
    if (image_ids[i] < 0 || image_ids[i] >= images) return -1;
    if (!counts[i]) continue;
    least = std::min(least, key_of(i)), largest = std::max(largest, key_of(i));
    seen++;
  }
  if (!seen) return 0;
  // those that are not seen come first
  const radix::Sorted order(
      rows, radix::bits_of(largest - least + 1),
      [&](int64_t i) { return counts[i] ? key_of(i) - least + 1 : 0; }, threads);
  const int64_t unseen = rows - seen;
  std::vector<int64_t> work(seen + 1);  // before each, to share it out
  for (int64_t i = 0; i < seen; i++) {
    if (i + AHEAD < seen) __builtin_prefetch(counts + order.row(unseen + i + AHEAD));
    work[i + 1] = work[i] + counts[order.row(unseen + i)] + 4;
  }
  const int team = useful_threads(threads, seen, 1024);
  std::vector<int64_t> place((size_t)team * all);
  int64_t total = 0;
  const int level = best_level(0);
  Shortage shortage;
#pragma omp parallel num_threads(team)
  {
    const int64_t count = omp_get_num_threads(), self = omp_get_thread_num();
    const auto share = [&](int64_t t) {
      return std::lower_bound(work.begin(), work.end(), work[seen] * t / count) - work.begin();
    };
    const int64_t from = share(self), to = self + 1 == count ? seen : share(self + 1);
    int64_t* mine = &place[(size_t)self * all];
    // the tiles, as in a key's upper half, of one Gaussian after another
    std::unique_ptr<int32_t[]> own;
    Spans tiles;
    shortage.within([&] {
      own.reset(new int32_t[work[to] - work[from] + 1]);
      tiles.ends.resize(2 * Spans::MOST * down);
    });
    int32_t* next = own.get();
    for (int64_t i = from; i < to && shortage.none(); i += Spans::MOST) {
      const int64_t n = std::min<int64_t>(Spans::MOST, to - i);
      int64_t some[Spans::MOST];
      for (int64_t k = 0; k < n; k++) {
        some[k] = order.row(unseen + i + k);
        if (i + k + AHEAD < to) prefetch(s, counts, order.row(unseen + i + k + AHEAD));
      }
      S3D_AT(level, spans(s, some, n, tiles));
      for (int64_t k = 0; k < n; k++) {
        const int64_t image = (int64_t)((order.key(unseen + i + k) + least - 1) >> 32);
        const int32_t* before = next;
        for (int64_t y = 0; y < tiles.tall[k]; y++) {
          const int32_t first = (int32_t)(image << shift | (tiles.top[k] + y) * across);
          for (int32_t t = first + tiles.left(y)[k]; t < first + tiles.right(y)[k]; t++) {
            *next++ = t;
            mine[t]++;
          }
        }
        counts[some[k]] = (int32_t)(next - before);
      }
    }
#pragma omp barrier
#pragma omp single
    for (int64_t t = 0; t < all; t++)
      for (int64_t thread = 0; thread < count; thread++) {
        int64_t& slot = place[(size_t)thread * all + t];
        const int64_t here = slot;
        slot = total;
        total += here;
      }
    next = own.get();
    for (int64_t i = from; i < to && shortage.none(); i++) {
      const int64_t row = order.row(unseen + i);
      const uint64_t depth = (uint32_t)(order.key(unseen + i) + least - 1);
      if (i + AHEAD < to) __builtin_prefetch(counts + order.row(unseen + i + AHEAD));
      for (const int32_t* end = next + counts[row]; next < end; next++) {
        const int64_t at = mine[*next]++;
        ids[at] = (int32_t)row;
        keys[at] = (int64_t)((uint64_t)*next << 32 | depth);
      }
    }
  }
  shortage.raise();
  return total;
} OR_SHORTAGE
