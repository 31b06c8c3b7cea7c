// What the kernel-map kernels share. Rows of coords int32 [n, 1 + dims] are (batch, x, y[, z]).
//
// A map of 2 dimensions is treated as one of 3 whose first axis has one cell: offsets keep their numbers.
#pragma once
#include <algorithm>

#include "common.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define S3D_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define S3D_CLONES
#endif

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
  int64_t reach(int axis) const { return dilation[axis] * (size[axis] - 1); }
};

// Column `column` (batch, axis 0, 1, 2) of a row.
static inline int64_t cell(const int32_t* row, int column, int dims) {
  if (dims == 3) return row[column];
  return column == 0 ? row[0] : column == 1 ? 0 : row[column - 1];
}

// Whether a row lies in the same column of cells along the last axis as the row before it.
static inline bool same_column(const int32_t* row, int dims) {
  for (int c = 0; c < dims; c++)
    if (row[c] != row[c - 1 - dims]) return false;
  return true;
}

// The first row of part `part` of `parts`: equal shares, but no column of cells is torn apart.
static inline int64_t part_begin(const int32_t* coords, int64_t n, int dims, int part, int parts) {
  int64_t row = n * part / parts;
  while (row > 0 && row < n && same_column(coords + row * (1 + dims), dims)) row++;
  return row;
}

// Least and largest coordinates (batch, x, y, z).
struct Extent {
  int64_t low[4], high[4];

  Extent() {
    for (int c = 0; c < 4; c++) low[c] = INT64_MAX, high[c] = INT64_MIN;
  }
  void cover(int column, int64_t from, int64_t to) {
    low[column] = std::min(low[column], from);
    high[column] = std::max(high[column], to);
  }
  void cover(const Extent& other) {
    for (int c = 0; c < 4; c++) cover(c, other.low[c], other.high[c]);
  }
  void cover_rows(const int32_t* coords, int64_t begin, int64_t end, int dims) {
    if (begin >= end) return;
    const int columns = 1 + dims;
    int32_t least[12], most[12];  // of every column, in as many copies as make whole vectors
    const int64_t numbers = (end - begin) * columns, whole = numbers / 12 * 12;
    const int32_t* const from = coords + begin * columns;
    for (int k = 0; k < 12; k++) least[k] = most[k] = from[k % columns];
    extremes(from, whole, least, most);
    for (int64_t i = whole; i < numbers; i++) {
      least[i % 12] = std::min(least[i % 12], from[i]);
      most[i % 12] = std::max(most[i % 12], from[i]);
    }
    if (dims < 3) cover(1, 0, 0);
    for (int k = 0; k < 12; k++) {
      const int c = k % columns;
      cover(c ? c + 3 - dims : 0, least[k], most[k]);
    }
  }

 private:
  // Least and largest of every twelfth number; `count` is a multiple of twelve.
  S3D_CLONES static void extremes(const int32_t* from, int64_t count, int32_t* least, int32_t* most) {
    int32_t low[12], high[12];
    for (int k = 0; k < 12; k++) low[k] = least[k], high[k] = most[k];
    for (int64_t i = 0; i < count; i += 12)
      for (int k = 0; k < 12; k++) {
        low[k] = low[k] < from[i + k] ? low[k] : from[i + k];
        high[k] = high[k] > from[i + k] ? high[k] : from[i + k];
      }
    for (int k = 0; k < 12; k++) least[k] = low[k], most[k] = high[k];
  }
};
