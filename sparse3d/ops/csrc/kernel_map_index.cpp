// The index of sorted cells, and the tables of kernel maps that are read from it.
#include "kernel_map_index.h"

#include <numeric>

namespace {

template <int kDims>
S3D_INLINE int64_t find_columns(Columns& to, const int32_t* coords, int64_t begin, int64_t end,
                                const int64_t* corner, int64_t lines) {
  const auto line_of = [&](const int32_t* row) __attribute__((always_inline)) {
    return (row[0] - corner[0]) * lines + (kDims == 3 ? row[1] - corner[1] : 0);
  };
  // a line and a place as one number in their order
  const auto key_of = [&](const int32_t* row) __attribute__((always_inline)) {
    return line_of(row) << 32 | (row[kDims - 1] - corner[2]);
  };
  const int32_t* row = coords + begin * (1 + kDims);
  int64_t before = begin ? key_of(row - 1 - kDims) : -1, at = begin;
  int32_t z_before = begin ? row[-1] : 0;
  bool ascending = true;
  for (int64_t i = begin; i < end; i++, row += 1 + kDims) {
    const int64_t key = key_of(row);
    ascending &= (key > before) | ((key == before) & (row[kDims] > z_before));
    to.start[at] = (int32_t)i;
    to.line[at] = (int32_t)(key >> 32);
    to.place[at] = (int32_t)key;
    at += key != before;
    before = key;
    z_before = row[kDims];
  }
  if (!ascending) to.ascending = false;
  return at - begin;
}

}  // namespace

int64_t Columns::find(const int32_t* coords, int64_t begin, int64_t end, int dims, const int64_t* corner,
                      int64_t lines) {
  return dims == 3 ? find_columns<3>(*this, coords, begin, end, corner, lines)
                   : find_columns<2>(*this, coords, begin, end, corner, lines);
}

void Columns::join(const std::vector<int64_t>& found, int64_t n) {
  const int64_t team = (int64_t)found.size();
  count = 0;
  for (int64_t t = 0; t < team; t++) {
    const int64_t from = n * t / team;
    for (Array<int32_t>* list : {&start, &line, &place})
      if (count != from) memmove(list->get() + count, list->get() + from, sizeof(int32_t) * found[t]);
    count += found[t];
  }
  start[count] = (int32_t)n;
}

bool Axis::set(const Geometry& g, int axis, int64_t from, int64_t last, int64_t begin, int64_t end,
               bool up) {
  const int64_t size = g.size[axis], dilation = g.dilation[axis];
  const bool whole = !(g.stride[axis] & (g.stride[axis] - 1));
  least = from;
  stride = g.stride[axis];
  shift = g.padding[axis];
  reach = g.reach(axis);
  const int power = __builtin_ctzll(stride);
  most = up ? size : (size - 1) / (stride / std::gcd(stride, dilation)) + 1;
  reached.assign((last - from + 1) * most, {0, -1});
  int64_t lowest = INT64_MAX, highest = INT64_MIN;
  for (int64_t input = from; input <= last; input++) {
    Reached* to = reached.data() + (input - from) * most;
    for (int64_t k = 0; k < size; k++) {
      const int64_t move = dilation * k - shift;
      int64_t output = up ? stride * input + move : input - move;
      if (!up) {
        if (whole ? output & (stride - 1) : output % stride) continue;
        output = whole ? output >> power : output / stride;
      }
      if (output < begin || output > end) continue;
      lowest = std::min(lowest, output);
      highest = std::max(highest, output);
      *to++ = {(int32_t)output, (int32_t)k};
    }
  }
  if (lowest > highest) return true;
  if (lowest < INT32_MIN || highest > INT32_MAX || highest - lowest >= INT32_MAX) return false;
  fix(lowest, highest);
  return true;
}

void Axis::fix(int64_t begin, int64_t end) {
  const int64_t size = (int64_t)reached.size();
  for (int64_t i = 0; i < size; i += most) {
    const int64_t first = reached[i].offset < 0 ? 0 : reached[i].place + low - begin;
    for (int64_t k = 0; k < most; k++) {
      Reached& one = reached[i + k];
      one.place = (int32_t)(one.offset < 0 ? first : one.place + low - begin);
    }
  }
  low = begin;
  count = end - begin + 1;
}

