// Tables of submanifold convolutions, read from the index of their own cells.
//
// Each pair of columns that a kernel line joins is met once: what one offset finds, the opposite offset
// finds from the other side.
#include "kernel_map_index.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// A pair of columns that kernel line `line` (x + size * y) joins.
struct alignas(16) Link {
  int32_t here, there, line;
};
constexpr int64_t kLinksAtOnce = 8, kEntries = 512;

struct Submanifold {
  const int32_t* coords;
  const int64_t n;
  const int dims;
  const Geometry& g;
  int32_t* const table;
  int64_t centre[3], corner[4];
  std::vector<int32_t*> strips;  // of the table, one per offset
  CellIndex index;
  Columns columns;
  bool fits = false;
  const bool wide = have_wide_counts();

  Submanifold(const int32_t* coords, int64_t n, int dims, const Geometry& g, int32_t* table)
      : coords(coords), n(n), dims(dims), g(g), table(table) {
    for (int a = 0; a < 3; a++) centre[a] = g.size[a] / 2;
    for (int64_t k = 0; k < offsets(); k++) strips.push_back(table + k * n);
  }

  int64_t lines() const { return g.size[0] * g.size[1]; }
  int64_t offsets() const { return lines() * g.size[2]; }

  // Sizes from the extent of the cells: with a border as wide as the kernel's reach.
  bool measure(const Extent& box) {
    int64_t count[4];
    for (int c = 0; c < 4; c++) {
      const int64_t border = c ? g.reach(c - 1) / 2 : 0;
      corner[c] = box.low[c] - border;
      count[c] = box.high[c] - box.low[c] + 1 + 2 * border;
    }
    if (g.reach(1) >= 64 || !index.set_size(count[0], count[1], count[2], count[3], n)) return false;
    index.reserve_plane();
    columns.reserve(n);
    return true;
  }

  // What a pair of columns has in common at offset z of the last axis: `both` are cells of `own`; the other
  // column's, as these see them, are `moved`. Rows count from `row` and `other_row`.
  S3D_INLINE void write_runs(uint64_t both, uint64_t own, uint64_t moved, int64_t row, int64_t other_row,
                             int32_t* out, int32_t* opposite) const {
    while (both) {
      const uint64_t lowest = both & -both, behind = both + lowest;
      const int64_t a = row + __builtin_popcountll(own & (lowest - 1));
      const int64_t b = other_row + __builtin_popcountll(moved & (lowest - 1));
      const int64_t length = __builtin_popcountll(both & ~behind);  // rows of neighbours are neighbours
      for (int64_t i = 0; i < length; i++) out[a + i] = (int32_t)(b + i);
      for (int64_t i = 0; i < length; i++) opposite[b + i] = (int32_t)(a + i);
      both &= behind;
    }
  }

