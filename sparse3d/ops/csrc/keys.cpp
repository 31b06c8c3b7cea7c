// Order and identity of voxel coordinates.
#include "kernel_map.h"
#include "radix_sort.h"

#include <atomic>

namespace {

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

// Numbers of cells in lexicographic order. Each column has bits of its own where these fit, so that a
// number can be read back; else a number counts the cells before it in the box.
template <int kColumns>
struct Numbers {
  int64_t low[kColumns], step[kColumns];
  int shift[kColumns];
  int bits = 0;          // of the largest number
  bool readable = true;  // whether columns have bits of their own
  bool fit = true;       // false: the box has 2^63 cells or more

  Numbers(const Extent& box, int64_t n) {
    unsigned __int128 cells = 1;
    for (int c = kColumns - 1; c >= 0; c--) {
      const int at = c ? c + 4 - kColumns : 0;  // a map has no first axis
      const int64_t count = n ? box.high[at] - box.low[at] + 1 : 1;
      low[c] = n ? box.low[at] : 0;
      shift[c] = bits;
      bits += radix::bits_of((uint64_t)(count - 1));
      step[c] = (int64_t)cells;
      cells *= (unsigned __int128)count;
      if (cells >> 63) {
        fit = false;
        return;
      }
    }
    readable = bits < 64;
    if (!readable) bits = radix::bits_of((uint64_t)(cells - 1));
    for (int c = 0; c < kColumns && readable; c++) step[c] = (int64_t)1 << shift[c];
  }
  uint64_t of(const int32_t* row) const {
    int64_t number = 0;
    for (int c = 0; c < kColumns; c++) number += (row[c] - low[c]) * step[c];
    return (uint64_t)number;
  }
  void read(uint64_t number, int32_t* row) const {
    for (int c = 0; c < kColumns; c++) {
      row[c] = (int32_t)(low[c] + (int64_t)(number >> shift[c]));
      number &= ((uint64_t)1 << shift[c]) - 1;
    }
  }
};

constexpr int64_t kAhead = 16;  // rows whose memory is asked for before it is written

template <int kColumns>
int64_t sort_rows(const int32_t* coords, int64_t n, int32_t* unique, int64_t* first, int64_t* inverse,
                  int64_t threads) {
  const int team = useful_threads(threads, n, 1 << 13);
  std::vector<Extent> extents(team);
  std::atomic<bool> ascending{true};
#pragma omp parallel num_threads(team)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t begin = n * self / count, end = n * (self + 1) / count;
    extents[self].cover_rows(coords, begin, end, kColumns - 1);
    for (int64_t i = std::max<int64_t>(begin, 1); i < end && ascending; i++) {
      const int32_t* row = coords + i * kColumns;
      int64_t c = 0;
      while (c < kColumns - 1 && row[c] == row[c - kColumns]) c++;
      if (row[c] <= row[c - kColumns]) ascending = false;
    }
  }
  Extent box;
  for (const Extent& extent : extents) box.cover(extent);
  const Numbers<kColumns> numbers(box, n);
  if (!numbers.fit) return -1;
  if (ascending) {
    if (n) memcpy(unique, coords, sizeof(int32_t) * n * kColumns);
    for (int64_t i = 0; i < n; i++) first[i] = inverse[i] = i;
    return n;
  }
  const auto number_of = [&](int64_t row) { return numbers.of(coords + row * kColumns); };
  const radix::Sorted sorted(n, numbers.bits, number_of, threads);
  std::vector<int64_t> before(team + 1, 0);  // different rows before each thread's part
#pragma omp parallel num_threads(team)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t begin = n * self / count, end = n * (self + 1) / count;
    const auto is_new = [&](int64_t i) { return !i || sorted.key(i) != sorted.key(i - 1); };
    int64_t found = 0;
    for (int64_t i = begin; i < end && count > 1; i++) found += is_new(i);
    before[self + 1] = found;
#pragma omp barrier
#pragma omp single
    for (int t = 0; t < team; t++) before[t + 1] += before[t];  // there may be fewer threads than asked
    found = before[self];
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = sorted.row(i);
      __builtin_prefetch(inverse + sorted.row(std::min(i + kAhead, end - 1)), 1);
      if (is_new(i)) {
        int32_t* const to = unique + found * kColumns;
        if (numbers.readable)
          numbers.read(sorted.key(i), to);
        else
          memcpy(to, coords + row * kColumns, sizeof(int32_t) * kColumns);
        first[found++] = row;
      }
      inverse[row] = found - 1;
    }
    if (count == 1) before[team] = found;
  }
  return before[team];
}

}  // namespace

// Rows of coords [n, columns] int32 in lexicographic order, each once. Writes the different rows, the
// first given row of each, and for every given row its place among them. Returns how many there are;
// -1 when the box around them has 2^63 cells or more. columns: 1 to 4.
EXPORT int64_t s3d_sort_rows(const int32_t* coords, int64_t n, int64_t columns, int32_t* unique,
                             int64_t* first, int64_t* inverse, int64_t threads) try {
  constexpr decltype(&sort_rows<4>) sort[] = {sort_rows<1>, sort_rows<2>, sort_rows<3>, sort_rows<4>};
  return sort[columns - 1](coords, n, unique, first, inverse, threads);
} OR_SHORTAGE

// For each of wanted [m, columns] its row among coords [n, columns], which ascend; -1 where it is none
// of them. Each search begins where the one before ended: what is asked for mostly lies close by.
EXPORT int64_t s3d_find_rows(const int32_t* coords, int64_t n, const int32_t* wanted, int64_t m,
                             int64_t columns, int64_t* rows, int64_t threads) try {
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
} OR_SHORTAGE

EXPORT int64_t s3d_want_huge_pages(void* start, int64_t bytes) try {
  want_huge_pages(start, bytes);
  return 0;
} OR_SHORTAGE