bool has_short_columns(const int32_t* coords, int64_t n, int dims) {
  const int64_t step = n / 1024 + 1;
  int64_t seen = 0, begin = 0;
  for (int64_t i = 1; i < n; i += step, seen++) begin += !same_column(coords + i * (1 + dims), dims);
  return 3 * begin >= seen;
}

bool CellIndex::set_size(int64_t batches, int64_t x, int64_t y, int64_t z, int64_t n) {
  lines = std::max<int64_t>(x, 1);  // where there are no places there are no words either
  width = std::max<int64_t>((y + 63) / 64, 1);
  depth = std::max<int64_t>((z + 63) / 64, 1);
  const int64_t most = std::max<int64_t>(1 << 14, 4 * n);
  if (n > (1 << 27) || depth > kDeepest || batches > most || lines > most || width > most) return false;
  if (y > INT32_MAX) return false;  // places are int32
  if (batches * lines > most) return false;
  words = batches * lines * width;
  return words <= most;
}

void CellIndex::reserve_cells(int64_t columns, int64_t rows) {
  const int64_t count = (columns + 2) * depth + 1;
  all_cells = uninitialised<uint64_t>(count);
  all_ranks = uninitialised<int32_t>(count);
  cells = all_cells.get() + depth;
  first = all_ranks.get() + depth;
  for (int64_t i = 0; i < depth; i++) cells[i - depth] = 0, first[i - depth] = 0;
  for (int64_t i = columns * depth; i <= (columns + 1) * depth; i++) cells[i] = 0, first[i] = (int32_t)rows;
}

void CellIndex::draw_column(const Columns& columns, const int32_t* coords, int dims, int64_t z, int64_t c) {
  const int64_t begin = columns.start[c], end = columns.start[c + 1];
  uint64_t* const own = cells + c * depth;
  int32_t* const rank = first + c * depth;
  for (int64_t d = 0; d < depth; d++) own[d] = 0, rank[d] = (int32_t)end;
  int64_t word = -1;
  for (int64_t i = begin; i < end; i++) {
    const int64_t at = coords[i * (1 + dims) + dims] - z;
    own[at >> 6] |= (uint64_t)1 << (at & 63);
    while (word < at >> 6) rank[++word] = (int32_t)i;
  }
}

void CellIndex::draw(const Columns& columns, const int32_t* coords, int dims, int64_t z, int part,
                     int parts) {
  const int32_t *const line = columns.line.get(), *const place = columns.place.get();
  const int32_t *const start = columns.start.get(), *row = coords + dims;
  const int64_t width = this->width, step = 1 + dims;
  uint64_t *const plane = this->plane.get(), *const cells = this->cells;
  int32_t *const before = this->before.get(), *const first = this->first;
  const bool one_word = depth == 1;
  const auto word_of = [=](int64_t c) { return line[c] * width + (place[c] >> 6); };
  const auto begin_of = [&](int part) {  // no word of the plane is two threads'
    int64_t c = columns.count * part / parts;
    while (c > 0 && c < columns.count && word_of(c) == word_of(c - 1)) c++;
    return c;
  };
  const int64_t begin = begin_of(part), end = begin_of(part + 1);
  const auto next_word = [&](int64_t c) { return c ? word_of(c - 1) + 1 : 0; };
  const int64_t behind = part + 1 < parts ? next_word(end) : words + 1;
  with_bits([&]() __attribute__((always_inline)) {
    for (int64_t c = begin; c < end; c++) {
      plane[word_of(c)] |= (uint64_t)1 << (place[c] & 63);
      if (one_word) {
        uint64_t bits = 0;
        for (int64_t i = start[c]; i < start[c + 1]; i++) bits |= (uint64_t)1 << (row[i * step] - z);
        cells[c] = bits;
        first[c] = start[c];
      } else {
        draw_column(columns, coords, dims, z, c);
      }
    }
    int64_t count = begin;  // words are numbered afterwards, without a question for every column
    for (int64_t word = next_word(begin); word < behind; word++) {
      before[word] = (int32_t)count;
      count += __builtin_popcountll(plane[word]);
    }
  });
}

