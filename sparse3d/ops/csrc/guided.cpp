// Best matches among the few pairs that geometry allows: on epipolar lines, or near a known place.
// Rows are searched in chunks, and chunks are read in order: results do not depend on the threads.
#include "common.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

constexpr int64_t CHUNK = 32, LANES = 16;

struct Pair {
  int64_t row, column;
  float similarity;
};

// The largest similarity of a row or column; among equal ones the smallest partner.
struct Best {
  float similarity = -1;
  int64_t partner = -1;
  bool yields(float other, int64_t to) const {
    return other > similarity || (other == similarity && to < partner);
  }
};

// Sixteen partial sums: wide on every machine, and always added in one order.
WIDE float dot(const float* __restrict a, const float* __restrict b, int64_t n) {
  float part[LANES] = {0}, rest = 0;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int64_t k = 0; k < LANES; k++) part[k] += a[i + k] * b[i + k];
  for (; i < n; i++) rest += a[i] * b[i];
  for (int64_t k = 8; k > 0; k /= 2)
    for (int64_t j = 0; j < k; j++) part[j] += part[j + k];
  return part[0] + rest;
}

// near[j]: is point j of the other picture within the line's reach?
WIDE void on_line(const double line[3], double reach, const double* __restrict x,
                  const double* __restrict y, const double* __restrict reaches,
                  uint8_t* __restrict near, int64_t m) {
  for (int64_t j = 0; j < m; j++) {
    const double away = fabs(line[0] * x[j] + line[1] * y[j] + line[2]);
    near[j] = away <= std::min(reach, reaches[j]);
  }
}

// Pairs of all rows, in order of rows; search(row, pairs) adds those of one.
template <class Search>
std::vector<std::vector<Pair>> collect(int64_t rows, int64_t threads, const Search& search) {
  const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
  std::vector<std::vector<Pair>> found(chunks);
  Shortage shortage;
#pragma omp parallel for schedule(dynamic) num_threads(useful_threads(threads, chunks, 8))
  for (int64_t c = 0; c < chunks; c++)
    shortage.within([&] {
      for (int64_t i = c * CHUNK; i < std::min(rows, (c + 1) * CHUNK); i++) search(i, found[c]);
    });
  shortage.raise();
  return found;
}

// Places in stripes of `height` pixels, in each from left to right.
struct Stripes {
  const float height;
  float low = 0;
  std::vector<int64_t> order, first;  // rows of the places; where each stripe begins
  std::vector<float> x, y;

  Stripes(const float* places, int64_t m, float height) : height(height), order(m), x(m), y(m) {
    std::iota(order.begin(), order.end(), 0);
    float high = 0;
    for (int64_t j = 0; j < m; j++) {
      low = j ? std::min(low, places[2 * j + 1]) : places[1];
      high = j ? std::max(high, places[2 * j + 1]) : places[1];
    }
    const int64_t most = 4096;  // places may lie anywhere
    const int64_t count = 1 + (int64_t)std::min<double>(most - 1, ((double)high - low) / height);
    std::vector<int32_t> stripe(m);
    first.assign(count + 1, 0);
    for (int64_t j = 0; j < m; j++) {
      stripe[j] = (int32_t)std::min<double>(count - 1, ((double)places[2 * j + 1] - low) / height);
      first[stripe[j] + 1]++;
    }
    for (int64_t s = 0; s < count; s++) first[s + 1] += first[s];
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      if (stripe[a] != stripe[b]) return stripe[a] < stripe[b];
      return places[2 * a] < places[2 * b];
    });
    for (int64_t k = 0; k < m; k++) x[k] = places[2 * order[k]], y[k] = places[2 * order[k] + 1];
  }

  // Calls found(k) for all places, counted in `order`, less than the height from (u, v), and others.
  template <class Found>
  void near(float u, float v, const Found& found) const {
    const int64_t last = (int64_t)first.size() - 2;
    const double place = ((double)v - low) / height;
    const int64_t from = (int64_t)std::min<double>(last, std::max(0.0, place - 1));
    const int64_t to = (int64_t)std::min<double>(last, std::max(0.0, place + 1));
    for (int64_t s = from; s <= to; s++) {
      const auto end = x.begin() + first[s + 1];
      int64_t k = std::lower_bound(x.begin() + first[s], end, u - height) - x.begin();
      for (; k < first[s + 1] && x[k] <= u + height; k++) found(k);
    }
  }
};

}  // namespace

