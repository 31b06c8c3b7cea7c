// The output cells of strided and transposed convolutions.
//
// Offsets along the axes are independent. Where the cells' surroundings are small enough to be drawn,
// output columns (cells of the same batch, x and y) are bits of a plane that the inputs set, and the cells
// of each are bits again. Elsewhere the axes are treated one after the other: the last one within runs of
// cells that are kept as bits, the others by merging one shifted list of runs per offset.
#include "kernel_map.h"

#include <omp.h>

#include <atomic>
#include <utility>
#include <vector>

namespace {

typedef unsigned __int128 Row;  // (batch, x, y, slab), 32 bits each, as one number in their order
constexpr Row kEnd = ~(Row)0;
constexpr int64_t kWidest = 31;  // cells that a kernel may reach along the last axis for runs to be used

struct Run {
  Row row;
  uint64_t cells;  // bit i: cell i of the slab exists
};

uint32_t biased(int64_t v) { return (uint32_t)(int32_t)v ^ 0x80000000u; }
int64_t unbiased(uint32_t v) { return (int32_t)(v ^ 0x80000000u); }

// The row of a cell's column, slab 0.
Row pack(const int32_t* row, int dims) {
  Row packed = 0;
  for (int c = 0; c < 3; c++) packed = packed << 32 | biased(cell(row, c, dims));
  return packed << 32;
}

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// How one kernel offset moves one axis.
struct Step {
  int64_t multiply, add, divide, limit;  // limit < 0: unbounded
  int shift;                             // of the axis within a row
  int power = -1;                        // divide = 1 << power
  bool overflow = false;

  Step(int64_t multiply, int64_t add, int64_t divide, int64_t limit, int shift)
      : multiply(multiply), add(add), divide(divide), limit(limit), shift(shift) {
    if (!(divide & (divide - 1))) power = __builtin_ctzll(divide);
  }

  int64_t value(Row row) const { return unbiased((uint32_t)(row >> shift)) * multiply + add; }

  // Moves `row`; false where nothing lies there.
  bool move(Row row, Row& moved) {
    int64_t t = value(row);
    if (power >= 0) {
      if (t & (divide - 1)) return false;
      t >>= power;
    } else {
      if (t % divide) return false;
      t /= divide;
    }
    if (limit >= 0 && (t < 0 || t >= limit)) return false;
    if (t != (int32_t)t) {
      overflow = true;
      return false;
    }
    moved = replaced(row, t);
    return true;
  }

  // `row` with the axis at `t`.
  Row replaced(Row row, int64_t t) const {
    return (row & ~((Row)0xffffffffu << shift)) | (Row)biased(t) << shift;
  }

  // Whether everything that `row` moves to lies before `from`, which is 0 behind the axis.
  bool before(Row row, Row from) const {
    const Row over = row >> shift >> 32, wanted = from >> shift >> 32;
    if (over != wanted) return over < wanted;
    return floor_divide(value(row), divide) < unbiased((uint32_t)(from >> shift));
  }

  // A place to cut the output at: where `row` goes, 0 behind the axis.
  Row cut(Row row) const {
    const int64_t t = floor_divide(value(row), divide);
    const int64_t clipped = std::max<int64_t>(INT32_MIN, std::min<int64_t>(INT32_MAX, t));
    return replaced(row, clipped) >> shift << shift;
  }
};

// Merges the moved lists, each of which ascends, between rows `from` and `to`.
std::vector<Run> merge(const std::vector<Run>& runs, std::vector<Step>& steps, Row from, Row to) {
  const size_t n = runs.size(), count = steps.size();
  std::vector<size_t> at(count);
  std::vector<Run> head(count), out;
  const auto advance = [&](size_t k) {
    while (at[k] < n) {
      const Run& run = runs[at[k]++];
      head[k].cells = run.cells;
      if (steps[k].move(run.row, head[k].row)) return;
    }
    head[k].row = kEnd;
  };
  for (size_t k = 0; k < count; k++) {
    const auto begin = std::partition_point(
        runs.begin(), runs.end(), [&](const Run& run) { return steps[k].before(run.row, from); });
    at[k] = begin - runs.begin();
    advance(k);
  }
  for (;;) {
    Run next = {kEnd, 0};
    for (const Run& h : head) next.row = std::min(next.row, h.row);
    if (next.row >= to) return out;
    for (size_t k = 0; k < count; k++)
      if (head[k].row == next.row) {
        next.cells |= head[k].cells;
        advance(k);
      }
    out.push_back(next);
  }
}

// What s3d_cells_find hands out: cells in parts.
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

// Cells drawn on the plane of their columns.
class Plane : public Found {
 public:
  Plane(const int32_t* coords, int64_t n, int dims) : Found(dims), coords(coords), n(n) {}

