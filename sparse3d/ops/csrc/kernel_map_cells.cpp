// The output cells of strided and transposed convolutions.
//
// Offsets along the axes are independent. Where the cells' surroundings are small enough they are drawn
// (kernel_map_drawn.cpp). Elsewhere the axes are treated one after the other: the last one within runs of
// cells that are kept as bits, the others by merging one shifted list of runs per offset.
#include "kernel_map_index.h"

#include <utility>

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
    Shortage shortage;
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(dynamic, 1)
      for (int part = 0; part < count; part++)
        shortage.within([&] {
          found[part] = collect(part_begin(coords, n, dims, part, count),
                                part_begin(coords, n, dims, part + 1, count));
        });
      for (int axis = in_runs ? 1 : 2; axis >= 3 - dims; axis--) {
#pragma omp single
        shortage.within([&] { join(); });
#pragma omp for schedule(dynamic, 1)
        for (int part = 0; part < count; part++)
          shortage.within([&] { found[part] = merged(axis, part); });
      }
#pragma omp for schedule(dynamic, 1)
      for (int part = 0; part < count; part++)
        for (const Run& run : found[part]) counts[part + 1] += __builtin_popcountll(run.cells);
    }
    shortage.raise();
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
                              const int64_t* limits, int64_t up, int64_t threads) try {
  if (Found* drawn = draw_reached(coords, n, (int)dims, Geometry(geometry, (int)dims), limits, up, threads))
    return (int64_t)drawn;
  std::unique_ptr<Finder> finder(new Finder(coords, n, (int)dims, geometry, limits, up));
  finder->find(threads);
  return finder->overflow ? 0 : (int64_t)(Found*)finder.release();
} OR_SHORTAGE

EXPORT int64_t s3d_cells_count(int64_t found) try { return ((Found*)found)->counts.back(); } OR_SHORTAGE

// Throws away what was found, where nobody can take it.
EXPORT int64_t s3d_cells_drop(int64_t given) try {
  delete (Found*)given;
  return 0;
} OR_SHORTAGE

// Writes the cells to coords [count, 1 + dims] and throws what was found away. Returns 1 when one leaves
// int32, else 0.
EXPORT int64_t s3d_cells_take(int64_t given, int32_t* coords, int64_t threads) try {
  Found* found = (Found*)given;
  std::atomic<bool> fits{true};
#pragma omp parallel for schedule(dynamic, 1) \
    num_threads(useful_threads(threads, found->counts.back(), 1 << 14))
  for (int part = 0; part < found->parts(); part++)
    if (!found->write(part, coords + found->counts[part] * (1 + found->dims))) fits = false;
  delete found;
  return !fits;
} OR_SHORTAGE