// ------------------------------------------------------------------------ a relation of two sets

// The first output row that columns from `column` on reach, and the end of those that columns up to
// `column` reach.
int64_t Relation::first_row(int64_t column) const {
  const int32_t* const row = coords + columns.start[column] * (1 + dims);
  const int64_t batch = row[0] - first_batch;
  if (batch < 0 || batch >= batches()) return batch < 0 ? 0 : m;
  return index.row(batch * index.lines + x.first_place(cell(row, 1, dims)));
}

int64_t Relation::end_row(int64_t column) const {
  const int32_t* const row = coords + columns.start[column] * (1 + dims);
  const int64_t batch = row[0] - first_batch;
  if (batch < 0 || batch >= batches()) return batch < 0 ? 0 : m;
  return index.row(batch * index.lines + x.last_place(cell(row, 1, dims)) + 1);
}

// The entries of the inputs in columns [begin, end). kShort: the columns of the index have one word.
template <bool kShort>
S3D_INLINE void Relation::write_columns(int64_t begin, int64_t end, int32_t* table) const {
  struct Met {
    int64_t column;  // of outputs
    uint64_t cells;  // its own, if they are one word
    int32_t* out;    // its part of the table, of offset 0 along the last axis
  };
  std::vector<Met> all(x.most * y.most + 1);
  Met* const met = all.data();
  const int64_t rows = m, across = g.size[0] * g.size[1] * rows, depth = index.depth, width = index.width;
  const int64_t most_x = x.most, most_y = y.most, most_z = z.most, size_x = g.size[0], number = batches();
  const int64_t step = 1 + dims, lines = index.lines, batch_0 = first_batch;
  const int32_t *const start = columns.start.get(), *const before = index.before.get();
  const int32_t* const first = index.first;
  const uint64_t *const plane = index.plane.get(), *const cells = index.cells;
  for (int64_t c = begin; c < end; c++) {
    const int32_t* row = coords + start[c] * step;
    const int64_t batch = row[0] - batch_0;
    if (batch < 0 || batch >= number) continue;
    const Axis::Reached *to_x = x.from(cell(row, 1, dims)), *const to_y = y.from(cell(row, 2, dims));
    Met* last = met;
    for (const Axis::Reached* const end_x = to_x + most_x; to_x < end_x && to_x->offset >= 0; to_x++) {
      const uint64_t* const line = plane + (batch * lines + to_x->place) * width;
      for (int64_t ky = 0; ky < most_y; ky++) {
        const int64_t place = to_y[ky].place, word = line - plane + (place >> 6);
        const int64_t column = before[word] + __builtin_popcountll(plane[word] & below(place));
        *last = {column * depth, kShort ? cells[column] : 0,
                 table + (to_x->offset + size_x * to_y[ky].offset) * rows + (kShort ? first[column] : 0)};
        last += (to_y[ky].offset >= 0) & (plane[word] >> (place & 63));  // kept if it is there
      }
    }
    for (int64_t i = start[c], behind = start[c + 1]; i < behind; i++, row += step) {
      const Axis::Reached* to_z = z.from(row[dims]);
      for (const Axis::Reached* const end_z = to_z + most_z; to_z < end_z && to_z->offset >= 0; to_z++) {
        const int64_t strip = to_z->offset * across, part = kShort ? 0 : to_z->place >> 6;
        const uint64_t under = below(to_z->place);
        for (const Met* one = met; one < last; one++) {
          const uint64_t bits = kShort ? one->cells : cells[one->column + part];
          const int64_t rank = __builtin_popcountll(bits & under) + (kShort ? 0 : first[one->column + part]);
          if (bits & (under + 1)) one->out[strip + rank] = (int32_t)i;
        }
      }
    }
  }
}

