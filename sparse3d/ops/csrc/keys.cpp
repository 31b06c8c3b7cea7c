// Order and identity of voxel coordinates.
#include "kernel_map.h"
#include "radix_sort.h"

#include <atomic>

namespace {

constexpr int64_t kAhead = 16;  // rows whose coordinates are on their way while others are copied

// A row of coordinates as two numbers in the same lexicographic order.
struct RowKey {
  uint64_t first, last;
  RowKey(const int32_t* row, int64_t columns)
      : first(pair(row[0], columns > 1 ? row[1] : 0)),
        last(pair(columns > 2 ? row[2] : 0, columns > 3 ? row[3] : 0)) {}
  static uint64_t pair(int32_t a, int32_t b) {
    return (uint64_t)((uint32_t)a ^ 0x80000000u) << 32 | ((uint32_t)b ^ 0x80000000u);
  }
  bool operator<(const RowKey& other) const {
    return first != other.first ? first < other.first : last < other.last;
  }
};

}  // namespace

// Rows of coords [n, columns] int32 in lexicographic order, each once. Writes the different rows, the
// first given row of each, and for every given row its place among them. Returns how many there are;
// -1 when the box around them has 2^63 cells or more.
EXPORT int64_t s3d_sort_rows(const int32_t* coords, int64_t n, int64_t columns, int32_t* unique,
                             int64_t* first, int64_t* inverse, int64_t threads) {
  const int team = useful_threads(threads, n, 1 << 13);
  std::vector<Extent> extents(team);
  std::atomic<bool> ascending{true};
#pragma omp parallel num_threads(team)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t begin = n * self / count, end = n * (self + 1) / count;
    extents[self].cover_rows(coords, begin, end, (int)columns - 1);
    for (int64_t i = std::max<int64_t>(begin, 1); i < end && ascending; i++) {
      const int32_t* row = coords + i * columns;
      int64_t c = 0;
      while (c < columns - 1 && row[c] == row[c - columns]) c++;
      if (row[c] <= row[c - columns]) ascending = false;
    }
  }
  Extent box;
  for (const Extent& extent : extents) box.cover(extent);
  int64_t step[4], low[4];
  unsigned __int128 cells = 1;
  for (int64_t c = columns - 1; c >= 0; c--) {
    if (!n) break;
    const int at = c ? (int)(c + 4 - columns) : 0;  // a map has no first axis
    low[c] = box.low[at];
    step[c] = (int64_t)cells;
    cells *= (unsigned __int128)(box.high[at] - box.low[at] + 1);
    if (cells >> 63) return -1;
  }
  if (ascending) {
    if (n) memcpy(unique, coords, sizeof(int32_t) * n * columns);
    for (int64_t i = 0; i < n; i++) first[i] = inverse[i] = i;
    return n;
  }
  const auto key_of = [&](int64_t row) {
    int64_t key = 0;
    for (int64_t c = 0; c < columns; c++) key += (coords[row * columns + c] - low[c]) * step[c];
    return key;
  };
  const radix::Sorted sorted(n, radix::bits_of((uint64_t)(cells - 1)), key_of, threads);
  std::vector<int64_t> before(team + 1, 0);  // different rows before each thread's part
#pragma omp parallel num_threads(team)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t begin = n * self / count, end = n * (self + 1) / count;
    const auto is_new = [&](int64_t i) { return !i || sorted.key(i) != sorted.key(i - 1); };
    int64_t found = 0;
    for (int64_t i = begin; i < end; i++) found += is_new(i);
    before[self + 1] = found;
#pragma omp barrier
#pragma omp single
    for (int t = 0; t < team; t++) before[t + 1] += before[t];  // there may be fewer threads than asked
    found = before[self];
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = sorted.row(i);
      if (i + kAhead < end) __builtin_prefetch(coords + sorted.row(i + kAhead) * columns);
      if (is_new(i)) {
        memcpy(unique + found * columns, coords + row * columns, sizeof(int32_t) * columns);
        first[found++] = row;
      }
      inverse[row] = found - 1;
    }
  }
  return before[team];
}

// For each of wanted [m, columns] its row among coords [n, columns], which ascend; -1 where it is none
// of them. Each search begins where the one before ended: what is asked for mostly lies close by.
EXPORT int64_t s3d_find_rows(const int32_t* coords, int64_t n, const int32_t* wanted, int64_t m,
                             int64_t columns, int64_t* rows, int64_t threads) {
  const int team = useful_threads(threads, m, 1 << 12);
#pragma omp parallel num_threads(team)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    const auto key = [&](int64_t row) { return RowKey(coords + row * columns, columns); };
    int64_t at = 0;  // the first row that is not less than what was sought last
    for (int64_t i = m * self / count; i < m * (self + 1) / count; i++) {
      const RowKey sought(wanted + i * columns, columns);
      int64_t low, high = at, step = 1;  // rows below low are less, the one at high is not
      if (at < n && key(at) < sought) {
        for (low = ++high; high < n && key(high) < sought; high += step, step *= 2) low = high + 1;
        high = std::min(high, n);
      } else {
        for (low = at - 1; low >= 0 && !(key(low) < sought); low -= step, step *= 2) high = low;
        low = std::max<int64_t>(low + 1, 0);
      }
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (key(middle) < sought) low = middle + 1;
        else high = middle;
      }
      at = low;
      rows[i] = at < n && !(sought < key(at)) ? at : -1;
    }
  }
  return 0;
}

EXPORT int64_t s3d_want_huge_pages(void* start, int64_t bytes) {
  want_huge_pages(start, bytes);
  return 0;
}