  // Joins pairs of columns of one word each. Mostly they have one cell in common or none, and which is
  // hard to foresee: the first one is written without asking, to nowhere where there is none.
  template <int kSize>
  S3D_INLINE void join_short(const Link* link, const Link* const last, const int64_t begin) const {
    const int64_t size = kSize ? kSize : g.size[2], dilation = kSize ? 1 : g.dilation[2], rows = n;
    const int64_t across = lines() * rows, final = (offsets() - 1) * rows;
    const uint64_t* const cells = index.cells;
    const int32_t* const first = index.first;
    int32_t* const whole = table;
    int32_t nowhere;
    for (; link < last; link++) {
      const uint64_t own = cells[link->here], other = cells[link->there];
      int32_t* const own_out = whole + link->line * rows + first[link->here];
      int32_t* const other_out = whole + final - link->line * rows + first[link->there];
      const int64_t own_first = first[link->here], other_first = first[link->there];
#pragma GCC unroll 3
      for (int64_t z = begin; z < size; z++) {
        const int64_t shift = (z - size / 2) * dilation;  // the border is wider: no cell is shifted out
        const uint64_t moved = shift < 0 ? other << -shift : other >> shift, both = own & moved;
        const uint64_t under = (both & -both) - 1;
        const int64_t a = __builtin_popcountll(own & under), b = __builtin_popcountll(moved & under);
        *either(both, own_out + across * z + a, &nowhere) = (int32_t)(other_first + b);
        *either(both, other_out - across * z + b, &nowhere) = (int32_t)(own_first + a);
        const uint64_t more = both & (both - 1);
        if (__builtin_expect(more != 0, 0))
          write_runs(more, own, moved, own_first, other_first, own_out + across * z - own_first,
                     other_out - across * z - other_first);
      }
    }
  }

#if defined(__x86_64__)
  // The same for eight pairs at once. What is found is written down first: the table's rows lie apart.
  __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512vpopcntdq,popcnt"))) void join_wide(
      const Link* link, const Link* const last, const int64_t begin) const {
    struct Entries {
      int64_t at[kEntries], rows[kEntries];  // strip of the table; own row below, the other one above
    } found;
    const int64_t rows = n, across = lines() * rows, final = (offsets() - 1) * rows;
    const long long* const cells = (const long long*)index.cells;
    int32_t* const whole = table;
    const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi64(1);
    const __m512i heres = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i theres = _mm512_add_epi32(heres, _mm512_set1_epi32(1));
    const __m512i their_lines = _mm512_add_epi32(heres, _mm512_set1_epi32(2));
    int64_t count = 0;
    const auto write = [&]() {
      for (int64_t i = 0; i < count; i++) {
        const int64_t a = (int32_t)found.rows[i], b = found.rows[i] >> 32;
        whole[found.at[i] + a] = (int32_t)b;
        whole[final - found.at[i] + b] = (int32_t)a;
      }
      count = 0;
    };
    for (; link < last; link += kLinksAtOnce) {
      const __mmask8 some = last - link < kLinksAtOnce ? (__mmask8)((1 << (last - link)) - 1) : 0xff;
      const __m512i low = _mm512_loadu_si512(link), high = _mm512_loadu_si512(link + 4);
      const __m256i here = _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, heres, high));
      const __m256i there = _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, theres, high));
      const __m256i line = _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, their_lines, high));
      const __m512i own = _mm512_mask_i32gather_epi64(zero, some, here, cells, 8);
      const __m512i other = _mm512_mask_i32gather_epi64(zero, some, there, cells, 8);
      const __m256i none = _mm256_setzero_si256();
      const __m512i own_first =
          _mm512_cvtepi32_epi64(_mm256_mmask_i32gather_epi32(none, some, here, index.first, 4));
      const __m512i other_first =
          _mm512_cvtepi32_epi64(_mm256_mmask_i32gather_epi32(none, some, there, index.first, 4));
      __m512i at = _mm512_mul_epi32(_mm512_cvtepi32_epi64(line), _mm512_set1_epi64(rows));
      at = _mm512_add_epi64(at, _mm512_set1_epi64(across * begin));
      for (int64_t z = begin; z < g.size[2]; z++, at = _mm512_add_epi64(at, _mm512_set1_epi64(across))) {
        const int64_t shift = (z - centre[2]) * g.dilation[2];
        const __m512i moved = shift < 0 ? _mm512_sll_epi64(other, _mm_cvtsi64_si128(-shift))
                                        : _mm512_srl_epi64(other, _mm_cvtsi64_si128(shift));
        __m512i both = _mm512_and_si512(own, moved);
        for (__mmask8 left = _mm512_test_epi64_mask(both, both); left;) {
          const __m512i less = _mm512_sub_epi64(both, one), under = _mm512_andnot_si512(both, less);
          const __m512i a = _mm512_popcnt_epi64(_mm512_and_si512(own, under));
          const __m512i b = _mm512_popcnt_epi64(_mm512_and_si512(moved, under));
          const __m512i pair = _mm512_or_si512(_mm512_add_epi64(a, own_first),
                                               _mm512_slli_epi64(_mm512_add_epi64(b, other_first), 32));
          _mm512_storeu_si512(found.at + count, _mm512_maskz_compress_epi64(left, at));
          _mm512_storeu_si512(found.rows + count, _mm512_maskz_compress_epi64(left, pair));
          count += __builtin_popcount(left);
          if (count > kEntries - 8) write();
          both = _mm512_and_si512(both, less);
          left = _mm512_test_epi64_mask(both, both);
        }
      }
    }
    write();
  }
  static bool have_wide_counts() {
    return best_level(0) == 3 && __builtin_cpu_supports("avx512vpopcntdq");
  }
#else
  void join_wide(const Link*, const Link*, int64_t) const {}
  static bool have_wide_counts() { return false; }
