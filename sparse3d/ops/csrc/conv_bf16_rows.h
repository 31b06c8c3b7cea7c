// How the bfloat16 kernels end rows of outputs and lay out pairs of rows. For files that have set their
// instruction set.
#pragma once
#include "conv_bf16.h"
#include "conv_lanes.h"

namespace {

// 16 channels from c on of an output row: what follows the sum, and the rounding.
inline void write(const Bf16Call& q, __m512 v, int64_t row, int64_t c) {
  const __mmask16 m = lanes16(q.cout - c);
  if (q.shift) {
    const __m512 shift = _mm512_maskz_loadu_ps(m, q.shift + c);
    v = q.scale ? _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(m, q.scale + c), shift) : _mm512_add_ps(v, shift);
  }
  if (q.residual) {
    const __m256i halves = _mm256_maskz_loadu_epi16(m, q.residual + row * q.cout + c);
    v = _mm512_add_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)));
  }
  if (q.relu) v = _mm512_maskz_max_ps(0xffff, v, _mm512_setzero_ps());
  const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(v);
  if (m == 0xffff)  // some processors store slowly under a mask
    _mm256_storeu_si256((__m256i*)(q.y + row * q.cout + c), rounded);
  else
    _mm256_mask_storeu_epi16(q.y + row * q.cout + c, m, rounded);
}

// Two rows of 32 channels -> their channels side by side: 0 to 15 in `low`, 16 to 31 in `high`.
inline void interleave(__m512i a, __m512i b, __m512i* low, __m512i* high) {
  alignas(64) static const uint16_t LOW[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                               8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i index = _mm512_load_si512(LOW);
  *low = _mm512_permutex2var_epi16(a, index, b);
  *high = _mm512_permutex2var_epi16(a, _mm512_add_epi16(index, _mm512_set1_epi16(16)), b);
}

}  // namespace
