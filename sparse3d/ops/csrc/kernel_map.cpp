// Kernel maps from sorted cells.
//
// Cells along the last axis are packed into runs: 64 bits that say which of up to 64 neighbouring cells
// exist. A kernel line (kx, ky) links a run of output cells to one run of input cells, found by walking
// two sorted lists of runs; inside the run every offset along the last axis is a bit, and its row the
// number of bits below it. Work per cell has no branches.
//
// Where columns have few cells and can be drawn, kernel_map_submanifold.cpp and kernel_map_index.cpp are
// faster: there most entries of a table are empty, and these only look at those that are not.
#include "array.h"
#include "kernel_map_index.h"

#include <omp.h>

#include <atomic>
#include <memory>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kChunk = 1024;   // rows or runs that a thread takes at once
constexpr int64_t kWidest = 31;    // cells that a kernel may reach along the last axis within one pass

// Input cells are cut into slabs along the last axis, one per group of output cells, as wide as the
// kernel sees from there; neighbouring slabs overlap by the kernel's reach.
struct Slabs {
  int64_t outputs;  // output cells per slab
  int64_t low;      // input cell at bit 0 of slab 0
  int64_t step;     // input cells from one slab to the next
  int64_t width;    // input cells seen by a slab, at most 64
  int64_t count;
  int64_t low_output;

  // The output cells along the last axis are low .. high.
  Slabs(const Geometry& g, int64_t low_output, int64_t high) : low_output(low_output) {
    const int64_t most = (63 - g.reach(2)) / g.stride[2] + 1, extent = high - low_output + 1;
    outputs = std::min(most, extent);
    count = (extent + outputs - 1) / outputs;
    low = g.stride[2] * low_output - g.padding[2];
    step = g.stride[2] * outputs;
    width = g.stride[2] * (outputs - 1) + g.reach(2) + 1;
  }
};

// Runs of cells. key: place (batch, x, y, slab) of each, ascending; cells: its bits; first: the row of
// its lowest cell.
struct Runs {
  std::vector<int64_t> key;
  std::vector<uint64_t> cells;
  std::vector<int32_t> first;

  void append(const Runs& part) {
    key.insert(key.end(), part.key.begin(), part.key.end());
    cells.insert(cells.end(), part.cells.begin(), part.cells.end());
    first.insert(first.end(), part.first.begin(), part.first.end());
  }
};

// One call of s3d_offset_table.
struct Builder {
  const int32_t *fine, *coarse;
  const int64_t n, m;
  const int dims;
  const Geometry g;
  int32_t* const table;    // of the first offset of this pass
  const int64_t plane;     // entries from one offset along the last axis to the next
  const bool same;         // output cells are the input cells, in the same rows
  const bool mirrored;     // and lines (kx, ky) mirror each other
  bool fits = false;
  std::atomic<int64_t> unsorted{0};
  Extent box;
  int64_t step[3];         // key difference of one step along batch, x, y
  std::unique_ptr<Slabs> slabs;
  Runs inputs;
  std::vector<int64_t> outputs;  // base key of each run of output cells: of offset 0 of the kernel
  Array<int32_t> run_of;         // of each output row
  Array<uint8_t> bit_of;         // of each output row: of offset 0 along the last axis
  Array<int32_t> links;          // [lines, runs of outputs], and a place to write to in vain per thread
  std::vector<Extent> extents;
  std::vector<Runs> input_parts;
  std::vector<std::vector<int64_t>> output_parts;

  Builder(const int32_t* fine, int64_t n, const int32_t* coarse, int64_t m, int dims, Geometry g,
          int32_t* table, int64_t plane)
      : fine(fine), coarse(coarse), n(n), m(m), dims(dims), g(g), table(table), plane(plane),
        same(fine == coarse && n == m && g.stride[0] * g.stride[1] * g.stride[2] == 1 &&
             g.padding[2] >= 0 && g.padding[2] <= g.reach(2)),
        mirrored(same && 2 * g.padding[0] == g.reach(0) && 2 * g.padding[1] == g.reach(1)) {}

  int64_t lines() const { return g.size[0] * g.size[1]; }
  int32_t none() const { return (int32_t)inputs.first.size() - 1; }  // the empty run behind the last

