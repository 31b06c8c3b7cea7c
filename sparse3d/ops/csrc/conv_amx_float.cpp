// float convolution kernels on AMX tiles, which multiply bfloat16.
//
// A float's 24 significant bits are cut into three numbers of bfloat16, exactly. Of the nine products of
// two numbers so cut six are summed, in float; the other three are below 2^-22 of the whole. One operand
// is cut by truncation, which is cheap, the other by rounding, so that what is left out has any sign.
// What is below 2^-126 counts as zero: numbers below 1e-30 lose digits. Infinite ones give NaN.
#include "conv.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <string.h>

#include <vector>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wuninitialized"  // in gcc's own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")
#endif

#include "conv_amx.h"
#include "conv_avx512_vec.h"

namespace {
struct Vec : Avx512 {};
}  // namespace

#include "conv_rows.h"

namespace {

constexpr int64_t PAIRS = 32;         // pairs of rows that are multiplied at a time: two tiles
constexpr int64_t PART = 2 * TILE;    // one part of 32 x 32 numbers
constexpr int64_t SQUARE = 3 * PART;  // all three

// The high and the low 16 bits of each element of a, in the low and the high half of an element.
enum Cut { TRUNCATED, ROUNDED };

inline __m512i upper() { return _mm512_set1_epi32((int)0xffff0000); }

// The first part of x, in the upper halves; x becomes what is left.
template <Cut CUT>
inline __m512i take(__m512& x) {
  __m512i bits = _mm512_castps_si512(x);
  if (CUT == ROUNDED) bits = _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000));
  bits = _mm512_and_si512(bits, upper());
  x = _mm512_sub_ps(x, _mm512_castsi512_ps(bits));
  return bits;
}

inline __m512i beside(__m512i low, __m512i high) { return _mm512_or_si512(_mm512_srli_epi32(low, 16), high); }

// Writes the three parts of a and b, PART apart, each element of a beside that of b.
template <Cut CUT>
inline void cut(__m512 a, __m512 b, uint16_t* to) {
  _mm512_store_si512(to, beside(take<CUT>(a), take<CUT>(b)));
  _mm512_store_si512(to + PART, beside(take<CUT>(a), take<CUT>(b)));
  _mm512_store_si512(to + 2 * PART, beside(_mm512_castps_si512(a), take<TRUNCATED>(b)));
}

// Where at most 16 numbers are left to sum over, parts lie side by side: three products of tiles then give
// (h h + h m) + (m h + l h) + (h l + m m).
inline void cut_left(__m512 a, uint16_t* to) {
  const __m512i h = take<TRUNCATED>(a), m = take<TRUNCATED>(a), l = take<TRUNCATED>(a);
  _mm512_store_si512(to, beside(h, h));
  _mm512_store_si512(to + PART, beside(m, l));
  _mm512_store_si512(to + 2 * PART, beside(h, m));
}

inline void cut_right(__m512 b, uint16_t* to) {
  const __m512i h = take<ROUNDED>(b), m = take<ROUNDED>(b), l = take<TRUNCATED>(b);
  _mm512_store_si512(to, beside(h, m));
  _mm512_store_si512(to + PART, beside(h, h));
  _mm512_store_si512(to + 2 * PART, beside(l, m));
}

inline bool narrow(int64_t channels) { return channels <= 16; }

// Tiles 0 to 3 += a times b: two tiles of rows (one, unless TALL) times two of columns (one, unless WIDE).
template <bool WIDE, bool TALL>
inline void multiply_part(const uint16_t* a) {
  _tile_loadd(4, a, 64);
  _tile_dpbf16ps(0, 4, 6);
  if (WIDE) _tile_dpbf16ps(1, 4, 7);
  if (!TALL) return;
  _tile_loadd(5, a + TILE, 64);
  _tile_dpbf16ps(2, 5, 6);
  if (WIDE) _tile_dpbf16ps(3, 5, 7);
}

// Between the products it calls meanwhile(number, of so many): work for the other units.
template <bool WIDE, bool TALL, class Meanwhile>
inline void multiply(const uint16_t* a, const uint16_t* b, bool narrow, const Meanwhile& meanwhile) {
  for (int64_t j = 0, n = 0; j < 3; j++, b += PART) {
    _tile_loadd(6, b, 64);
    if (WIDE) _tile_loadd(7, b + TILE, 64);
    if (narrow) {
      multiply_part<WIDE, TALL>(a + j * PART);
      meanwhile(j, 3);
    } else {
      for (int64_t i = 0; i + j < 3; i++) {
        multiply_part<WIDE, TALL>(a + i * PART);
        meanwhile(n++, 6);
      }
    }
  }
}

inline void clear() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

