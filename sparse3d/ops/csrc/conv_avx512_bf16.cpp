// bfloat16 convolution kernels on AVX512-BF16, summed in float, for processors without AMX tiles.
//
// An instruction multiplies 16 pairs of numbers and adds both products. The pairs of `forward` are two
// input channels, those of `gradient` two rows.
#include "conv_bf16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16")
#endif

#include "conv_bf16_rows.h"

namespace {

bool available() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}

void nothing() {}

inline __m512 product(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

inline __m512i both(const uint16_t* pair) {  // a pair, 16 times
  int32_t bits;
  memcpy(&bits, pair, sizeof bits);
  return _mm512_set1_epi32(bits);
}

constexpr int64_t W = 16, MOST = 4;  // outputs in a vector, vectors of a tile

// Calls body(first vector, number of vectors) so that near-equal panels cover `vectors` vectors.
template <class Body>
inline void for_panels(int64_t vectors, const Body& body) {
  const int64_t panels = parts(vectors, MOST);
  for (int64_t p = 0; p < panels; p++) {
    const int64_t first = vectors * p / panels;
    body(first, vectors * (p + 1) / panels - first);
  }
}

// ------------------------------------------------------------------------- forward, gradient of x

int64_t packed_size(int64_t cin, int64_t cout) { return parts(cin, 2) * 2 * parts(cout, W) * W; }

// Panel after panel [cin / 2, nv * W outputs, 2 inputs]; zeros past the ends.
void pack(const Bf16Call& q, const uint16_t* w, bool transposed, int64_t k, uint16_t* to) {
  const int64_t w_in = transposed ? 1 : q.cout, w_out = transposed ? q.cin : 1;
  const uint16_t* wk = w + k * q.cin * q.cout;
  for_panels(parts(q.cout, W), [&](int64_t v, int64_t nv) {
    const int64_t columns = least(nv * W, q.cout - v * W);
    for (int64_t i = 0; i < q.cin; i += 2, to += nv * W * 2) {
      const uint16_t* from = wk + i * w_in + v * W * w_out;
      const bool odd = i + 1 == q.cin;
      for (int64_t j = 0; j < columns; j++) {
        to[j * 2] = from[j * w_out];
        to[j * 2 + 1] = odd ? 0 : from[w_in + j * w_out];
      }
      memset(to + columns * 2, 0, sizeof(uint16_t) * 2 * (nv * W - columns));
    }
  });
}

inline void fetch(const void* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)row + i);
}

// MR rows x NV vectors of outputs += STEPS pairs of input channels.
template <int NV, int MR, int STEPS>
inline void steps(const uint16_t* const* x, int64_t c, const uint16_t* w, __m512 (&sum)[MR][NV]) {
#pragma GCC unroll 8
  for (int s = 0; s < STEPS; s++) {
    __m512i b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) b[v] = _mm512_load_si512(w + (s * NV + v) * W * 2);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
      const __m512i a = both(x[r] + c + s * 2);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sum[r][v] = product(sum[r][v], a, b[v]);
    }
  }
}

// Pairs of rows to bring into the cache during other work, a few at a time: all at once they hold it up.
struct Coming {
  const void* x;
  const int32_t* in;
  const void* y;
  const uint16_t* out;
  int64_t count, x_row, y_row, y_bytes;  // bytes of rows, and of what is wanted of y's

  int64_t share(int64_t turns) const { return turns ? parts(count, turns) : 0; }
  void fetch_to(int64_t& done, int64_t end) const {
    for (end = least(end, count); done < end; done++) {
      fetch((const char*)x + in[done] * x_row, x_row);
      fetch((const char*)y + out[done] * y_row, y_bytes);
    }
  }
};