#endif

  // Joins a pair of columns of any number of words.
  S3D_INLINE void join_long(const Link& link, int64_t begin) const {
    const int64_t depth = index.depth, across = lines();
    const uint64_t* const own = index.cells + link.here * depth;
    const uint64_t* const other = index.cells + link.there * depth;
    const int32_t* const rows = index.first + link.here * depth;
    const int32_t* const other_rows = index.first + link.there * depth;
    for (int64_t d = 0; d < depth; d++) {
      if (!own[d]) continue;
      for (int64_t z = begin; z < g.size[2]; z++) {
        const int64_t from = d * 64 + (z - centre[2]) * g.dilation[2], word = from >> 6, bit = from & 63;
        const uint64_t moved = other[word] >> bit | other[word + 1] << 1 << (63 - bit);
        const int64_t other_row = other_rows[word] + __builtin_popcountll(other[word] & below(bit));
        const int64_t k = link.line + across * z;
        write_runs(own[d] & moved, own[d], moved, rows[d], other_row, strips[k], strips[offsets() - 1 - k]);
      }
    }
  }

  // The pairs of columns [begin, end) with those behind them. Returns the end of `links`.
  template <int kSize>
  S3D_INLINE Link* find_links(int64_t begin, int64_t end, Link* links) const {
    const int64_t size_x = kSize ? kSize : g.size[0], size_y = kSize ? kSize : g.size[1];
    const int64_t step_x = kSize ? 1 : g.dilation[0], step_y = kSize ? 1 : g.dilation[1];
    const int64_t half_x = size_x / 2, half_y = size_y / 2, width = index.width;
    const uint64_t* const plane = index.plane.get();
    const int32_t* const before = index.before.get();
    const int32_t *const line_of = columns.line.get(), *const place_of = columns.place.get();
    for (int64_t c = begin; c < end; c++) {
      const int64_t from = place_of[c] - half_y * step_y, bit = from & 63;
      int64_t word = line_of[c] * width + (from >> 6);
#pragma GCC unroll 2
      for (int64_t x = half_x; x < size_x; x++, word += step_x * width) {
        const uint64_t seen = plane[word] >> bit | plane[word + 1] << 1 << (63 - bit);
        const int64_t rank = before[word] + __builtin_popcountll(plane[word] & below(bit));
#pragma GCC unroll 3
        for (int64_t y = x == half_x ? half_y + 1 : 0; y < size_y; y++) {
          const int64_t at = y * step_y, there = rank + __builtin_popcountll(seen & below(at));
          *links = {(int32_t)c, (int32_t)there, (int32_t)(x + size_x * y)};
          links += seen >> at & 1;  // kept if it is there
        }
      }
    }
    return links;
  }

  // Follows the links; `begin`: the first offset along the last axis.
  template <int kSize>
  S3D_INLINE void follow(const Link* link, const Link* last, int64_t begin) const {
    if (index.depth == 1 && wide) return join_wide(link, last, begin);
    if (index.depth == 1) return join_short<kSize>(link, last, begin);
    for (; link < last; link++) join_long(*link, begin);
  }

  // Joins columns [begin, end) with themselves and with those behind them.
  void join(int64_t begin, int64_t end, std::vector<Link>& links) const {
    links.resize((end - begin) * (lines() / 2 + 1) + kLinksAtOnce);
    const int32_t middle = (int32_t)(lines() / 2);
    bool usual = true;  // three cells along every axis
    for (int a = 0; a < 3; a++) usual &= g.size[a] == 3 && g.dilation[a] == 1;
    with_bits([&]() __attribute__((always_inline)) {
      Link* own = links.data();
      for (int64_t c = begin; c < end; c++) {
        *own = {(int32_t)c, (int32_t)c, middle};
        own += columns.start[c + 1] - columns.start[c] > 1;
      }
      follow<0>(links.data(), own, centre[2] + 1);
      if (usual)
        follow<3>(links.data(), find_links<3>(begin, end, links.data()), 0);
      else
        follow<0>(links.data(), find_links<0>(begin, end, links.data()), 0);
    });
  }

  // The end of the rows that columns up to `column` are joined with.
  int64_t end_row(int64_t column) const {
    const int64_t line = columns.line[column] + g.reach(0) / 2 + 1;
    return index.row(std::min(line, index.words / index.width));
  }

  // Share `part` of `parts` of the table, in a parallel region of so many threads.
  void write(int part, int parts, Shortage& shortage) const {
    const int64_t first = columns.count * part / parts, last = columns.count * (part + 1) / parts;
    Blank blank{table, offsets(), n, columns.start[first], columns.start[last]};
    if (first > 0) blank.fill(end_row(first - 1));  // what the threads before reach
#pragma omp barrier
    std::vector<Link> links;
    int32_t* const middle = strips[offsets() / 2];
    for (int64_t c = first; c < last; c += kChunk) {
      const int64_t end = std::min(c + kChunk, last);
      blank.fill(std::max<int64_t>(end_row(end - 1), columns.start[end]));
      for (int64_t i = columns.start[c]; i < columns.start[end]; i++) middle[i] = (int32_t)i;
      shortage.within([&] { join(c, end, links); });
    }
  }

  bool build(int64_t threads) {
    const int team = useful_threads(threads, n, 8192);
    std::vector<Extent> extents(team);
    std::vector<int64_t> found;
    Shortage shortage;
#pragma omp parallel num_threads(team)
    {
      const int count = omp_get_num_threads(), self = omp_get_thread_num();
      const int64_t begin = n * self / count, end = n * (self + 1) / count;
      extents[self].cover_rows(coords, begin, end, dims);
#pragma omp barrier
#pragma omp single
      {
        Extent box;
        for (int t = 0; t < count; t++) box.cover(extents[t]);
        shortage.within([&] {
          found.assign(count, 0);
          fits = measure(box);
        });
      }
      if (fits) {
        found[self] = columns.find(coords, begin, end, dims, corner, index.lines);
        index.clear(self, count);
#pragma omp barrier
#pragma omp single
        {
          columns.join(found, n);
          fits = columns.ascending;
          fits = fits && shortage.within([&] { index.reserve_cells(columns.count, n); });
        }
      }
      if (fits) {
        index.draw(columns, coords, dims, corner[3], self, count);
#pragma omp barrier
        write(self, count, shortage);
      }
    }
    shortage.raise();
    return fits;
  }
};

}  // namespace

bool submanifold_table(const int32_t* coords, int64_t n, int dims, const Geometry& g, int32_t* table,
                       int64_t threads) {
  Submanifold builder(coords, n, dims, g, table);
  return builder.build(threads);
}