template <bool WIDE, bool TALL>
inline void keep(float* corner) {
  _tile_stored(0, corner, 128);
  if (WIDE) _tile_stored(1, corner + 16, 128);
  if (TALL) _tile_stored(2, corner + 16 * 32, 128);
  if (WIDE && TALL) _tile_stored(3, corner + 16 * 32 + 16, 128);
}

// A corner of [32, 32] sums and the rows to which it will be added.
struct Sums {
  const float* corner;
  const uint16_t* row;
  int64_t rows, width, columns;
  float* to;
};

// Rows from `begin` to `end` of the corner.
inline void add(const Sums& s, int64_t begin, int64_t end) {
  const __mmask16 first = lanes16(s.columns), second = lanes16(s.columns - 16);
  for (int64_t j = begin; j < least(end, s.rows); j++) {
    float* to = s.to + s.row[j] * s.width;
    const float* from = s.corner + j * 32;
    _mm512_mask_storeu_ps(to, first, _mm512_add_ps(_mm512_maskz_loadu_ps(first, to), _mm512_load_ps(from)));
    if (!second) continue;
    to += 16;
    from += 16;
    _mm512_mask_storeu_ps(to, second, _mm512_add_ps(_mm512_maskz_loadu_ps(second, to), _mm512_load_ps(from)));
  }
}

// ------------------------------------------------------------------------- forward, gradient of x

void lay_out(ConvCall& q) {
  q.w_group = parts(q.cin, 32) * parts(q.cout, 32) * SQUARE / 2;
  q.w_offset = q.w_group;
}

// Rows i of w, 16 outputs from d on, for 16 input channels from c on; zeros past the ends.
inline void weights(const ConvCall& q, const float* wk, bool transposed, int64_t c, int64_t d, __m512* row) {
  const __mmask16 inputs = lanes16(q.cin - c), outputs = lanes16(q.cout - d);
  if (!transposed) {
    for (int64_t i = 0; i < 16; i++)
      row[i] = c + i < q.cin ? _mm512_maskz_loadu_ps(outputs, wk + (c + i) * q.cout + d) : _mm512_setzero_ps();
    return;
  }
  __m512i turned[16];
  for (int64_t j = 0; j < 16; j++)
    turned[j] = d + j < q.cout ? _mm512_maskz_loadu_epi32(inputs, wk + (d + j) * q.cin + c) : _mm512_setzero_si512();
  transpose(turned, row);
}

// [cout / 32][cin / 32][3 parts][2 tiles of 16 outputs], channels i and 16 + i side by side.
void pack(const ConvCall& q, const float* w, bool transposed, int64_t k, float* to) {
  const float* wk = w + k * q.cin * q.cout;
  uint16_t* square = (uint16_t*)to;
  for (int64_t d = 0; d < q.cout; d += 32)
    for (int64_t c = 0; c < q.cin; c += 32, square += SQUARE)
      for (int64_t half = 0; half < 2; half++) {
        alignas(64) __m512 a[16], b[16];
        weights(q, wk, transposed, c, d + half * 16, a);
        if (!narrow(q.cin - c)) weights(q, wk, transposed, c + 16, d + half * 16, b);
        for (int64_t i = 0; i < 16; i++) {
          uint16_t* row = square + half * TILE + i * 32;
          narrow(q.cin - c) ? cut_right(a[i], row) : cut<ROUNDED>(a[i], b[i], row);
        }
      }
}

// Up to PAIRS pairs of one offset.
struct Batch {
  const int32_t* in;
  const uint16_t* out;
  int64_t count, offset;
};

// 32 channels from c on of rows `begin` to `end` of a batch.
inline void gather(const ConvCall& q, const Batch& batch, int64_t begin, int64_t end, int64_t c, uint16_t* square) {
  const float* x = q.x + c;
  const __mmask16 first = lanes16(q.cin - c), second = lanes16(q.cin - c - 16);
  end = least(end, batch.count);
  if (!second)
    for (int64_t j = begin; j < end; j++)
      cut_left(_mm512_maskz_loadu_ps(first, x + batch.in[j] * q.cin), square + j * 32);
  else
    for (int64_t j = begin; j < end; j++) {
      const float* row = x + batch.in[j] * q.cin;
      cut<TRUNCATED>(_mm512_loadu_ps(row), _mm512_maskz_loadu_ps(second, row + 16), square + j * 32);
    }
}

inline void fetch(const ConvCall& q, const Batch& batch, int64_t begin, int64_t end, int64_t c) {
  for (int64_t j = begin; j < least(end, batch.count); j++) {
    __builtin_prefetch(q.x + batch.in[j] * q.cin + c);
    __builtin_prefetch(q.x + batch.in[j] * q.cin + c + 16);
  }
}