// MR output rows x NV vectors live in registers while input channels stream by. FIRST: they begin
// here, whatever is in memory. As a function on its own it would read rows' addresses from memory.
template <int NV, int MR, bool FIRST>
__attribute__((always_inline)) inline void tile(const uint16_t* const* x, const uint16_t* w, int64_t cin,
                                                float* const* y, const Coming& coming) {
  constexpr int STEPS = NV > 2 ? 2 : 8;  // several at once: row pointers are short of registers
  constexpr int64_t PAIR = NV * W * 2;
  __m512 sum[MR][NV];
  for (int r = 0; r < MR; r++)
    for (int v = 0; v < NV; v++)
      sum[r][v] = FIRST ? _mm512_setzero_ps() : _mm512_load_ps(y[r] + W * v);
  const int64_t share = coming.share(cin / (2 * STEPS));
  int64_t c = 0, done = 0;
  for (; c + 2 * STEPS <= cin; c += 2 * STEPS, w += STEPS * PAIR) {
    coming.fetch_to(done, done + share);
    steps<NV, MR, STEPS>(x, c, w, sum);
  }
  if (STEPS > 1)
    for (; c + 2 <= cin; c += 2, w += PAIR) steps<NV, MR, 1>(x, c, w, sum);
  if (c < cin)  // the last channel is alone: what follows it in memory is another row's, or nobody's
    for (int r = 0; r < MR; r++) {
      const __m512i a = _mm512_set1_epi32(x[r][c]);
      for (int v = 0; v < NV; v++) sum[r][v] = product(sum[r][v], a, _mm512_load_si512(w + v * W * 2));
    }
  for (int r = 0; r < MR; r++)
    for (int v = 0; v < NV; v++) _mm512_store_ps(y[r] + W * v, sum[r][v]);
}

// What the pairs of a list have in common.
struct Operands {
  const uint16_t *x, *w;
  float *y, *spare;  // rows of `width`; `spare` is one more, for what is not wanted
  int64_t cin, width;
};

// The last n <= MR pairs of a list as a full tile, whose missing rows go nowhere.
template <int NV, int MR, bool FIRST>
__attribute__((noinline)) void last_tile(const Operands& q, const int32_t* in, const uint16_t* out, int64_t n) {
  const uint16_t* a[MR];
  float* o[MR];
  for (int j = 0; j < MR; j++) {
    a[j] = q.x + in[j < n ? j : 0] * q.cin;
    o[j] = j < n ? q.y + out[j] * q.width : q.spare;
  }
  tile<NV, MR, FIRST>(a, q.w, q.cin, o, {});
}

// The n pairs of a list, for NV vectors of outputs. After `all` pairs the block's lists end.
template <int NV, bool FIRST>
void pairs_times_weight(const Operands& q, const int32_t* in, const uint16_t* out, int64_t n, int64_t all) {
  constexpr int MR = NV == 1 ? 14 : NV == 2 ? 12 : NV == 3 ? 8 : 6;
  const uint16_t *a[MR], *x = q.x;
  float *o[MR], *y = q.y;
  const int64_t cin = q.cin, width = q.width;
  int64_t r = 0;
  for (; r + MR <= n; r += MR) {
    for (int j = 0; j < MR; j++) {
      a[j] = x + in[r + j] * cin;
      o[j] = y + out[r + j] * width;
    }
    const int64_t next = r + 2 * MR;  // rows of the tile after the next, which begins too soon
    const int64_t count = least(MR, all - next);
    const Coming coming = {x, in + next, y, out + next, count, cin * 2, width * 4, NV * W * 4};
    tile<NV, MR, FIRST>(a, q.w, cin, o, coming);
  }
  if (n - r > MR / 2)
    last_tile<NV, MR, FIRST>(q, in + r, out + r, n - r);
  else if (n > r)
    last_tile<NV, MR / 2, FIRST>(q, in + r, out + r, n - r);
}

// pairs_times_weight for nv vectors of outputs.
template <bool FIRST>
inline auto panel(int64_t nv) {
  return nv == 1   ? pairs_times_weight<1, FIRST>
         : nv == 2 ? pairs_times_weight<2, FIRST>
         : nv == 3 ? pairs_times_weight<3, FIRST>
                   : pairs_times_weight<4, FIRST>;
}

