// Products with the transport kernel, for one instruction set: included by transport.cpp once per level,
// inside a namespace of its own, with S3D_LANES floats per vector.

constexpr int kLanes = S3D_LANES;
constexpr int kTileVectors = S3D_LANES == 16 ? 4 : 2;
constexpr int kTileRows = 4;
typedef float Lanes __attribute__((vector_size(4 * S3D_LANES), aligned(4 * S3D_LANES)));
typedef float Loose __attribute__((vector_size(4 * S3D_LANES), aligned(4)));
typedef int32_t IntLanes __attribute__((vector_size(4 * S3D_LANES), aligned(4 * S3D_LANES)));

static inline __attribute__((always_inline)) Lanes spread(float x) { return x - (Lanes){}; }

// exp of x < 88, relative error below 2e-7; below exp(-87) it stays there.
static inline __attribute__((always_inline)) Lanes exponential(const Lanes& at) {
  const Lanes x = at < -87.0f ? spread(-87.0f) : at;
  const Lanes shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to whole numbers
  const Lanes whole = shifted - 12582912.0f;
  const Lanes r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntLanes bits = (__builtin_convertvector(whole, IntLanes) + 127) << 23;
  return p * (Lanes)bits;
}

// out [kTileRows, VECTORS * kLanes] (+)= a [kTileRows, depth] b [depth, ...]
template <int VECTORS>
static inline __attribute__((always_inline)) void tile(const float* a, int64_t a_step, const float* b,
                                                       int64_t b_step, int64_t depth, float* out,
                                                       int64_t out_step, bool add) {
  Lanes sum[kTileRows][VECTORS];
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < VECTORS; ++v)
      sum[r][v] = add ? (Lanes)*(const Loose*)(out + r * out_step + v * kLanes) : spread(0.0f);
  for (int64_t k = 0; k < depth; ++k)
    for (int v = 0; v < VECTORS; ++v) {
      const Lanes right = *(const Loose*)(b + k * b_step + v * kLanes);
      for (int r = 0; r < kTileRows; ++r) sum[r][v] += a[r * a_step + k] * right;
    }
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < VECTORS; ++v) *(Loose*)(out + r * out_step + v * kLanes) = sum[r][v];
}

// out [kBlock, columns] (+)= a [kBlock, depth] b [depth, columns]; columns: a multiple of 16.
static void multiply(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t depth,
                     float* out, int64_t columns, bool add) {
  constexpr int kWide = kTileVectors * kLanes;
  for (int64_t row = 0; row < kBlock; row += kTileRows) {
    const float* left = a + row * a_step;
    float* to = out + row * columns;
    int64_t column = 0;
    for (; column + kWide <= columns; column += kWide)
      tile<kTileVectors>(left, a_step, b + column, b_step, depth, to + column, columns, add);
    for (; column < columns; column += kLanes)
      tile<1>(left, a_step, b + column, b_step, depth, to + column, columns, add);
  }
}

// scores [kBlock, kBlock] of features become the kernel: exp((score - 1) / eps) within the radius.
static void kernel(const Side& rows, const Side& columns, int64_t row, int64_t column, float inverse,
                   float radius2, float* scores) {
  const float *x1 = columns.place[0] + column * kBlock, *y1 = columns.place[1] + column * kBlock,
              *z1 = columns.place[2] + column * kBlock;
  for (int64_t i = 0; i < kBlock; ++i) {
    const int64_t at = row * kBlock + i;
    const float x = rows.place[0][at], y = rows.place[1][at], z = rows.place[2][at];
    float* line = scores + i * kBlock;
    for (int64_t j = 0; j < kBlock; j += kLanes) {
      const Lanes dx = *(const Loose*)(x1 + j) - x, dy = *(const Loose*)(y1 + j) - y,
                  dz = *(const Loose*)(z1 + j) - z;
      const Lanes far = dx * dx + dy * dy + dz * dz;
      const Lanes value = exponential((*(const Loose*)(line + j) - 1.0f) * inverse);
      *(Loose*)(line + j) = far < radius2 ? value : spread(0.0f);
    }
  }
}

// One block of rows of (K o P Q^T) X, or of K X where there is no P.
static void block_of_rows(const Problem& problem, int64_t row, float* memory) {
  const Side &rows = *problem.rows, &columns = *problem.columns;
  float *scores = memory, *slopes = memory + kBlock * kBlock, *sum = slopes + kBlock * kBlock;
  const int64_t width = problem.width, rank = problem.rank, channels = problem.channels;
  std::fill(sum, sum + kBlock * width, 0.0f);
  for (int64_t column = 0; column < columns.blocks; ++column) {
    if (!rows.touches(row, columns, column, problem.radius2)) continue;
    multiply(rows.features + row * kBlock * channels, channels,
             columns.turned + column * kBlock * channels, kBlock, channels, scores, kBlock, false);
    kernel(rows, columns, row, column, problem.inverse, problem.radius2, scores);
    if (problem.left) {
      multiply(problem.left + row * kBlock * rank, rank, problem.right + column * kBlock * rank, kBlock,
               rank, slopes, kBlock, false);
      for (int64_t i = 0; i < kBlock * kBlock; ++i) scores[i] *= slopes[i];
    }
    multiply(scores, kBlock, problem.values + column * kBlock * width, width, kBlock, sum, width, true);
  }
  std::copy(sum, sum + kBlock * width, problem.out + row * kBlock * width);
}
