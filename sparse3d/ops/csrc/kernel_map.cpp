// Kernel maps by merging sorted lists. Rows of coords int32 [n, 1 + dims] are (batch, x, y[, z]).
//
// A map of 2 dimensions is treated as one of 3 whose first axis has one cell: offsets keep their numbers.
#include "common.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

typedef unsigned __int128 Row;

// Kernel size, stride, padding, dilation per axis: fine = stride * coarse - padding + dilation * k.
struct Geometry {
  int64_t size[3], stride[3], padding[3], dilation[3];

  // numbers: [4, dims], in that order
  Geometry(const int64_t* numbers, int dims) {
    const int skip = 3 - dims;
    for (int a = 0; a < 3; a++) {
      const bool given = a >= skip;
      size[a] = given ? numbers[a - skip] : 1;
      stride[a] = given ? numbers[dims + a - skip] : 1;
      padding[a] = given ? numbers[2 * dims + a - skip] : 0;
      dilation[a] = given ? numbers[3 * dims + a - skip] : 1;
    }
  }
};

// Column `column` (batch, axis 0, 1, 2) of a row.
static inline int64_t cell(const int32_t* row, int column, int dims) {
  if (dims == 3) return row[column];
  return column == 0 ? row[0] : column == 1 ? 0 : row[column - 1];
}

// ------------------------------------------------------------------------------------ offset table

// A box around all fine cells and all cells that can be asked for, numbered in lexicographic order.
struct Box {
  int64_t low[4], high[4], step[4];

  Box() {
    for (int c = 0; c < 4; c++) low[c] = INT64_MAX, high[c] = INT64_MIN;
  }
  void cover(int column, int64_t from, int64_t to) {
    low[column] = std::min(low[column], from);
    high[column] = std::max(high[column], to);
  }
  // false: 2^63 cells or more
  bool number() {
    Row cells = 1;
    for (int c = 3; c >= 0; c--) {
      step[c] = (int64_t)cells;
      cells *= (Row)(high[c] - low[c] + 1);
      if (cells >> 63) return false;
    }
    return true;
  }
};

static void extent(const int32_t* coords, int64_t n, int dims, int64_t* low, int64_t* high) {
  for (int c = 0; c < 4; c++) low[c] = INT64_MAX, high[c] = INT64_MIN;
  for (int64_t i = 0; i < n; i++)
    for (int c = 0; c < 4; c++) {
      const int64_t v = cell(coords + i * (1 + dims), c, dims);
      low[c] = std::min(low[c], v);
      high[c] = std::max(high[c], v);
    }
}

static bool make_box(const int32_t* fine, int64_t n, const int32_t* coarse, int64_t m, int dims,
                     const Geometry& g, Box& box) {
  int64_t low[4], high[4];
  extent(fine, n, dims, low, high);
  for (int c = 0; c < 4; c++) box.cover(c, low[c], high[c]);
  extent(coarse, m, dims, low, high);
  box.cover(0, low[0], high[0]);
  for (int a = 0; a < 3; a++)
    box.cover(a + 1, g.stride[a] * low[a + 1] - g.padding[a],
              g.stride[a] * high[a + 1] - g.padding[a] + g.dilation[a] * (g.size[a] - 1));
  return box.number();
}

// The rows [first, last) of one line (kx, ky) of offsets: both lists ascend, so one walk serves, and the
// offsets along the last axis are met on the way. keys end with a sentinel.
static void walk_line(const std::vector<int64_t>& keys, const int64_t* base, int64_t first, int64_t last,
                      int64_t shift, int64_t size, int64_t dilation, int32_t* out, int64_t plane) {
  const int64_t* key = keys.data();
  int64_t p = std::lower_bound(keys.begin(), keys.end(), base[first] + shift) - keys.begin();
  for (int64_t i = first; i < last; i++) {
    const int64_t wanted = base[i] + shift;
    while (key[p] < wanted) p++;
    int64_t q = p;
    for (int64_t z = 0; z < size; z++) {
      const int64_t want = wanted + z * dilation;
      if (dilation > 1)
        while (key[q] < want) q++;
      const bool found = key[q] == want;
      out[z * plane + i] = found ? (int32_t)q : -1;
      q += found;
    }
  }
}

