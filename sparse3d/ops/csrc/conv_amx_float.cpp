// float convolution kernels on AMX tiles, which multiply bfloat16: see conv_amx_squares.h.
#include "conv.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <string.h>

#include <vector>

#include "conv_amx_gradient.h"
#include "conv_avx512_vec.h"

namespace {
struct Vec : Avx512 {};
}  // namespace

#include "conv_rows.h"

namespace {

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

// Eight rows of a whole square.
inline void gather_eight(const float* x, int64_t width, const int32_t* in, uint16_t* to) {
#pragma GCC unroll 8
  for (int64_t j = 0; j < 8; j++) {
    const float* row = x + in[j] * width;
    cut<TRUNCATED>(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16), to + j * 32);
  }
}

inline void fetch_eight(const float* x, int64_t width, const int32_t* in) {
#pragma GCC unroll 8
  for (int64_t j = 0; j < 8; j++) {
    __builtin_prefetch(x + in[j] * width);
    __builtin_prefetch(x + in[j] * width + 16);
  }
}

inline void add_eight(const float* corner, const uint16_t* row, int64_t width, float* to) {
#pragma GCC unroll 8
  for (int64_t j = 0; j < 8; j++) {
    float* y = to + row[j] * width;
    _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), _mm512_load_ps(corner + j * 32)));
    _mm512_storeu_ps(y + 16, _mm512_add_ps(_mm512_loadu_ps(y + 16), _mm512_load_ps(corner + j * 32 + 16)));
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
inline void multiply_rows(Pipeline& line, const Batch& batch, const Batch& next, const Batch& later,
                          bool first, const uint16_t* w, Sums sums) {
  const ConvCall& q = line.q;
  clear();
  for (int64_t c = 0; c < line.squares; c++) {
    const bool last = c + 1 == line.squares;
    const Batch& source = last ? next : batch;
    const int64_t channel = last ? 0 : (c + 1) * 32;
    uint16_t* made = line.square(c + 1);
    const bool whole = source.count == PAIRS && q.cin - channel >= 32, then = later.count == PAIRS;
    const bool full = line.waiting.rows == PAIRS && line.waiting.columns >= 32;
    const int32_t *rows = source.in, *rows_later = later.in;
    const float *x = q.x + channel, *x_later = q.x + c * 32;
    const Sums& ready = line.waiting;
    multiply<WIDE, TALL>(line.square(c), w + c * SQUARE, narrow(q.cin - c * 32), [&](int64_t n, int64_t of) {
      const int64_t pieces = of < 4 ? of : 4;
      if (n >= pieces) return;
      const int64_t begin = n * PAIRS / pieces, end = (n + 1) * PAIRS / pieces;
      const bool eight = pieces == 4;
      if (first) {
        if (whole && eight)
          gather_eight(x, q.cin, rows + begin, made + begin * 32);
        else
          gather(q, source, begin, end, channel, made);
        if (then && eight) fetch_eight(x_later, q.cin, rows_later + begin);
      }
      if (!last) return;
      if (full && eight)
        add_eight(ready.corner + begin * 32, ready.row + begin, ready.width, ready.to);
      else
        add(ready, begin, end);
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
  float* memory = scratch(2048 + (squares + 1) * SQUARE / 2);
  Pipeline line = {q, squares, (uint16_t*)(memory + 2048), memory, {nullptr, nullptr, 0, 0, 0, nullptr}, 0};
  std::vector<Batch> all = batches(q, b);
  all.resize(all.size() + 2, {nullptr, nullptr, 0, 0});
  start_rows(q, rows, q.length(b));
  begin_tiles();
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

}  // namespace

const ConvKernels conv_amx_float = {lay_out, nullptr, pack, forward, gradient};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
const ConvKernels conv_amx_float = {nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