  // Finds the cells; false where the plane would be too large.
  bool find(const Geometry& g, const int64_t* limits, bool up) {
    if (!measure(g, limits, up)) return false;
    draw_columns();
    draw_cells();
    const int64_t words = columns.size(), share = (words + 15) / 16;
    for (int64_t at = 0; at < words; at += share) begins.push_back(at);
    begins.push_back(words);
    counts.assign(begins.size(), 0);
    count_cells();
    sum_up();
    return true;
  }

  bool write(int part, int32_t* at) const override {
    int64_t column = before[begins[part]];
    for (int64_t word = begins[part]; word < begins[part + 1]; word++)
      for (uint64_t left = columns[word]; left; left &= left - 1, column++) {
        const int64_t line = word / width;
        const int32_t batch = (int32_t)(line / x.count + first_batch);
        const int32_t to_x = (int32_t)(line % x.count + x.low);
        const int32_t to_y = (int32_t)(word % width * 64 + __builtin_ctzll(left) + y.low);
        for (int64_t d = 0; d < depth; d++)
          for (uint64_t bits = cells[column * depth + d]; bits; bits &= bits - 1) {
            *at++ = batch;
            if (dims == 3) *at++ = to_x;
            *at++ = to_y;
            *at++ = (int32_t)(z.low + d * 64 + __builtin_ctzll(bits));
          }
      }
    return true;
  }

 private:
  static constexpr int64_t kDeepest = 16;  // words of a column

  // One axis: its outputs, and which of them each input reaches.
  struct Axis {
    int64_t least = 0, low = 0, count = 0;  // least input, least output, outputs
    std::vector<int32_t> first, to;         // of each input from `least` on, less low

    // Of the inputs from .. last; false where an output leaves int32.
    bool set(const Geometry& g, int a, int64_t from, int64_t last, int64_t limit, bool up) {
      least = from;
      std::vector<int64_t> reached;
      for (int64_t input = from; input <= last; input++) {
        first.push_back((int32_t)reached.size());
        for (int64_t k = 0; k < g.size[a]; k++) {
          const int64_t move = g.dilation[a] * k - g.padding[a];
          int64_t output = up ? g.stride[a] * input + move : input - move;
          if (!up && output % g.stride[a]) continue;
          if (!up) output /= g.stride[a];
          if (limit < 0 || (output >= 0 && output < limit)) reached.push_back(output);
        }
      }
      first.push_back((int32_t)reached.size());
      if (reached.empty()) return true;
      const auto ends = std::minmax_element(reached.begin(), reached.end());
      low = *ends.first;
      count = *ends.second - low + 1;
      for (int64_t output : reached) to.push_back((int32_t)(output - low));
      return low >= INT32_MIN && *ends.second <= INT32_MAX && count <= INT32_MAX;
    }
  };

  const int32_t* coords;
  const int64_t n;
  Axis x, y, z;
  int64_t first_batch = 0, width = 0, depth = 0;  // words of a line (batch, x), and of a column
  std::vector<int32_t> starts;           // first row of each input column, and n
  std::vector<uint64_t> columns, cells;  // bits along y of each line; along z of each column
  std::vector<int32_t> before;           // columns before each word
  std::vector<int64_t> begins;           // words where parts begin

  // Extents, and whether they can be drawn.
  bool measure(const Geometry& g, const int64_t* limits, bool up) {
    if (!n || n > (1 << 27)) return false;  // numbers of columns are int32
    const int64_t most = 1 << 16;
    Extent in;
    in.cover_rows(coords, 0, n, dims);
    first_batch = in.low[0];
    const int64_t batches = in.high[0] - in.low[0] + 1;
    Axis* const axis[3] = {&x, &y, &z};
    for (int a = 0; a < 3; a++) {
      if (in.high[a + 1] - in.low[a + 1] >= most || g.size[a] > 64) return false;
      const int64_t limit = a < 3 - dims ? -1 : limits[a - 3 + dims];
      if (!axis[a]->set(g, a, in.low[a + 1], in.high[a + 1], limit, up)) return false;
    }
    width = (y.count + 63) / 64;
    depth = (z.count + 63) / 64;
    if (batches > most || x.count > (1 << 24) || width > most || depth > kDeepest) return false;
    const int64_t words = batches * x.count * width;
    if (words > std::max<int64_t>(1 << 14, 2 * n)) return false;
    columns.assign(words, 0);
    return true;
  }