// table [offsets, m]: the row of fine [n] for each offset and row of coarse [m], or -1. geometry [4, dims].
// Returns 0; -1 when the cells do not fit 63 bits; i > 0 when row i of fine, or row i - n of coarse where
// i > n, does not come after the row before it.
EXPORT int64_t s3d_offset_table(const int32_t* fine, int64_t n, const int32_t* coarse, int64_t m,
                                int64_t dims, const int64_t* geometry, int32_t* table, int64_t threads) {
  const Geometry g(geometry, (int)dims);
  const int64_t offsets = g.size[0] * g.size[1] * g.size[2];
  if (!n || !m) {
    std::fill(table, table + offsets * m, -1);
    return 0;
  }
  Box box;
  if (!make_box(fine, n, coarse, m, (int)dims, g, box)) return -1;
  std::vector<int64_t> keys(n + 1), base(m);
  std::atomic<int64_t> unsorted{0};
  const int64_t chunk = 4096;
  keys[n] = INT64_MAX;
#pragma omp parallel num_threads(useful_threads(threads, m + n, 2 * chunk))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; i++) {
      keys[i] = 0;
      for (int c = 0; c < 4; c++)
        keys[i] += (cell(fine + i * (1 + dims), c, (int)dims) - box.low[c]) * box.step[c];
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < m; i++) {
      const int32_t* row = coarse + i * (1 + dims);
      base[i] = (row[0] - box.low[0]) * box.step[0];
      for (int a = 0; a < 3; a++)
        base[i] += (g.stride[a] * cell(row, a + 1, (int)dims) - g.padding[a] - box.low[a + 1]) *
                   box.step[a + 1];
    }
#pragma omp for schedule(static)
    for (int64_t i = 1; i < n; i++)
      if (keys[i] <= keys[i - 1]) unsorted = i;
#pragma omp for schedule(static)
    for (int64_t i = 1; i < m; i++)
      if (base[i] <= base[i - 1]) unsorted = n + i;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < m; first += chunk)
      for (int64_t x = 0; x < g.size[0]; x++)
        for (int64_t y = 0; y < g.size[1]; y++) {
          const int64_t shift = x * g.dilation[0] * box.step[1] + y * g.dilation[1] * box.step[2];
          walk_line(keys, base.data(), first, std::min(m, first + chunk), shift, g.size[2],
                    g.dilation[2], table + (x + g.size[0] * y) * m, g.size[0] * g.size[1] * m);
        }
  }
  return unsorted;
}

// reverse [offsets, n]: the output row for each offset and input row of table [offsets, m], or -1.
// Returns 1 when the table names a row outside [0, n), else 0.
EXPORT int64_t s3d_reverse_table(const int32_t* table, int64_t offsets, int64_t m, int64_t n,
                                 int32_t* reverse, int64_t threads) {
  std::atomic<bool> legal{true};
#pragma omp parallel for schedule(static) num_threads(useful_threads(threads, offsets *(n + m), 1 << 15))
  for (int64_t k = 0; k < offsets; k++) {
    std::fill(reverse + k * n, reverse + (k + 1) * n, -1);
    for (int64_t o = 0; o < m; o++) {
      const int64_t i = table[k * m + o];
      if (i >= n)
        legal = false;
      else if (i >= 0)
        reverse[k * n + i] = (int32_t)o;
    }
  }
  return !legal;
}

// ------------------------------------------------------------------------------------ output cells

// A row as one number that keeps the lexicographic order: four columns of 32 bits.
static Row pack(const int32_t* row, int dims) {
  Row packed = 0;
  for (int c = 0; c < 4; c++)
    packed = packed << 32 | (uint32_t)((uint32_t)(int32_t)cell(row, c, dims) ^ 0x80000000u);
  return packed;
}

