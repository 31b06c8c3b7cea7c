// The output cells of strided and transposed convolutions where they can be drawn, and the table of a map
// to coarser cells with them.
#include "kernel_map_index.h"

namespace {

class Drawn : public Found {
 public:
  Drawn(const int32_t* coords, int64_t n, int dims, const Geometry& g, bool up)
      : Found(dims), coords(coords), n(n), g(g), up(up) {}

  // Finds the cells; false where they cannot be drawn.
  bool find(const int64_t* limits, int64_t threads) {
    in.cover_rows(coords, 0, n, dims);  // threads that wait for each other cost more than this
    if (!measure(limits)) return false;
    const int team = up ? 1 : useful_threads(threads, n, 8192);
    std::vector<int64_t> found(team, 0), sums(team + 1, 0);
    bool fits = true;
    Shortage shortage;
#pragma omp parallel num_threads(team)
    {
      const int parts = omp_get_num_threads(), part = omp_get_thread_num();
      found[part] = columns.find(coords, n * part / parts, n * (part + 1) / parts, dims, in.low,
                                 in.high[1] - in.low[1] + 1);
      index.clear(part, parts);
#pragma omp barrier
#pragma omp single
      {
        found.resize(parts);  // there may be fewer threads than asked
        columns.join(found, n);
        fits = columns.ascending || parts == 1;  // the order of the rows tells the threads' shares
      }
      if (fits) draw(part, parts, sums, shortage);
    }
    shortage.raise();
    if (fits) cut();
    return fits;
  }

  bool write(int part, int32_t* at) const override {
    const int64_t words = index.words, begin = words * part / parts(), depth = index.depth;
    int64_t column = index.before[begin];
    for (int64_t word = begin; word < words * (part + 1) / parts(); word++) {
      if (!index.plane[word]) continue;
      const int64_t line = word / index.width, first_y = word % index.width * 64 + y.low;
      const int32_t batch = (int32_t)(line / index.lines + in.low[0]);
      const int32_t to_x = (int32_t)(line % index.lines + x.low);
      for (uint64_t left = index.plane[word]; left; left &= left - 1, column++) {
        const int32_t to_y = (int32_t)(first_y + __builtin_ctzll(left));
        for (int64_t d = 0; d < depth; d++)
          for (uint64_t bits = index.cells[column * depth + d]; bits; bits &= bits - 1) {
            *at++ = batch;
            if (dims == 3) *at++ = to_x;
            *at++ = to_y;
            *at++ = (int32_t)(z.low + d * 64 + __builtin_ctzll(bits));
          }
      }
    }
    return true;
  }

  bool ascending() const { return columns.ascending; }
  bool short_columns() const { return n < 3 * columns.count; }

