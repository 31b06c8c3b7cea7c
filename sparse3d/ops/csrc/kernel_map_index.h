// Sorted cells by place: columns (cells of the same batch, x and y) are bits of a plane, and the cells of
// each column are bits again. A bit's number is the number of bits before it, so that a neighbour is found
// without a search.
//
// Only for cells whose surroundings are small enough to be drawn; kernel_map.cpp and kernel_map_cells.cpp
// have the ways that work everywhere.
#pragma once
#include <omp.h>

#include <atomic>
#include <vector>

#include "array.h"
#include "kernel_map.h"

#define S3D_INLINE __attribute__((always_inline)) inline

// Runs `work`, an always inlined lambda, with instructions that count and find bits where there are some.
#if defined(__x86_64__) && defined(__GNUC__)
template <class Work>
__attribute__((target("avx2,bmi,bmi2,popcnt"))) void run_with_bit_instructions(const Work& work) {
  work();
}
template <class Work>
void with_bits(const Work& work) {
  static const bool have = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  have ? run_with_bit_instructions(work) : work();
}
#else
template <class Work>
void with_bits(const Work& work) {
  work();
}
#endif

constexpr int64_t kChunk = 512;  // columns that a thread takes at once

static S3D_INLINE uint64_t below(int64_t bit) { return ((uint64_t)1 << (bit & 63)) - 1; }

// `to` where `there`, else `nowhere`, without a branch: for what is hard to foresee.
static S3D_INLINE int32_t* either(bool there, int32_t* to, int32_t* nowhere) {
  const uintptr_t keep = -(uintptr_t)there;
  return (int32_t*)(((uintptr_t)to & keep) | ((uintptr_t)nowhere & ~keep));
}

// The columns of sorted rows.
struct Columns {
  int64_t count = 0;
  std::atomic<bool> ascending{true};  // whether every row comes after the row before it
  Array<int32_t> start;  // [count + 1], the first row of each
  Array<int32_t> line;   // [count], batch * lines + x, both counted from the corner
  Array<int32_t> place;  // [count], y from the corner

  void reserve(int64_t rows) {
    start = uninitialised<int32_t>(rows + 1);
    line = uninitialised<int32_t>(rows);
    place = uninitialised<int32_t>(rows);
  }

  // Finds the columns that begin in rows [begin, end) and puts them from `begin` on. corner: (batch, x,
  // y) of line 0 and place 0. Returns how many.
  int64_t find(const int32_t* coords, int64_t begin, int64_t end, int dims, const int64_t* corner,
               int64_t lines);

  // Closes the gaps between what a team of threads found: found[t] columns in share t of n rows.
  void join(const std::vector<int64_t>& found, int64_t n);
};

// What a kernel reaches along one axis from each input, as places.
struct Axis {
  struct Reached {
    int32_t place, offset;  // offset: its number within the kernel; -1: there is nothing
  };
  int64_t least = 0;             // input 0
  int64_t low = 0, count = 0;    // the coordinate of place 0; places
  int64_t most = 1;              // entries of each input
  std::vector<Reached> reached;  // [inputs, most]
  int64_t shift = 0, reach = 0, stride = 1;  // of the kernel

  // Of the inputs from .. last, where outputs lie in begin .. end; false where one leaves int32.
  bool set(const Geometry& g, int axis, int64_t from, int64_t last, int64_t begin, int64_t end, bool up);

  // Counts places from `begin`, and has them up to `end`. Entries for nothing repeat an input's first place.
  void fix(int64_t begin, int64_t end);

  // What input `input` reaches: `most` entries.
  S3D_INLINE const Reached* from(int64_t input) const { return reached.data() + (input - least) * most; }

  // No place before this one is reached from `input` on, in a map to coarser cells.
  int64_t first_place(int64_t input) const {
    const int64_t t = input + shift - reach;
    return std::max<int64_t>(0, std::min(count, t / stride - (t % stride < 0) - low));
  }
  // Places up to this one are reached by nothing behind `input`, but perhaps by itself.
  int64_t last_place(int64_t input) const {
    const int64_t t = input + shift;
    return std::max<int64_t>(-1, std::min(count - 1, t / stride - (t % stride < 0) - low));
  }
};

// Sorted cells as bits.
struct CellIndex {
  static constexpr int64_t kDeepest = 16;

