// Layers of a set convolution over a chunk of rows, for one instruction set: included by set_conv.cpp
// once per level, inside a namespace of its own, with S3D_LANES floats per vector.

constexpr int kLanes = S3D_LANES;
typedef float Loose __attribute__((vector_size(4 * S3D_LANES), aligned(4)));

static inline __attribute__((always_inline)) Loose spread(float x) { return x - (Loose){}; }

// out [ROWS, VECTORS * kLanes] = a [ROWS, depth] b [depth, step]
template <int ROWS, int VECTORS>
static inline __attribute__((always_inline)) void tile(const float* a, const float* b, int64_t step,
                                                       float* out) {
  Loose sum[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = spread(0.0f);
  for (int64_t k = 0; k < step; ++k) {
    Loose right[VECTORS];
    for (int v = 0; v < VECTORS; ++v) right[v] = *(const Loose*)(b + k * step + v * kLanes);
    for (int r = 0; r < ROWS; ++r) {
      const Loose left = spread(a[r * step + k]);
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) *(Loose*)(out + r * step + v * kLanes) = sum[r][v];
}

// out [rows, width] = a [rows, width] b [width, width]; rows: a multiple of kTile, width: of 16.
static void multiply(const float* a, const float* b, int64_t rows, int64_t width, float* out) {
  constexpr int kWide = S3D_LANES == 16 ? 4 : 2;
  for (int64_t row = 0; row < rows; row += kTile) {
    const float* left = a + row * width;
    float* to = out + row * width;
    int64_t at = 0;
    for (; at + kWide * kLanes <= width; at += kWide * kLanes)
      tile<kTile, kWide>(left, b + at, width, to + at);
    for (; at < width; at += kLanes) tile<kTile, 1>(left, b + at, width, to + at);
  }
}

// Sums over rows of x - centre, and of its square, added to sums [2 * width].
static void add_moments(const float* x, int64_t rows, int64_t width, const float* centre,
                        double* sums) {
  for (int64_t c = 0; c < width; c += kLanes) {
    const Loose middle = *(const Loose*)(centre + c);
    for (int64_t from = 0; from < rows; from += kRun) {
      const int64_t to = std::min(from + kRun, rows);
      Loose first = spread(0.0f), second = spread(0.0f);
      for (int64_t r = from; r < to; ++r) {
        const Loose off = *(const Loose*)(x + r * width + c) - middle;
        first += off;
        second += off * off;
      }
      for (int i = 0; i < kLanes; ++i) {
        sums[c + i] += first[i];
        sums[width + c + i] += second[i];
      }
    }
  }
}

// y = leaky(x * scale + shift); may be in place.
static void activate(const float* x, int64_t rows, int64_t width, const float* scale,
                     const float* shift, float slope, float* y) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; c += kLanes) {
      const Loose value =
          *(const Loose*)(x + r * width + c) * *(const Loose*)(scale + c) + *(const Loose*)(shift + c);
      *(Loose*)(y + r * width + c) = value < 0.0f ? value * slope : value;
    }
}

// The first layer: own features of the neighbours and their offsets times `weight` [3, width].
static void first_layer(const Problem& p, int64_t row, int64_t rows, float* out) {
  const int64_t width = p.width;
  for (int64_t r = 0; r < rows; ++r) {
    const float *own = p.own + p.index[row + r] * width, *offset = p.offsets + 3 * (row + r);
    const float x = offset[0], y = offset[1], z = offset[2];
    for (int64_t c = 0; c < width; c += kLanes)
      *(Loose*)(out + r * width + c) = *(const Loose*)(own + c) + x * *(const Loose*)(p.weight1 + c) +
                                       y * *(const Loose*)(p.weight1 + width + c) +
                                       z * *(const Loose*)(p.weight1 + 2 * width + c);
  }
}

// One chunk of points through one of the three passes; memory: two chunks of rows.
static void pass(const Problem& p, int number, int64_t chunk, float* memory) {
  const int64_t width = p.width, from = chunk * kPoints, to = std::min(from + kPoints, p.points);
  const int64_t row = from * p.k, rows = (to - from) * p.k, whole = (rows + kTile - 1) / kTile * kTile;
  float *hidden = memory, *next = memory + p.chunk_rows * width;
  double* sums = p.sums + chunk * 2 * width;
  const Layer& layer = p.layers[number];
  if (number < 2) first_layer(p, row, rows, hidden);
  if (number == 0) return add_moments(hidden, rows, width, layer.centre, sums);
  const Layer& before = p.layers[number - 1];
  if (number == 1) {
    activate(hidden, rows, width, before.scale, before.shift, p.slope, hidden);
    multiply(hidden, layer.weight, whole, width, next);
    std::copy_n(next, rows * width, p.rows + row * width);
    return add_moments(next, rows, width, layer.centre, sums);
  }
  activate(p.rows + row * width, rows, width, before.scale, before.shift, p.slope, hidden);
  multiply(hidden, layer.weight, whole, width, next);
  add_moments(next, rows, width, layer.centre, sums);
  for (int64_t point = from; point < to; ++point)
    for (int64_t c = 0; c < width; c += kLanes) {
      const float* line = next + (point - from) * p.k * width + c;
      Loose best = *(const Loose*)line;
      for (int64_t j = 1; j < p.k; ++j) {
        const Loose other = *(const Loose*)(line + j * width);
        best = other > best ? other : best;
      }
      *(Loose*)(p.best + point * width + c) = best;
    }
}

static void last_norm(const Problem& p, int64_t point) {
  const Layer& layer = p.layers[2];
  activate(p.best + point * p.width, 1, p.width, layer.scale, layer.shift, p.slope,
           p.best + point * p.width);
}