// The rows of a batch are cut into squares, of 32 channels each, one square before they are multiplied: tiles are
// not loaded from what has just been stored. A ring holds those of a batch and one more. Sums are added
// to their rows while the next are multiplied.
struct Pipeline {
  const ConvCall& q;
  const int64_t squares;  // of a batch
  uint16_t* ring;
  float* corners;  // two
  Sums waiting;
  int64_t place;  // of the present batch in the ring

  uint16_t* square(int64_t c) const {
    const int64_t at = place + c;
    return ring + (at > squares ? at - squares - 1 : at) * SQUARE;
  }
};

// 32 outputs of a batch; in the first of these passes the squares that come next are made.
template <bool WIDE, bool TALL>
inline void multiply_rows(Pipeline& line, const Batch& batch, const Batch& next, const Batch& later, bool first, const uint16_t* w,
                          Sums sums) {
  const ConvCall& q = line.q;
  clear();
  for (int64_t c = 0; c < line.squares; c++) {
    const bool last = c + 1 == line.squares;
    const Batch& source = last ? next : batch;
    const int64_t channel = last ? 0 : (c + 1) * 32;
    uint16_t* made = line.square(c + 1);
    multiply<WIDE, TALL>(line.square(c), w + c * SQUARE, narrow(q.cin - c * 32), [&](int64_t n, int64_t of) {
      const int64_t begin = n * PAIRS / of, end = (n + 1) * PAIRS / of;
      if (first) gather(q, source, begin, end, channel, made);
      if (first) fetch(q, later, begin, end, c * 32);
      if (last) add(line.waiting, begin, end);
    });
  }
  float* corner = line.corners + (line.waiting.corner == line.corners ? 1024 : 0);
  keep<WIDE, TALL>(corner);
  sums.corner = corner;
  line.waiting = sums;
}

std::vector<Batch> batches(const ConvCall& q, int64_t b) {
  std::vector<Batch> result;
  for (int64_t k = 0; k < q.offsets; k++) {
    const int64_t* range = q.pairs.starts + q.list(b, k);
    for (int64_t p = range[0]; p < range[1]; p += PAIRS)
      result.push_back({q.pairs.in + p, q.pairs.out + p, least(PAIRS, range[1] - p), k});
  }
  return result;
}

void forward(const ConvCall& q, int64_t b) {
  float* rows = q.y + b * q.pairs.block * q.cout;
  const int64_t squares = parts(q.cin, 32);
  const auto memory = cache_lines<float>(2048 + (squares + 1) * SQUARE / 2);
  Pipeline line = {q, squares, (uint16_t*)(memory.get() + 2048), memory.get(), {nullptr, nullptr, 0, 0, 0, nullptr}, 0};
  start_rows(q, rows, q.length(b));
  begin_tiles();
  std::vector<Batch> all = batches(q, b);
  all.resize(all.size() + 2, {nullptr, nullptr, 0, 0});
  gather(q, all[0], 0, PAIRS, 0, line.square(0));
  for (size_t i = 0; i + 2 < all.size(); i++) {
    const Batch& batch = all[i];
    const uint16_t* w = (const uint16_t*)(q.w + batch.offset * q.w_offset);
    for (int64_t d = 0; d < q.cout; d += 32, w += squares * SQUARE) {
      const Sums sums = {nullptr, batch.out, batch.count, q.cout, q.cout - d, rows + d};
      const bool wide = q.cout - d > 16, tall = batch.count > 16;
      const auto step = wide ? tall ? multiply_rows<true, true> : multiply_rows<true, false>
                             : tall ? multiply_rows<false, true> : multiply_rows<false, false>;
      step(line, batch, all[i + 1], all[i + 2], d == 0, w, sums);
    }
    line.place += squares;
    if (line.place > squares) line.place -= squares + 1;
  }
  end_tiles();
  add(line.waiting, 0, PAIRS);
  finish_rows(q, rows, q.length(b));
}

// ------------------------------------------------------------------------------- gradient of w

constexpr int64_t DEPTH = 8;  // times PAIRS pairs are laid out at a time

// 32 channels from c on of up to PAIRS rows of x: tiles of channels by rows, rows i and 16 + i side by side.
inline void lay_out_left(const ConvCall& q, const int32_t* in, int64_t count, int64_t c, uint16_t* square) {
  for (int64_t half = 0; half < 2 && c < q.cin; half++, c += 16) {
    const __mmask16 mask = lanes16(q.cin - c);
    alignas(64) __m512 turned[2][16];
    for (int64_t j = 0; j < 2; j++) {
      __m512i rows[16];
      for (int64_t i = 0; i < 16; i++) {
        const int64_t p = j * 16 + i;
        rows[i] = p < count ? _mm512_maskz_loadu_epi32(mask, q.x + in[p] * q.cin + c) : _mm512_setzero_si512();
      }
      transpose(rows, turned[j]);
    }
    for (int64_t i = 0; i < 16; i++)
      cut<TRUNCATED>(turned[0][i], turned[1][i], square + half * TILE + i * 32);
  }
}