  int64_t lines = 1;  // along x, of each batch
  int64_t width = 1;  // words of a line
  int64_t depth = 1;  // words of a column
  int64_t words = 0;  // of the plane
  Array<uint64_t> plane;      // [words + 1], the last one empty
  Array<int32_t> before;      // [words + 1], columns before each word of the plane
  Array<uint64_t> all_cells;  // `depth` words of nothing before and after the cells
  Array<int32_t> all_ranks;   // as all_cells
  uint64_t* cells = nullptr;  // [columns, depth]
  int32_t* first = nullptr;   // rows before each of them

  // Sizes of a plane of x * y cells for each batch, columns of z cells; false where it is too large to
  // be drawn for n rows.
  bool set_size(int64_t batches, int64_t x, int64_t y, int64_t z, int64_t n);
  void reserve_plane() {
    plane = uninitialised<uint64_t>(words + 1);
    before = uninitialised<int32_t>(words + 1);
    plane[words] = 0;
  }
  // Memory for the cells of all columns, `rows` in number.
  void reserve_cells(int64_t columns, int64_t rows);

  // Clears share `part` of `parts` of the plane.
  void clear(int part, int parts) {
    const int64_t begin = words * part / parts, end = words * (part + 1) / parts;
    std::fill(plane.get() + begin, plane.get() + end, 0);
  }

  // Draws share `part` of `parts` of the columns of sorted rows; z: the coordinate of bit 0.
  void draw(const Columns& columns, const int32_t* coords, int dims, int64_t z, int part, int parts);

  void draw_column(const Columns& columns, const int32_t* coords, int dims, int64_t z, int64_t c);

  // The first row of a line, or of those behind it.
  int64_t row(int64_t line) const { return first[before[line * width] * depth]; }
};

// Cells that s3d_cells_find hands out, in parts.
struct Found {
  const int dims;
  std::vector<int64_t> counts;  // cells before each part, and all of them
  explicit Found(int dims) : dims(dims) {}
  virtual ~Found() {}
  // Writes the cells of a part from cell `at` on; false: one leaves int32.
  virtual bool write(int part, int32_t* at) const = 0;
  int parts() const { return (int)counts.size() - 1; }
  void sum_up() {
    for (int part = 0; part < parts(); part++) counts[part + 1] += counts[part];
  }
};

// The cells that coords [n] reach, as in s3d_cells_find, drawn; null where they cannot be.
Found* draw_reached(const int32_t* coords, int64_t n, int dims, const Geometry& g, const int64_t* limits,
                    bool up, int64_t threads);

// A table [offsets, m] that is filled with -1 from row to row, shortly before it is written to: then it is
// still in the cache.
struct Blank {
  int32_t* const table;
  const int64_t offsets, m;
  int64_t filled, end;  // rows

  void fill(int64_t to) {
    to = std::min(to, end);
    for (int64_t k = 0; k < offsets && filled < to; k++)
      std::fill(table + k * m + filled, table + k * m + to, -1);
    filled = std::max(filled, to);
  }
};

// Writes the table [offsets, m] of a map to coarser cells, those of `index`, from its inputs.
struct Relation {
  const int32_t* coords;  // of the inputs
  const int dims;
  const int64_t m;
  const Geometry& g;
  const Axis &x, &y, &z;
  const Columns& columns;  // of the inputs
  const CellIndex& index;
  int64_t first_batch = 0;  // of the index

  // Share `part` of `parts`, in a parallel region of so many threads.
  void write(int32_t* table, int part, int parts, Shortage& shortage) const;

 private:
  int64_t batches() const { return index.words / (index.lines * index.width); }
  int64_t first_row(int64_t column) const;
  int64_t end_row(int64_t column) const;
  template <bool kShort>
  void write_columns(int64_t begin, int64_t end, int32_t* table) const;
};

// Whether columns have so few cells that it pays to look at one after the other: by a sample.
bool has_short_columns(const int32_t* coords, int64_t n, int dims);

// Fills the table of a submanifold convolution: a centred kernel on the same rows. False where the cells
// cannot be drawn or do not ascend.
bool submanifold_table(const int32_t* coords, int64_t n, int dims, const Geometry& g, int32_t* table,
                       int64_t threads);

// Fills the table of fine [n] for each row of coarse [m], a map to coarser cells; false as above.
bool relation_table(const int32_t* fine, int64_t n, const int32_t* coarse, int64_t m, int dims,
                    const Geometry& g, int32_t* table, int64_t threads);

// In kernel_map_cells.cpp.
EXPORT int64_t s3d_cells_take(int64_t given, int32_t* coords, int64_t threads);