  // Writes the cells, and the table [offsets, cells] of the map to them.
  void write_map(int32_t* cells, int32_t* table, int64_t threads) const {
    const Relation relation{coords, dims, counts.back(), g, x, y, z, columns, index, in.low[0]};
    Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, n + counts.back(), 8192))
    {
#pragma omp for schedule(static) nowait
      for (int part = 0; part < parts(); part++) write(part, cells + counts[part] * (1 + dims));
      relation.write(table, omp_get_thread_num(), omp_get_num_threads(), shortage);
    }
    shortage.raise();
  }

 private:
  const int32_t* coords;
  const int64_t n;
  const Geometry g;
  const bool up;
  Extent in;
  Axis x, y, z;
  std::vector<uint64_t> reached_z;  // of each input along the last axis, as bits, if a column is one word
  Columns columns;
  CellIndex index;

  // Extents, and whether they can be drawn.
  bool measure(const int64_t* limits) {
    constexpr int64_t most = 1 << 16;  // inputs along an axis, and samples
    if (!n || in.high[0] - in.low[0] >= most / 2) return false;  // lines of inputs are int32
    Axis* const axis[3] = {&x, &y, &z};
    for (int a = 0; a < 3; a++) {
      const int64_t low = in.low[a + 1], high = in.high[a + 1];
      const int64_t limit = a < 3 - dims ? -1 : limits[a - 3 + dims];
      if (high - low >= most || g.size[a] > 64) return false;
      const int64_t begin = limit < 0 ? INT64_MIN : 0, end = limit < 0 ? INT64_MAX : limit - 1;
      if (!axis[a]->set(g, a, low, high, begin, end, up)) return false;
    }
    const int64_t batches = x.count && y.count && z.count ? in.high[0] - in.low[0] + 1 : 0;
    if (!index.set_size(batches, x.count, y.count, z.count, n)) return false;
    index.reserve_plane();
    columns.reserve(n);
    for (int64_t i = 0; index.depth == 1 && i <= in.high[3] - in.low[3]; i++) {
      reached_z.push_back(0);
      for (int64_t k = 0; k < z.most; k++) {
        const Axis::Reached& to = z.reached[i * z.most + k];
        reached_z.back() |= (uint64_t)(to.offset >= 0) << to.place;
      }
    }
    return true;
  }

  const int32_t* row(int64_t column) const { return coords + columns.start[column] * (1 + dims); }
  int64_t first_line(int64_t column) const {
    const int32_t* const of = row(column);
    return (of[0] - in.low[0]) * index.lines + x.first_place(cell(of, 1, dims));
  }
  int64_t last_line(int64_t column) const {
    const int32_t* const of = row(column);
    return (of[0] - in.low[0]) * index.lines + x.last_place(cell(of, 1, dims));
  }

  // Draws share `part` of `parts`: lines that nobody else draws, and the columns of inputs that reach them.
  void draw(int part, int parts, std::vector<int64_t>& sums, Shortage& shortage) {
    const int64_t all = index.words / index.width;
    int64_t first = columns.count * part / parts;
    const int64_t last = columns.count * (part + 1) / parts;
    const int64_t begin = part && all ? first_line(first) : 0;
    const int64_t end = part + 1 < parts && all ? first_line(last) : all;
    while (parts > 1 && all && first > 0 && last_line(first - 1) >= begin) first--;
    const int64_t from = begin * index.width, to = end * index.width;
    const auto add_up = [&](int64_t own) {  // what comes before this share
      sums[part + 1] = own;
#pragma omp barrier
      int64_t before = 0;
      for (int t = 0; t <= part; t++) before += sums[t];
      return before;
    };
    with_bits([&]() __attribute__((always_inline)) { draw_columns(first, last, begin, end); });
    int64_t count = add_up(count_bits(index.plane.get() + from, to - from));
    number(index.plane.get() + from, to - from, count, index.before.get() + from);
#pragma omp single
    {
      int64_t columns = 0;
      for (int t = 0; t < parts; t++) columns += sums[t + 1];
      index.before[index.words] = (int32_t)columns;
      shortage.within([&] { index.reserve_cells(columns, 0); });
    }
    if (!shortage.none()) return;  // all threads do
    const int64_t cells = index.before[from] * index.depth, behind = index.before[to] * index.depth;
    std::fill(index.cells + cells, index.cells + behind, 0);
    with_bits([&]() __attribute__((always_inline)) {
      if (index.depth == 1)
        draw_cells<true>(first, last, begin, end);
      else
        draw_cells<false>(first, last, begin, end);
    });
    count = add_up(count_bits(index.cells + cells, behind - cells));
    number(index.cells + cells, behind - cells, count, index.first + cells);
    if (part + 1 == parts) {
      const int64_t rows = count + sums[parts], ends = index.before[index.words] * index.depth;
      for (int64_t i = ends; i <= ends + index.depth; i++) index.first[i] = (int32_t)rows;
    }
  }

  static int64_t count_bits(const uint64_t* words, int64_t count) {
    int64_t bits = 0;
    with_bits([&]() __attribute__((always_inline)) {
      for (int64_t i = 0; i < count; i++) bits += __builtin_popcountll(words[i]);
    });
    return bits;
  }

  // Bits before each word, and before `words`: `before`.
  static void number(const uint64_t* words, int64_t count, int64_t before, int32_t* to) {
    with_bits([&]() __attribute__((always_inline)) {
      int64_t bits = before;
      for (int64_t i = 0; i < count; i++) {
        to[i] = (int32_t)bits;
        bits += __builtin_popcountll(words[i]);
      }
    });
  }

  // Calls start(column) for the columns of inputs [first, last), and to(entries along y, their number, line)
  // for each of the lines begin .. end - 1 that one reaches.
  template <class Start, class To>
  S3D_INLINE void for_lines(int64_t first, int64_t last, int64_t begin, int64_t end, const Start& start,
                            const To& to) const {
    const Axis::Reached *const all_x = x.reached.data(), *const all_y = y.reached.data();
    const int64_t most_x = x.most, most_y = y.most, least_x = x.least, least_y = y.least;
    const int64_t lines = index.lines, batch = in.low[0], step = 1 + dims, flat = dims < 3;
    const int32_t *const starts = columns.start.get(), *const rows = coords;
    for (int64_t c = first; c < last; c++) {
      const int32_t* const of = rows + starts[c] * step;
      const Axis::Reached* const to_x = all_x + (flat ? 0 : of[1] - least_x) * most_x;
      const Axis::Reached* const to_y = all_y + (of[2 - flat] - least_y) * most_y;
      start(c);
      if (to_y->offset < 0) continue;
      for (int64_t kx = 0; kx < most_x && to_x[kx].offset >= 0; kx++) {
        const int64_t line = (of[0] - batch) * lines + to_x[kx].place;
        if (line >= begin && line < end) to(to_y, most_y, line);
      }
    }
  }

  // Sets the columns of lines begin .. end - 1 that the columns of inputs [first, last) reach.
  S3D_INLINE void draw_columns(int64_t first, int64_t last, int64_t begin, int64_t end) {
    uint64_t* const plane = index.plane.get();
    const int64_t width = index.width;
    const auto nothing = [](int64_t) __attribute__((always_inline)) {};
    for_lines(first, last, begin, end, nothing,
              [=](const Axis::Reached* to, int64_t count, int64_t line) __attribute__((always_inline)) {
                for (int64_t k = 0; k < count; k++)
                  plane[line * width + (to[k].place >> 6)] |= (uint64_t)1 << (to[k].place & 63);
              });
  }

  // Sets the cells of the same. kShort: a column has one word.
  template <bool kShort>
  S3D_INLINE void draw_cells(int64_t first, int64_t last, int64_t begin, int64_t end) {
    uint64_t own[CellIndex::kDeepest], *const cells = index.cells;
    const uint64_t* const plane = index.plane.get();
    const int32_t* const before = index.before.get();
    const int64_t width = index.width, depth = kShort ? 1 : index.depth;
    for_lines(first, last, begin, end,
              [&](int64_t column) __attribute__((always_inline)) { reached_cells<kShort>(column, own); },
              [&](const Axis::Reached* to, int64_t count, int64_t line) __attribute__((always_inline)) {
                for (int64_t k = 0; k < count; k++) {
                  const int64_t word = line * width + (to[k].place >> 6);
                  const uint64_t under = plane[word] & below(to[k].place);
                  uint64_t* const out = cells + (before[word] + __builtin_popcountll(under)) * depth;
                  for (int64_t d = 0; d < depth; d++) out[d] |= own[d];
                }
              });
  }

  // The cells along the last axis that a column of inputs reaches.
  template <bool kShort>
  S3D_INLINE void reached_cells(int64_t column, uint64_t* own) const {
    const int64_t end = columns.start[column + 1], depth = kShort ? 1 : index.depth, least = z.least;
    const uint64_t* const bits = reached_z.data();
    for (int64_t d = 0; d < depth; d++) own[d] = 0;
    for (int64_t i = columns.start[column]; i < end; i++) {
      const int32_t at = coords[i * (1 + dims) + dims];
      if (kShort) {
        own[0] |= bits[at - least];
        continue;
      }
      const Axis::Reached* const to = z.from(at);
      for (int64_t k = 0; k < z.most; k++)
        own[to[k].place >> 6] |= (uint64_t)(to[k].offset >= 0) << (to[k].place & 63);
    }
  }

  // Cuts the cells into parts to be written.
  void cut() {
    const int64_t parts = 16, words = index.words;
    counts.assign(1, 0);
    for (int64_t part = 1; part <= parts; part++)
      counts.push_back(index.first[index.before[words * part / parts] * index.depth]);
  }
};

}  // namespace