  // The box around all input cells and all cells that can be asked for, numbered in lexicographic order.
  void number(int team) {
    Extent in, out;
    for (int t = 0; t < team; t++) {
      in.cover(extents[2 * t]);
      out.cover(extents[2 * t + 1]);
    }
    box = in;
    box.cover(0, out.low[0], out.high[0]);
    for (int a = 0; a < 3; a++)
      box.cover(a + 1, g.stride[a] * out.low[a + 1] - g.padding[a],
                g.stride[a] * out.high[a + 1] - g.padding[a] + g.reach(a));
    unsigned __int128 cells = 1;
    for (int c = 3; c >= 0; c--) {
      cells *= (unsigned __int128)(box.high[c] - box.low[c] + 1);
      if (cells >> 63) return;
    }
    fits = true;
    slabs.reset(new Slabs(g, out.low[3], out.high[3]));
    step[2] = slabs->count;
    step[1] = step[2] * (box.high[2] - box.low[2] + 1);
    step[0] = step[1] * (box.high[1] - box.low[1] + 1);
  }

  int64_t column_key(const int32_t* row, int64_t scale_x, int64_t scale_y, int64_t shift_x,
                     int64_t shift_y) const {
    return (cell(row, 0, dims) - box.low[0]) * step[0] +
           (scale_x * cell(row, 1, dims) - shift_x - box.low[1]) * step[1] +
           (scale_y * cell(row, 2, dims) - shift_y - box.low[2]) * step[2];
  }

  // Runs of the input rows [begin, end), which hold whole columns. Where outputs are the same cells,
  // also the run (counted from the part's first) and bit of every row.
  void collect_inputs(int64_t begin, int64_t end, Runs& runs) {
    const Slabs s = *slabs;
    const int columns = 1 + dims;
    runs.key.reserve(end - begin + 1);
    runs.cells.reserve(end - begin + 1);
    runs.first.reserve(end - begin + 1);
    int64_t column = INT64_MIN, z_before = 0, last = INT64_MIN;  // last: the key of the last run
    int64_t before = begin ? column_key(fine + (begin - 1) * columns, 1, 1, 0, 0) : INT64_MIN;
    for (int64_t i = begin; i < end; i++) {
      const int32_t* row = fine + i * columns;
      const int64_t z = row[dims];
      if (i > begin && same_column(row, dims)) {
        if (z <= z_before) return (void)(unsorted = i);
      } else {
        column = column_key(row, 1, 1, 0, 0);
        if (column <= before) return (void)(unsorted = i);
        before = column;
      }
      z_before = z;
      const int64_t place = z - s.low;
      int64_t slab = s.count == 1 ? 0 : place / s.step, bit = place - slab * s.step;
      if (place < 0) continue;
      const auto put = [&](int64_t slab, int64_t bit) {
        const int64_t key = column + slab;
        if (key > last) {
          runs.key.push_back(key);
          runs.cells.push_back((uint64_t)1 << bit);
          runs.first.push_back((int32_t)i);
          last = key;
          return;
        }
        const size_t at = runs.key.size() - 1 - (key < last);  // the run before may still grow
        runs.cells[at] |= (uint64_t)1 << bit;
      };
      if (slab > 0 && slab <= s.count && bit + s.step < s.width) put(slab - 1, bit + s.step);
      if (slab < s.count && bit < s.width) put(slab, bit);
      if (same) {
        const int64_t above = z - s.low_output, own = s.count == 1 ? 0 : above / s.outputs;
        run_of[i] = (int32_t)(runs.key.size() - 1 - (column + own < last));
        bit_of[i] = (uint8_t)(above - own * s.outputs);
      }
    }
  }

  // Runs of the output rows [begin, end), which hold whole columns.
  void collect_outputs(int64_t begin, int64_t end, std::vector<int64_t>& runs) {
    const Slabs s = *slabs;
    const int columns = 1 + dims;
    int64_t column = INT64_MIN, z_before = 0;
    int64_t before = begin ? output_key(begin - 1) : INT64_MIN;
    for (int64_t i = begin; i < end; i++) {
      const int32_t* row = coarse + i * columns;
      const int64_t z = row[dims];
      if (i > begin && same_column(row, dims)) {
        if (z <= z_before) return (void)(unsorted = n + i);
      } else {
        column = output_key(i);
        if (column <= before) return (void)(unsorted = n + i);
        before = column;
      }
      z_before = z;
      const int64_t above = z - s.low_output, slab = s.count == 1 ? 0 : above / s.outputs;
      if (runs.empty() || runs.back() != column + slab) runs.push_back(column + slab);
      run_of[i] = (int32_t)runs.size() - 1;
      bit_of[i] = (uint8_t)(g.stride[2] * (above - slab * s.outputs));
    }
  }