void forward(const Bf16Call& q, int64_t b, Scratch& scratch) {
  const ConvPairs& pairs = *q.pairs;
  const int64_t first_row = b * pairs.block, rows = least(pairs.block, q.n_out - first_row);
  const int64_t vectors = parts(q.cout, W), width = vectors * W;
  float* sums = (float*)scratch.get(sizeof(float) * (rows + 1) * width);
  const int64_t end = pairs.starts[(b + 1) * q.offsets];
  const auto pairs_of = [&](int64_t k) {
    const int64_t* range = pairs.starts + q.list(b, k);
    return range[1] - range[0];
  };
  const auto add = [&](int64_t k, bool begins) {
    const int64_t first = pairs.starts[q.list(b, k)];
    for_panels(vectors, [&](int64_t v, int64_t nv) {
      const uint16_t* w = q.w + k * q.w_offset + v * W * parts(q.cin, 2) * 2;
      const Operands operands = {q.x, w, sums + v * W, sums + rows * width + v * W, q.cin, width};
      const auto multiply = begins ? panel<true>(nv) : panel<false>(nv);
      multiply(operands, pairs.in + first, pairs.out + first, pairs_of(k), end - first);
    });
  };
  int64_t whole = 0;  // an offset that every row meets, if there is one, begins the sums: no zeros
  while (whole < q.offsets && pairs_of(whole) < rows) whole++;
  const int64_t cleared = whole < q.offsets ? rows : 0;
  memset(sums + cleared * width, 0, sizeof(float) * (rows + 1 - cleared) * width);
  if (whole < q.offsets) add(whole, true);
  for (int64_t k = 0; k < q.offsets; k++)
    if (k != whole) add(k, false);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < q.cout; c += W) write(q, _mm512_load_ps(sums + r * width + c), first_row + r, c);
}

// ------------------------------------------------------------------------------- gradient of w

// Pairs that are laid out at a time: 64 outputs of theirs stay in the L1 cache.
constexpr int64_t CHUNK = 192;

int64_t sum_size(int64_t cin, int64_t cout) { return parts(cin, W) * W * parts(cout, W) * W; }

// Two rows of `width` channels as [width / 16][16 channels, 2 rows], `apart` elements from each other.
inline void lay_out_pair(const uint16_t* a, const uint16_t* b, int64_t width, uint16_t* to, int64_t apart) {
  __m512i half[2];
  for (; width >= 32; width -= 32, a += 32, b += 32, to += 2 * apart) {
    interleave(_mm512_loadu_si512(a), _mm512_loadu_si512(b), &half[0], &half[1]);
    _mm512_store_si512(to, half[0]);
    _mm512_store_si512(to + apart, half[1]);
  }
  if (!width) return;
  const __mmask32 rest = lanes32(width);
  interleave(_mm512_maskz_loadu_epi16(rest, a), _mm512_maskz_loadu_epi16(rest, b), &half[0], &half[1]);
  _mm512_store_si512(to, half[0]);
  if (width > W) _mm512_store_si512(to + apart, half[1]);
}

// n rows as [width / 16][(n + 1) / 2][16 channels, 2 rows]; zeros past the ends.
template <class Row>
inline void lay_out(const uint16_t* from, int64_t width, const Row* rows, int64_t n, const uint16_t* zeros,
                    uint16_t* to) {
  const int64_t apart = parts(n, 2) * W * 2;
  int64_t p = 0;
  for (; p + 2 <= n; p += 2, to += W * 2)
    lay_out_pair(from + rows[p] * width, from + rows[p + 1] * width, width, to, apart);
  if (p < n) lay_out_pair(from + rows[p] * width, zeros, width, to, apart);
}