static void unpack(Row packed, int dims, int32_t* row) {
  int32_t columns[4];
  for (int c = 3; c >= 0; c--, packed >>= 32) columns[c] = (int32_t)((uint32_t)packed ^ 0x80000000u);
  row[0] = columns[0];
  for (int a = 0; a < dims; a++) row[1 + a] = columns[4 - dims + a];
}

// How one kernel offset moves one axis.
struct Step {
  int64_t multiply, add, divide, limit;  // limit < 0: unbounded
  int shift;                             // of the axis within a packed row
  bool overflow = false;

  // Moves `row`; false where nothing lies there.
  bool move(Row row, Row& moved) {
    const int64_t v = (int64_t)(uint32_t)(row >> shift) - 0x80000000ll;
    int64_t t = v * multiply + add;
    if (divide != 1) {
      if (t % divide) return false;
      t /= divide;
    }
    if (limit >= 0 && (t < 0 || t >= limit)) return false;
    if (t != (int32_t)t) {
      overflow = true;
      return false;
    }
    moved = (row & ~((Row)0xffffffffu << shift)) | (Row)((uint32_t)t ^ 0x80000000u) << shift;
    return true;
  }
};

// Every offset along one axis turns the ascending list into an ascending one; merges them, once each.
static std::vector<Row> merge_steps(const std::vector<Row>& rows, std::vector<Step>& steps) {
  const Row end = ~(Row)0;
  const size_t n = rows.size();
  std::vector<size_t> at(steps.size(), 0);
  std::vector<Row> head(steps.size()), out;
  auto advance = [&](size_t k) {
    while (at[k] < n)
      if (steps[k].move(rows[at[k]++], head[k])) return;
    head[k] = end;
  };
  for (size_t k = 0; k < steps.size(); k++) advance(k);
  out.reserve(n + n / 2);
  for (;;) {
    Row next = end;
    for (const Row& h : head) next = std::min(next, h);
    if (next == end) return out;
    out.push_back(next);
    for (size_t k = 0; k < steps.size(); k++)
      if (head[k] == next) advance(k);
  }
}

// The cells that coords [n] reach, ascending: coarse cells (up = 0) or fine ones (up = 1), inside
// limits [dims] (-1: unbounded). Axis by axis, because offsets along the axes are independent.
// Returns a list to be measured and taken with the functions below; 0 when a cell leaves int32.
EXPORT int64_t s3d_cells_find(const int32_t* coords, int64_t n, int64_t dims, const int64_t* geometry,
                              const int64_t* limits, int64_t up) {
  const Geometry g(geometry, (int)dims);
  std::vector<Row> rows(n);
  for (int64_t i = 0; i < n; i++) rows[i] = pack(coords + i * (1 + dims), (int)dims);
  for (int a = 2; a >= 3 - dims; a--) {
    std::vector<Step> steps;
    for (int64_t k = 0; k < g.size[a]; k++) {
      const int64_t move = g.dilation[a] * k - g.padding[a], limit = limits[a - 3 + dims];
      steps.push_back(up ? Step{g.stride[a], move, 1, limit, 32 * (2 - a)}
                         : Step{1, -move, g.stride[a], limit, 32 * (2 - a)});
    }
    rows = merge_steps(rows, steps);
    for (const Step& step : steps)
      if (step.overflow) return 0;
  }
  return (int64_t) new std::vector<Row>(std::move(rows));
}

EXPORT int64_t s3d_cells_count(int64_t list) { return (int64_t)((std::vector<Row>*)list)->size(); }

// Writes the cells to coords [count, 1 + dims] and frees the list.
EXPORT int64_t s3d_cells_take(int64_t list, int64_t dims, int32_t* coords) {
  std::vector<Row>* rows = (std::vector<Row>*)list;
  for (size_t i = 0; i < rows->size(); i++) unpack((*rows)[i], (int)dims, coords + i * (1 + dims));
  delete rows;
  return 0;
}