  int64_t output_key(int64_t row) const {
    return column_key(coarse + row * (1 + dims), g.stride[0], g.stride[1], g.padding[0], g.padding[1]);
  }

  // Puts the parts of all threads behind each other; what a part's rows are to add is left in offsets.
  void join(int team, std::vector<int32_t>& offsets) {
    offsets.assign(team, 0);
    for (int t = 0; t < team; t++) {
      offsets[t] = (int32_t)(same ? inputs.key.size() : outputs.size());
      if (team == 1)
        inputs = std::move(input_parts[0]);
      else
        inputs.append(input_parts[t]);
      outputs.insert(outputs.end(), output_parts[t].begin(), output_parts[t].end());
    }
    if (same) {
      outputs = inputs.key;
      for (int64_t& key : outputs) key -= g.padding[0] * step[1] + g.padding[1] * step[2];
    }
    inputs.key.push_back(INT64_MAX);
    inputs.cells.push_back(0);
    inputs.first.push_back(0);
    links = uninitialised<int32_t>(lines() * (int64_t)outputs.size() + team);
  }

  // Links the runs of outputs [first, last) along `count` lines from `line` on, whose inputs lie `shift`
  // and then every `gap` keys beyond the base keys. Both lists ascend, so one walk finds them.
  void link(int64_t first, int64_t last, int64_t line, int64_t shift, int64_t count, int64_t gap) {
    const int64_t* key = inputs.key.data();
    const int64_t all = (int64_t)outputs.size(), stride = g.size[0] * all;
    const int32_t nothing = none();
    int64_t p = std::lower_bound(key, key + nothing, outputs[first] + shift) - key;
    int32_t* const own = links.get() + line * all;
    int32_t* const opposite = links.get() + (lines() - 1 - line) * all;
    int32_t* const nowhere = links.get() + lines() * all + omp_get_thread_num();
    const bool mirror = mirrored && line % g.size[0] < g.size[0] / 2;
    for (int64_t w = first; w < last; w++) {
      const int64_t base = outputs[w] + shift;
      while (key[p] < base) p++;
      int64_t q = p;
      for (int64_t y = 0; y < count; y++) {
        const int64_t wanted = base + y * gap;
        if (gap > 1)
          while (key[q] < wanted) q++;
        const bool found = key[q] == wanted;
        own[y * stride + w] = found ? (int32_t)q : nothing;
        if (mirror) *(found ? opposite + q - y * stride : nowhere) = (int32_t)w;
        q += found;
      }
    }
  }

  // All lines of the runs of outputs [first, last).
  void link_all(int64_t first, int64_t last) {
    for (int64_t x = 0; x < g.size[0]; x++) {
      if (mirrored && x >= g.size[0] - g.size[0] / 2) break;
      const int64_t shift = x * g.dilation[0] * step[1], gap = g.dilation[1] * step[2];
      if (slabs->count == 1)  // lines of neighbouring y are neighbours in the list
        link(first, last, x, shift, g.size[1], gap);
      else
        for (int64_t y = 0; y < g.size[1]; y++)
          link(first, last, x + g.size[0] * y, shift + y * gap, 1, 1);
    }
  }

  // Lines that others mirror into begin as linked to nothing.
  void clear_mirrors(int64_t first, int64_t last) {
    if (!mirrored) return;
    for (int64_t line = 0; line < lines(); line++)
      if (line % g.size[0] >= g.size[0] - g.size[0] / 2)
        std::fill(links.get() + line * outputs.size() + first,
                  links.get() + line * outputs.size() + last, none());
  }
};