// 32 channels from d on of up to PAIRS rows of dy: rows i and 16 + i side by side.
inline void lay_out_right(const ConvCall& q, const float* dy, const uint16_t* out, int64_t count, int64_t d,
                          uint16_t* square) {
  for (int64_t half = 0; half < 2 && d < q.cout; half++, d += 16) {
    const __mmask16 mask = lanes16(q.cout - d);
    for (int64_t i = 0; i < 16; i++) {
      const __m512 none = _mm512_setzero_ps();
      const __m512 a = i < count ? _mm512_maskz_loadu_ps(mask, dy + out[i] * q.cout + d) : none;
      const __m512 b = 16 + i < count ? _mm512_maskz_loadu_ps(mask, dy + out[16 + i] * q.cout + d) : none;
      cut<ROUNDED>(a, b, square + half * TILE + i * 32);
    }
  }
}

const uint16_t EACH[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                           16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

// to [32, 32] of rows so wide += a times b over the squares of `depth`.
inline void multiply_whole(const uint16_t* a, const uint16_t* b, int64_t depth, float* to, int64_t width) {
  const int64_t bytes = width * sizeof(float);
  _tile_loadd(0, to, bytes);
  _tile_loadd(1, to + 16, bytes);
  _tile_loadd(2, to + 16 * width, bytes);
  _tile_loadd(3, to + 16 * width + 16, bytes);
  for (int64_t s = 0; s < depth; s++) multiply<true, true>(a + s * SQUARE, b + s * SQUARE, false, [](int64_t, int64_t) {});
  _tile_stored(0, to, bytes);
  _tile_stored(1, to + 16, bytes);
  _tile_stored(2, to + 16 * width, bytes);
  _tile_stored(3, to + 16 * width + 16, bytes);
}

template <bool WIDE, bool TALL>
inline void multiply_deep(const uint16_t* a, const uint16_t* b, int64_t depth, float* corner) {
  clear();
  for (int64_t s = 0; s < depth; s++) multiply<WIDE, TALL>(a + s * SQUARE, b + s * SQUARE, false, [](int64_t, int64_t) {});
  keep<WIDE, TALL>(corner);
}

// Adds x^T dy of n pairs to sum [cin, cout].
void gradient_chunk(const ConvCall& q, const int32_t* in, const uint16_t* out, int64_t n, const float* dy,
                    float* sum, float* corner, uint16_t* a) {
  const int64_t nc = parts(q.cin, 32), nd = parts(q.cout, 32), depth = parts(n, PAIRS);
  uint16_t* b = a + nc * depth * SQUARE;
  for (int64_t s = 0; s < depth; s++) {
    const int64_t p = s * PAIRS, count = least(PAIRS, n - p);
    for (int64_t c = 0; c < nc; c++) lay_out_left(q, in + p, count, c * 32, a + (c * depth + s) * SQUARE);
    for (int64_t d = 0; d < nd; d++) lay_out_right(q, dy, out + p, count, d * 32, b + (d * depth + s) * SQUARE);
  }
  for (int64_t c = 0; c < nc; c++)
    for (int64_t d = 0; d < nd; d++) {
      const int64_t rows = q.cin - c * 32, columns = q.cout - d * 32;
      float* to = sum + c * 32 * q.cout + d * 32;
      const uint16_t *left = a + c * depth * SQUARE, *right = b + d * depth * SQUARE;
      if (rows >= 32 && columns >= 32) {
        multiply_whole(left, right, depth, to, q.cout);
        continue;
      }
      const auto step = columns > 16 ? rows > 16 ? multiply_deep<true, true> : multiply_deep<true, false>
                                     : rows > 16 ? multiply_deep<false, true> : multiply_deep<false, false>;
      step(left, right, depth, corner);
      add({corner, EACH, least(32, rows), q.cout, columns, to}, 0, 32);
    }
}

void gradient(const ConvCall& q, int64_t b, int64_t k, float* sum) {
  const int64_t* range = q.pairs.starts + q.list(b, k);
  if (range[0] == range[1]) return;
  const auto memory = cache_lines<float>(1024 + (parts(q.cin, 32) + parts(q.cout, 32)) * DEPTH * SQUARE / 2);
  begin_tiles();
  for (int64_t p = range[0]; p < range[1]; p += DEPTH * PAIRS)
    gradient_chunk(q, q.pairs.in + p, q.pairs.out + p, least(DEPTH * PAIRS, range[1] - p),
                   q.dy + b * q.pairs.block * q.cout, sum, memory.get(), (uint16_t*)(memory.get() + 1024));
  end_tiles();
}

}  // namespace

const ConvKernels conv_amx_float = {lay_out, nullptr, pack, forward, gradient};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
const ConvKernels conv_amx_float = {nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