  const int32_t* row(int64_t i) const { return coords + i * (1 + dims); }

  // Sets the columns that the inputs reach.
  S3D_CLONES void draw_columns() {
    const int32_t *first_x = x.first.data(), *to_x = x.to.data();
    const int32_t *first_y = y.first.data(), *to_y = y.to.data();
    uint64_t* const plane = columns.data();
    starts.reserve(n + 1);
    for (int64_t i = 0; i < n; i++) {
      if (i && same_column(row(i), dims)) continue;
      starts.push_back((int32_t)i);
      const int64_t line = (row(i)[0] - first_batch) * x.count;
      const int64_t at_x = cell(row(i), 1, dims) - x.least, at_y = cell(row(i), 2, dims) - y.least;
      for (int32_t kx = first_x[at_x]; kx < first_x[at_x + 1]; kx++)
        for (int32_t ky = first_y[at_y]; ky < first_y[at_y + 1]; ky++)
          plane[(line + to_x[kx]) * width + (to_y[ky] >> 6)] |= (uint64_t)1 << (to_y[ky] & 63);
    }
    starts.push_back((int32_t)n);
    before.resize(columns.size() + 1);
    int32_t count = 0;
    for (size_t word = 0; word < columns.size(); word++) {
      before[word] = count;
      count += (int32_t)__builtin_popcountll(plane[word]);
    }
    before.back() = count;
  }

  // Sets the cells of every column.
  S3D_CLONES void draw_cells() {
    cells.assign((size_t)before.back() * depth, 0);
    const int32_t *first_x = x.first.data(), *to_x = x.to.data();
    const int32_t *first_y = y.first.data(), *to_y = y.to.data();
    const int32_t *first_z = z.first.data(), *to_z = z.to.data();
    const uint64_t* const plane = columns.data();
    uint64_t* const out = cells.data();
    uint64_t own[kDeepest];
    for (size_t c = 0; c + 1 < starts.size(); c++) {
      for (int64_t d = 0; d < depth; d++) own[d] = 0;
      for (int64_t i = starts[c]; i < starts[c + 1]; i++) {
        const int64_t at = row(i)[dims] - z.least;
        for (int32_t k = first_z[at]; k < first_z[at + 1]; k++)
          own[to_z[k] >> 6] |= (uint64_t)1 << (to_z[k] & 63);
      }
      const int32_t* from = row(starts[c]);
      const int64_t line = (from[0] - first_batch) * x.count;
      const int64_t at_x = cell(from, 1, dims) - x.least, at_y = cell(from, 2, dims) - y.least;
      for (int32_t kx = first_x[at_x]; kx < first_x[at_x + 1]; kx++)
        for (int32_t ky = first_y[at_y]; ky < first_y[at_y + 1]; ky++) {
          const int64_t word = (line + to_x[kx]) * width + (to_y[ky] >> 6);
          const uint64_t below = plane[word] & (((uint64_t)1 << (to_y[ky] & 63)) - 1);
          uint64_t* const to = out + (before[word] + __builtin_popcountll(below)) * depth;
          for (int64_t d = 0; d < depth; d++) to[d] |= own[d];
        }
    }
  }

  // Cells of the parts, into counts.
  S3D_CLONES void count_cells() {
    for (int part = 0; part < parts(); part++)
      for (int64_t i = before[begins[part]] * depth; i < before[begins[part + 1]] * depth; i++)
        counts[part + 1] += __builtin_popcountll(cells[i]);
  }
};

// Finds the cells that the rows reach: coarse ones (down), or fine ones (up).
struct Finder : Found {
  const int32_t* coords;
  const int64_t n;
  const Geometry g;
  const int64_t* limits;
  const bool up, in_runs;
  int64_t low = 0;          // last axis: output cell at bit 0 of slab 0
  int64_t per_slab = 1;     // output cells from one slab to the next
  int64_t base = 0, group = 1, width = 64;  // last axis: first input cell, input cells per slab, seen
  uint64_t reached[64];     // output cells, as bits, that an input cell of a slab reaches
  std::atomic<bool> overflow{false};
  std::vector<Run> runs;
  std::vector<std::vector<Run>> found;  // of each part

