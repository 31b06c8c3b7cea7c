// Squares of 32 x 32 floats as tiles of bfloat16, and their products. Only for files that have set their
// instruction set.
//
// A float's 24 significant bits are cut into three numbers of bfloat16, exactly. Of the nine products of
// two numbers so cut six are summed, in float; the other three are below 2^-22 of the whole. One operand
// is cut by truncation, which is cheap, the other by rounding, so that what is left out has any sign.
// What is below 2^-126 counts as zero: numbers below 1e-30 lose digits. Infinite ones give NaN.
#pragma once
#include "conv.h"
#include "conv_amx.h"

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

// This thread's scratch memory, kept for its next call: fresh memory costs page faults.
float* scratch(int64_t floats) {
  static thread_local std::unique_ptr<float[], CacheLines> memory;
  static thread_local int64_t size = 0;
  if (floats > size) {
    memory = cache_lines<float>(floats);
    size = floats;
  }
  return memory.get();
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

}  // namespace