Found* draw_reached(const int32_t* coords, int64_t n, int dims, const Geometry& g, const int64_t* limits,
                    bool up, int64_t threads) {
  std::unique_ptr<Drawn> drawn(new Drawn(coords, n, dims, g, up));
  if (drawn->find(limits, threads)) return drawn.release();
  const bool again = threads > 1 && !drawn->ascending();
  drawn.reset();
  return again ? draw_reached(coords, n, dims, g, limits, up, 1) : nullptr;
}

// As s3d_cells_find, downwards, for s3d_strided_take; 0 where the cells cannot be drawn or coords do not
// ascend.
EXPORT int64_t s3d_strided_find(const int32_t* coords, int64_t n, int64_t dims, const int64_t* geometry,
                                const int64_t* limits, int64_t threads) try {
  const Geometry g(geometry, (int)dims);
  Found* const found = draw_reached(coords, n, (int)dims, g, limits, false, threads);
  if (!found || static_cast<Drawn*>(found)->ascending()) return (int64_t)found;
  delete found;
  return 0;
} OR_SHORTAGE

// Writes the cells to cells [count, 1 + dims] and throws what was found away; with the map to them in table
// [offsets, count] where that is the fastest way to it: returns 1, else 0.
EXPORT int64_t s3d_strided_take(int64_t given, int32_t* cells, int32_t* table, int64_t threads) try {
  std::unique_ptr<Drawn> drawn(static_cast<Drawn*>((Found*)given));
  if (!drawn->counts.back() || !drawn->short_columns())
    return s3d_cells_take((int64_t)(Found*)drawn.release(), cells, threads);
  drawn->write_map(cells, table, threads);
  return 1;
} OR_SHORTAGE