// Table entries of the output rows [first, last).
__attribute__((always_inline)) inline void fill_rows(const Builder& b, int64_t first, int64_t last) {
  const int64_t depth = b.g.size[2], dilation = b.g.dilation[2], runs = (int64_t)b.outputs.size();
  const int32_t* const run_of = b.run_of.get();
  const uint8_t* const bit_of = b.bit_of.get();
  const uint64_t* const cells = b.inputs.cells.data();
  const int32_t* const lowest = b.inputs.first.data();
  for (int64_t line = 0; line < b.lines(); line++) {
    const int32_t* const link = b.links.get() + line * runs;
    int32_t* const out = b.table + line * b.m;
    const auto rows = [&](int64_t depth) __attribute__((always_inline)) {
      for (int64_t i = first; i < last; i++) {
        const int32_t run = link[run_of[i]];
        const uint64_t bits = cells[run];
        for (int64_t z = 0; z < depth; z++) {
          const int place = bit_of[i] + (int)(z * dilation);
          const int32_t found = (int32_t)(bits >> place & 1);
          const int32_t below = __builtin_popcountll(bits & (((uint64_t)1 << place) - 1));
          out[z * b.plane + i] = ((lowest[run] + below) & -found) | (found - 1);
        }
      }
    };
    if (depth == 3)
      rows(3);
    else
      rows(depth);
  }
}

void fill_plain(const Builder& b, int64_t first, int64_t last) { fill_rows(b, first, last); }

#if defined(__x86_64__)
__attribute__((target("popcnt,bmi,bmi2"))) void fill_popcnt(const Builder& b, int64_t first, int64_t last) {
  fill_rows(b, first, last);
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 warns of its own intrinsics
#endif

// Sixteen rows at a time, for the usual three neighbours in a line.
__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512vpopcntdq,popcnt,bmi2"))) void fill_avx512(
    const Builder& b, int64_t first, int64_t last) {
  if (b.g.size[2] != 3 || b.g.dilation[2] != 1) return fill_popcnt(b, first, last);
  const __m512i one = _mm512_set1_epi64(1);
  const long long* const cells = (const long long*)b.inputs.cells.data();
  for (int64_t line = 0; line < b.lines(); line++) {
    const int32_t* const link = b.links.get() + line * (int64_t)b.outputs.size();
    int32_t* const out = b.table + line * b.m;
    for (int64_t i = first; i < last; i += 16) {
      const __mmask16 some = last - i >= 16 ? 0xffff : (__mmask16)((1 << (last - i)) - 1);
      const __m512i own = _mm512_maskz_loadu_epi32(some, b.run_of.get() + i);
      const __m512i run = _mm512_mask_i32gather_epi32(own, some, own, link, 4);
      const __m128i place = _mm_maskz_loadu_epi8(some, b.bit_of.get() + i);
      __m256i below[2];
      __mmask16 found[3] = {0, 0, 0};
      for (int half = 0; half < 2; half++) {
        const __m512i bit = _mm512_cvtepu8_epi64(half ? _mm_srli_si128(place, 8) : place);
        const __m256i from = half ? _mm512_extracti64x4_epi64(run, 1) : _mm512_castsi512_si256(run);
        const __m512i bits = _mm512_i32gather_epi64(from, cells, 8);
        const __m512i under = _mm512_sub_epi64(_mm512_sllv_epi64(one, bit), one);
        below[half] = _mm512_cvtepi64_epi32(_mm512_popcnt_epi64(_mm512_and_si512(bits, under)));
        const __m512i here = _mm512_srlv_epi64(bits, bit);
        for (int z = 0; z < 3; z++)
          found[z] |= (__mmask16)_mm512_test_epi64_mask(here, _mm512_slli_epi64(one, z)) << 8 * half;
      }
      __m512i row = _mm512_inserti64x4(_mm512_castsi256_si512(below[0]), below[1], 1);
      row = _mm512_add_epi32(row, _mm512_i32gather_epi32(run, b.inputs.first.data(), 4));
      for (int z = 0; z < 3; z++) {
        _mm512_mask_storeu_epi32(out + z * b.plane + i, some,
                                 _mm512_mask_mov_epi32(_mm512_set1_epi32(-1), found[z], row));
        row = _mm512_mask_add_epi32(row, found[z], row, _mm512_set1_epi32(1));
      }
    }
  }
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

void (*choose_fill())(const Builder&, int64_t, int64_t) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return fill_avx512;
  return __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2") ? fill_popcnt : fill_plain;
}
#else
void (*choose_fill())(const Builder&, int64_t, int64_t) { return fill_plain; }
#endif