  Finder(const int32_t* coords, int64_t n, int dims, const int64_t* geometry, const int64_t* limits,
         bool up)
      : Found(dims), coords(coords), n(n), g(geometry, dims), limits(limits), up(up),
        in_runs(g.reach(2) <= kWidest) {
    if (in_runs && n) set_slabs();
  }

  int64_t limit(int axis) const { return limits[axis - 3 + dims]; }

  void set_slabs() {
    int64_t least = INT64_MAX;
    for (int64_t i = 0; i < n; i++) least = std::min<int64_t>(least, coords[i * (1 + dims) + dims]);
    const int64_t stride = g.stride[2], coarse = (63 - g.reach(2)) / stride + 1;
    width = stride * (coarse - 1) + g.reach(2) + 1;
    if (up) {
      base = least;
      group = coarse;
      per_slab = stride * coarse;
      low = stride * base - g.padding[2];
    } else {
      low = floor_divide(least + g.padding[2] - g.reach(2), stride);
      per_slab = coarse;
      group = stride * coarse;
      base = stride * low - g.padding[2];
    }
    for (int64_t bit = 0; bit < 64; bit++) {
      reached[bit] = 0;
      for (int64_t k = 0; k < g.size[2]; k++) {
        const int64_t shift = g.dilation[2] * k, whole = bit - shift;
        if (up && bit < coarse)
          reached[bit] |= (uint64_t)1 << (stride * bit + shift);
        else if (!up && whole >= 0 && whole % stride == 0 && whole / stride < coarse)
          reached[bit] |= (uint64_t)1 << (whole / stride);
      }
    }
  }

  // Adds cells to a run that is one of the last two of the column, or new.
  static void add(std::vector<Run>& out, size_t begin, Row row, uint64_t cells) {
    if (!cells) return;
    size_t at = out.size();
    while (at > begin && out[at - 1].row > row) at--;
    if (at > begin && out[at - 1].row == row)
      out[at - 1].cells |= cells;
    else
      out.insert(out.begin() + at, {row, cells});
  }

  // Runs of output cells that the input rows [begin, end), whole columns, reach along the last axis.
  std::vector<Run> collect(int64_t begin, int64_t end) const {
    std::vector<Run> out;
    out.reserve(end - begin);
    Row column = 0;
    size_t first = 0;
    for (int64_t i = begin; i < end; i++) {
      const int32_t* row = coords + i * (1 + dims);
      if (i == begin || !same_column(row, dims)) {
        column = pack(row, dims);
        first = out.size();
      }
      if (!in_runs) {
        out.push_back({column | biased(row[dims]), 1});
        continue;
      }
      const int64_t place = row[dims] - base, slab = place / group, bit = place - slab * group;
      if (up) {
        add(out, first, column | (Row)slab, per_slab < 64 ? reached[bit] & (((uint64_t)1 << per_slab) - 1) : reached[bit]);
        if (per_slab < 64) add(out, first, column | (Row)(slab + 1), reached[bit] >> per_slab);
      } else {
        if (bit + group < width) add(out, first, column | (Row)(slab - 1), reached[bit + group]);
        if (bit < width) add(out, first, column | (Row)slab, reached[bit]);
      }
    }
    if (in_runs && limit(2) >= 0) clip(out);
    return out;
  }

  // Removes cells outside [0, limit) of the last axis.
  void clip(std::vector<Run>& out) const {
    size_t kept = 0;
    for (Run run : out) {
      const int64_t from = low + (int64_t)(uint32_t)run.row * per_slab, to = limit(2) - from;
      if (from < 0) run.cells = from <= -64 ? 0 : run.cells >> -from << -from;
      if (to < 64) run.cells = to <= 0 ? 0 : run.cells & (((uint64_t)1 << to) - 1);
      if (run.cells) out[kept++] = run;
    }
    out.resize(kept);
  }

  std::vector<Step> steps(int axis) const {
    std::vector<Step> found;
    for (int64_t k = 0; k < g.size[axis]; k++) {
      const int64_t move = g.dilation[axis] * k - g.padding[axis], shift = 32 * (2 - axis);
      found.push_back(up ? Step(g.stride[axis], move, 1, limit(axis), shift)
                         : Step(1, -move, g.stride[axis], limit(axis), shift));
    }
    return found;
  }