void Relation::write(int32_t* table, int part, int parts, Shortage& shortage) const {
  const int64_t first = columns.count * part / parts, last = columns.count * (part + 1) / parts;
  Blank blank{table, g.size[0] * g.size[1] * g.size[2], m, part ? first_row(first) : 0,
              part + 1 < parts ? first_row(last) : m};
  if (first > 0) blank.fill(end_row(first - 1));  // what the threads before reach
#pragma omp barrier
  for (int64_t c = first; c < last; c += kChunk) {
    const int64_t end = std::min(c + kChunk, last);
    blank.fill(end_row(end - 1));
    shortage.within([&] {
      with_bits([&]() __attribute__((always_inline)) {
        index.depth == 1 ? write_columns<true>(c, end, table) : write_columns<false>(c, end, table);
      });
    });
  }
  blank.fill(m);
}

namespace {

// One call of relation_table.
struct RelationBuilder {
  const int32_t *fine, *coarse;
  const int64_t n, m;
  const int dims;
  const Geometry& g;
  Extent in, out;
  Axis x, y, z;
  CellIndex index;
  Columns inputs, outputs;
  bool fits = false;

  // Sizes and axes, from the extents.
  bool measure() {
    constexpr int64_t most = 1 << 16;  // of an axis
    Axis* const axes[3] = {&x, &y, &z};
    int64_t count[4];
    for (int c = 0; c < 4; c++) count[c] = out.high[c] - out.low[c] + 1;
    if (!index.set_size(count[0], count[1], count[2], count[3], m)) return false;
    if (in.high[0] - in.low[0] >= most / 2) return false;  // lines of inputs are int32
    for (int a = 0; a < 3; a++) {
      const int64_t low = out.low[a + 1], high = out.high[a + 1];
      if (in.high[a + 1] - in.low[a + 1] >= most || g.size[a] > 64) return false;
      if (!axes[a]->set(g, a, in.low[a + 1], in.high[a + 1], low, high, false)) return false;
      axes[a]->fix(low, high);
    }
    index.reserve_plane();
    inputs.reserve(n);
    outputs.reserve(m);
    return true;
  }

  bool build(int32_t* table, int64_t threads) {
    const int team = useful_threads(threads, n + m, 8192);
    std::vector<Extent> extents(2 * team);
    std::vector<int64_t> found_in, found_out;
    Shortage shortage;
#pragma omp parallel num_threads(team)
    {
      const int count = omp_get_num_threads(), self = omp_get_thread_num();
      extents[2 * self].cover_rows(fine, n * self / count, n * (self + 1) / count, dims);
      extents[2 * self + 1].cover_rows(coarse, m * self / count, m * (self + 1) / count, dims);
#pragma omp barrier
#pragma omp single
      {
        for (int t = 0; t < count; t++) in.cover(extents[2 * t]), out.cover(extents[2 * t + 1]);
        shortage.within([&] {
          found_in.assign(count, 0);
          found_out.assign(count, 0);
          fits = measure();
        });
      }
      if (fits) {
        found_in[self] = inputs.find(fine, n * self / count, n * (self + 1) / count, dims, in.low,
                                     in.high[1] - in.low[1] + 1);
        found_out[self] = outputs.find(coarse, m * self / count, m * (self + 1) / count, dims, out.low,
                                       index.lines);
        index.clear(self, count);
#pragma omp barrier
#pragma omp single
        {
          inputs.join(found_in, n);
          outputs.join(found_out, m);
          fits = inputs.ascending && outputs.ascending;
          fits = fits && shortage.within([&] { index.reserve_cells(outputs.count, m); });
        }
      }
      if (fits) {
        index.draw(outputs, coarse, dims, out.low[3], self, count);
#pragma omp barrier
        Relation{fine, dims, m, g, x, y, z, inputs, index, out.low[0]}.write(table, self, count, shortage);
      }
    }
    shortage.raise();
    return fits;
  }
};

}  // namespace

bool relation_table(const int32_t* fine, int64_t n, const int32_t* coarse, int64_t m, int dims,
                    const Geometry& g, int32_t* table, int64_t threads) {
  RelationBuilder builder{fine, coarse, n, m, dims, g};
  return builder.build(table, threads);
}