// lines [n, 3] in the second picture, reach [n] and reaches [m]: how far a point may lie off, as
// the line's equation measures it. Out, of every row the best, its column and the second best
// similarity; of every column its best row. -1 where there is none.
EXPORT int64_t s3d_match_on_lines(const float* one, const float* two, const double* lines,
                                  const double* reach, const double* x, const double* y,
                                  const double* reaches, int64_t n, int64_t m, int64_t channels,
                                  float* best, int64_t* column, float* second, int64_t* back,
                                  int64_t threads) try {
  const auto found = collect(n, threads, [&](int64_t i, std::vector<Pair>& pairs) {
    static thread_local std::vector<uint8_t> near;
    near.assign((m + 7) / 8 * 8, 0);
    on_line(lines + 3 * i, reach[i], x, y, reaches, near.data(), m);
    for (int64_t start = 0; start < m; start += 8) {
      uint64_t any;
      memcpy(&any, near.data() + start, 8);
      if (any == 0) continue;
      for (int64_t j = start; j < start + 8; j++)
        if (near[j]) pairs.push_back({i, j, dot(one + i * channels, two + j * channels, channels)});
    }
  });
  std::vector<Best> rows(n), columns(m);
  std::fill(second, second + n, -1.f);
  for (const auto& pairs : found)
    for (const Pair& p : pairs) {
      Best& row = rows[p.row];
      second[p.row] = std::max(second[p.row], std::min(row.similarity, p.similarity));
      if (row.yields(p.similarity, p.column)) row = {p.similarity, p.column};
      if (columns[p.column].yields(p.similarity, p.row)) columns[p.column] = {p.similarity, p.row};
    }
  for (int64_t i = 0; i < n; i++) best[i] = rows[i].similarity, column[i] = rows[i].partner;
  for (int64_t j = 0; j < m; j++) back[j] = columns[j].partner;
  return 0;
} OR_SHORTAGE

// Mutual best matches of key points [n] and places [m] within `radius` pixels of each other.
// looks of either: cosine and sine of the direction, and size, [n, 3] and [m, 3]; null: any.
// Returns how many; rows ascend.
EXPORT int64_t s3d_match_within(const float* points, const float* places, const float* flat,
                                const float* level, const float* codes, const float* lengths,
                                const float* looks, const float* expected, int64_t n, int64_t m,
                                int64_t rank, double radius, double least, double same_way,
                                double same_size, int64_t* row, int64_t* column, float* similarity,
                                int64_t threads) try {
  const float far = (float)radius, square = far * far, ratio = (float)same_size;
  const Stripes stripes(places, m, far + 1);  // one pixel more than enough: rounding decides nothing
  const auto found = collect(n, threads, [&](int64_t i, std::vector<Pair>& pairs) {
    const float u = points[2 * i], v = points[2 * i + 1];
    stripes.near(u, v, [&](int64_t k) {
      const float du = u - stripes.x[k], dv = v - stripes.y[k];
      if (!(du * du + dv * dv <= square)) return;
      const int64_t j = stripes.order[k];
      if (looks != nullptr) {
        const float *a = looks + 3 * i, *b = expected + 3 * j;
        if (!(a[0] * b[0] + a[1] * b[1] > (float)same_way)) return;
        if (!(a[2] < ratio * b[2] && b[2] < ratio * a[2])) return;
      }
      const float s = (dot(flat + i * rank, codes + j * rank, rank) + level[i]) / lengths[j];
      if (s >= (float)least) pairs.push_back({i, j, s});
    });
  });
  std::vector<Best> rows(n), columns(m);
  for (const auto& pairs : found)
    for (const Pair& p : pairs) {
      if (rows[p.row].yields(p.similarity, p.column)) rows[p.row] = {p.similarity, p.column};
      if (columns[p.column].yields(p.similarity, p.row)) columns[p.column] = {p.similarity, p.row};
    }
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) {
    const int64_t j = rows[i].partner;
    if (j < 0 || columns[j].partner != i) continue;
    row[count] = i, column[count] = j, similarity[count++] = rows[i].similarity;
  }
  return count;
} OR_SHORTAGE