// Runs all stages in one parallel region.
void build(Builder& b, int64_t threads) {
  const auto fill = choose_fill();
  const int team = useful_threads(threads, b.m + b.n, 8192);
  b.extents.resize(2 * team);
  b.input_parts.resize(team);
  b.output_parts.resize(team);
  b.run_of = uninitialised<int32_t>(b.m);
  b.bit_of = uninitialised<uint8_t>(b.m);
  std::vector<int32_t> offsets;
  Shortage shortage;
#pragma omp parallel num_threads(team)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    b.extents[2 * self].cover_rows(b.fine, b.n * self / count, b.n * (self + 1) / count, b.dims);
    b.extents[2 * self + 1].cover_rows(b.coarse, b.m * self / count, b.m * (self + 1) / count, b.dims);
#pragma omp barrier
#pragma omp single
    b.fits = shortage.within([&] { b.number(count); }) && b.fits;
    if (b.fits) {
      const int64_t begin = part_begin(b.coarse, b.m, b.dims, self, count);
      const int64_t end = part_begin(b.coarse, b.m, b.dims, self + 1, count);
      shortage.within([&] {
        if (b.same) return b.collect_inputs(begin, end, b.input_parts[self]);
        b.collect_inputs(part_begin(b.fine, b.n, b.dims, self, count),
                         part_begin(b.fine, b.n, b.dims, self + 1, count), b.input_parts[self]);
        b.collect_outputs(begin, end, b.output_parts[self]);
      });
#pragma omp barrier
#pragma omp single
      b.fits = shortage.within([&] { b.join(count, offsets); });
    }
    if (b.fits && !b.unsorted) {
      const int64_t begin = part_begin(b.coarse, b.m, b.dims, self, count);
      const int64_t end = part_begin(b.coarse, b.m, b.dims, self + 1, count);
      for (int64_t i = begin; i < end && offsets[self]; i++) b.run_of[i] += offsets[self];
      const int64_t runs = (int64_t)b.outputs.size();
      b.clear_mirrors(runs * self / count, runs * (self + 1) / count);
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < runs; first += kChunk)
        b.link_all(first, std::min(runs, first + kChunk));
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < b.m; first += kChunk)
        fill(b, first, std::min(b.m, first + kChunk));
    }
  }
  shortage.raise();
}

// Whether output cells are the input cells, in the same rows, and the kernel is centred.
bool is_submanifold(const Geometry& g, const int32_t* fine, int64_t n, const int32_t* coarse, int64_t m) {
  bool centred = fine == coarse && n == m;
  for (int a = 0; a < 3; a++)
    centred &= g.stride[a] == 1 && g.size[a] % 2 && 2 * g.padding[a] == g.reach(a);
  return centred;
}

}  // namespace

// table [offsets, m]: the row of fine [n] for each offset and row of coarse [m], or -1. geometry [4, dims].
// Returns 0; -1 when the cells do not fit 63 bits; i > 0 when row i of fine, or row i - n of coarse where
// i > n, does not come after the row before it.
EXPORT int64_t s3d_offset_table(const int32_t* fine, int64_t n, const int32_t* coarse, int64_t m,
                                int64_t dims, const int64_t* geometry, int32_t* table, int64_t threads) try {
  const Geometry whole(geometry, (int)dims);
  const int64_t lines = whole.size[0] * whole.size[1], plane = lines * m;
  if (!n || !m) {
    std::fill(table, table + whole.size[2] * plane, -1);
    return 0;
  }
  const bool done = has_short_columns(fine, n, (int)dims) &&
                    (is_submanifold(whole, fine, n, coarse, m)
                         ? submanifold_table(fine, n, (int)dims, whole, table, threads)
                         : relation_table(fine, n, coarse, m, (int)dims, whole, table, threads));
  if (done) return 0;
  const int64_t most = std::max<int64_t>(1, kWidest / whole.dilation[2] + 1);
  for (int64_t z = 0; z < whole.size[2]; z += most) {  // mostly one pass
    Geometry part = whole;
    part.size[2] = std::min(most, whole.size[2] - z);
    part.padding[2] = whole.padding[2] - z * whole.dilation[2];
    Builder builder(fine, n, coarse, m, (int)dims, part, table + z * plane, plane);
    build(builder, threads);
    if (!builder.fits) return -1;
    if (builder.unsorted) return builder.unsorted;
  }
  return 0;
} OR_SHORTAGE

// reverse [offsets, n]: the output row for each offset and input row of table [offsets, m], or -1.
// Returns 1 when the table names a row outside [0, n), else 0.
EXPORT int64_t s3d_reverse_table(const int32_t* table, int64_t offsets, int64_t m, int64_t n,
                                 int32_t* reverse, int64_t threads) try {
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
} OR_SHORTAGE