// MR input channels x NV vectors of output channels += `depth` pairs of rows. Unrolled by name, because
// the compiler keeps the sums in memory otherwise.
template <int NV, int MR>
inline void gradient_tile(const uint16_t* x, const uint16_t* dy, int64_t depth, float* sum, int64_t width,
                          const Coming& coming, int64_t& done, int64_t share) {
  const int64_t apart = depth * W * 2;
  __m512 acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) acc[r][v] = _mm512_load_ps(sum + r * width + v * W);
  for (int64_t p = 0; p < depth; p++, x += W * 2, dy += W * 2) {
    if (p % 4 == 0) coming.fetch_to(done, done + share);
    __m512i b[NV];
    for (int v = 0; v < NV; v++) b[v] = _mm512_load_si512(dy + v * apart);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
      const __m512i a = both(x + r * 2);
      for (int v = 0; v < NV; v++) acc[r][v] = product(acc[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) _mm512_store_ps(sum + r * width + v * W, acc[r][v]);
}

template <int NV>
void gradient_rows(const uint16_t* x, const uint16_t* dy, int64_t depth, int64_t cin, float* sum, int64_t width,
                   const Coming& coming, int64_t& done, int64_t share) {
  constexpr int MR = NV == 1 ? 16 : NV == 4 ? 4 : 8;  // divides the 16 channels that lie side by side
  for (int64_t c = 0; c < cin; c += MR)
    gradient_tile<NV, MR>(x + c / W * depth * W * 2 + c % W * 2, dy, depth, sum + c * width, width, coming, done,
                          share);
}

// The pairs from p on, or where list k of block b ends there, those of the list that is next.
Coming coming_pairs(const Bf16Call& q, int64_t b, int64_t k, int64_t p) {
  int64_t end = q.pairs->starts[q.list(b, k) + 1];
  if (p == end && k + 1 < q.offsets) {
    p = q.pairs->starts[q.list(b, k + 1)];
    end = q.pairs->starts[q.list(b, k + 1) + 1];
  }
  const uint16_t* dy = q.dy + b * q.pairs->block * q.cout;
  const int64_t count = least(CHUNK, end - p);
  return {q.x, q.pairs->in + p, dy, q.pairs->out + p, count, q.cin * 2, q.cout * 2, q.cout * 2};
}

void gradient(const Bf16Call& q, int64_t b, int64_t k, float* sum, Scratch& scratch) {
  const ConvPairs& pairs = *q.pairs;
  const int64_t vectors = parts(q.cout, W), width = vectors * W, inputs = parts(q.cin, W);
  const int64_t widest = parts(q.cin > q.cout ? q.cin : q.cout, 32) * 32;
  uint16_t* zeros = (uint16_t*)scratch.get(sizeof(uint16_t) * (widest + CHUNK * W * (inputs + vectors)));
  uint16_t* x = zeros + widest;
  memset(zeros, 0, sizeof(uint16_t) * widest);
  const int64_t end = pairs.starts[q.list(b, k) + 1];
  for (int64_t p = pairs.starts[q.list(b, k)]; p < end; p += CHUNK) {
    const int64_t n = least(CHUNK, end - p), depth = parts(n, 2);
    uint16_t* dy = x + inputs * depth * W * 2;
    lay_out(q.x, q.cin, pairs.in + p, n, zeros, x);
    lay_out(q.dy + b * pairs.block * q.cout, q.cout, pairs.out + p, n, zeros, dy);
    const Coming coming = coming_pairs(q, b, k, p + n);
    const int64_t share = coming.share(parts(depth, 4) * parts(vectors, MOST) * inputs);
    int64_t done = 0;
    for_panels(vectors, [&](int64_t v, int64_t nv) {
      const auto add = nv == 1   ? gradient_rows<1>
                       : nv == 2 ? gradient_rows<2>
                       : nv == 3 ? gradient_rows<3>
                                 : gradient_rows<4>;
      add(x, dy + v * depth * W * 2, depth, q.cin, sum + v * W, width, coming, done, share);
    });
  }
}

void unpack(const Bf16Call& q, const float* sum, float* dw) {
  const int64_t width = parts(q.cout, W) * W;
  for (int64_t i = 0; i < q.cin; i++) memcpy(dw + i * q.cout, sum + i * width, sizeof(float) * q.cout);
}

}  // namespace

const Bf16Kernels conv_avx512_bf16 = {available, nothing,  nothing,  packed_size, pack,
                                      forward,   sum_size, gradient, unpack};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
static bool available() { return false; }
const Bf16Kernels conv_avx512_bf16 = {available};
#endif