  // All parts behind each other.
  void join() {
    if (found.size() == 1) {
      runs = std::move(found[0]);
      return;
    }
    size_t total = 0;
    for (const auto& part : found) total += part.size();
    runs.clear();
    runs.reserve(total);
    for (const auto& part : found) runs.insert(runs.end(), part.begin(), part.end());
  }

  // Part `part` of the merged list of one axis.
  std::vector<Run> merged(int axis, int part) {
    std::vector<Step> own = steps(axis);
    const int count = (int)found.size();
    const Step& middle = own[own.size() / 2];
    const auto cut = [&](int number) {
      if (number == 0 || runs.empty()) return (Row)0;
      return number == count ? kEnd : middle.cut(runs[runs.size() * number / count].row);
    };
    std::vector<Run> together = merge(runs, own, cut(part), cut(part + 1));
    for (const Step& step : own)
      if (step.overflow) overflow = true;
    return together;
  }

  // All stages in one parallel region.
  void find(int64_t threads) {
    const int team = useful_threads(threads, n, 4096), count = team == 1 ? 1 : 4 * team;
    found.resize(count);
    counts.assign(count + 1, 0);
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(dynamic, 1)
      for (int part = 0; part < count; part++)
        found[part] = collect(part_begin(coords, n, dims, part, count),
                              part_begin(coords, n, dims, part + 1, count));
      for (int axis = in_runs ? 1 : 2; axis >= 3 - dims; axis--) {
#pragma omp single
        join();
#pragma omp for schedule(dynamic, 1)
        for (int part = 0; part < count; part++) found[part] = merged(axis, part);
      }
#pragma omp for schedule(dynamic, 1)
      for (int part = 0; part < count; part++)
        for (const Run& run : found[part]) counts[part + 1] += __builtin_popcountll(run.cells);
    }
    sum_up();
  }

  bool write(int part, int32_t* at) const override {
    bool fits = true;
    for (const Run& run : found[part])
      for (uint64_t cells = run.cells; cells; cells &= cells - 1) {
        const uint32_t slab = (uint32_t)run.row;
        const int64_t z = in_runs ? low + slab * per_slab + __builtin_ctzll(cells) : unbiased(slab);
        fits &= z == (int32_t)z;
        for (int c = 0; c < dims; c++)
          at[c] = (int32_t)unbiased((uint32_t)(run.row >> 32 * (dims == 2 && c == 1 ? 1 : 3 - c)));
        at[dims] = (int32_t)z;
        at += 1 + dims;
      }
    return fits;
  }
};

}  // namespace

// The cells that coords [n] reach, ascending: coarse cells (up = 0) or fine ones (up = 1), inside
// limits [dims] (-1: unbounded). Returns a finder to be measured, taken from and thrown away with the
// functions below; 0 when a cell leaves int32. coords and limits must live until then.
EXPORT int64_t s3d_cells_find(const int32_t* coords, int64_t n, int64_t dims, const int64_t* geometry,
                              const int64_t* limits, int64_t up, int64_t threads) {
  Plane* plane = new Plane(coords, n, (int)dims);
  if (plane->find(Geometry(geometry, (int)dims), limits, up)) return (int64_t)(Found*)plane;
  delete plane;
  Finder* finder = new Finder(coords, n, (int)dims, geometry, limits, up);
  finder->find(threads);
  if (!finder->overflow) return (int64_t)(Found*)finder;
  delete finder;
  return 0;
}

EXPORT int64_t s3d_cells_count(int64_t found) { return ((Found*)found)->counts.back(); }

// Writes the cells to coords [count, 1 + dims] and throws what was found away. Returns 1 when one leaves
// int32, else 0.
EXPORT int64_t s3d_cells_take(int64_t given, int32_t* coords, int64_t threads) {
  Found* found = (Found*)given;
  std::atomic<bool> fits{true};
#pragma omp parallel for schedule(dynamic, 1) \
    num_threads(useful_threads(threads, found->counts.back(), 1 << 14))
  for (int part = 0; part < found->parts(); part++)
    if (!found->write(part, coords + found->counts[part] * (1 + found->dims))) fits = false;
  delete found;
  return !fits;
}
