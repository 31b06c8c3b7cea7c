// Vectors of AVX-512 (F), for files that have set their instruction set.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace {
struct Avx512 {
  using Reg = __m512;
  using Mask = __mmask16;
  using Index = __m512i;
  static constexpr int WIDTH = 16, MAX_NV = 4, SINGLES = 1;
  static constexpr int rows(int nv) { return nv == 1 ? 14 : nv == 2 ? 12 : nv == 3 ? 8 : 6; }
  static constexpr int steps(int nv) { return nv > 2 ? 2 : 4; }
  static constexpr int channels(int nv) { return nv == 1 ? 16 : nv == 4 ? 4 : 8; }
  static Mask mask(int lanes) { return (Mask)((1u << lanes) - 1); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, Mask m, Reg v) { _mm512_mask_storeu_ps(p, m, v); }
  static Reg all(float s) { return _mm512_set1_ps(s); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }

  static Index index(const int32_t* lane) { return _mm512_loadu_si512(lane); }
  static Reg spread(Reg v, Index i) { return _mm512_maskz_permutexvar_ps(0xffff, i, v); }
  static Reg positive(Reg v) { return _mm512_maskz_max_ps(0xffff, v, _mm512_setzero_ps()); }

  static int64_t list(const int32_t* row_of, int64_t len, int32_t* in, uint16_t* out) {
    __m512i o = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t n = 0;
    for (int64_t j = 0; j < len; j += 16) {
      const Mask valid = len - j >= 16 ? 0xffff : mask((int)(len - j));
      const __m512i i = _mm512_mask_loadu_epi32(_mm512_set1_epi32(-1), valid, row_of + j);
      const Mask found = _mm512_cmpge_epi32_mask(i, _mm512_setzero_si512());
      const __m512i rows = _mm512_maskz_compress_epi32(found, o);
      _mm512_storeu_si512(in + n, _mm512_maskz_compress_epi32(found, i));
      _mm256_storeu_si256((__m256i*)(out + n), _mm512_maskz_cvtepi32_epi16(0xffff, rows));
      n += __builtin_popcount(found);
      o = _mm512_add_epi32(o, _mm512_set1_epi32(16));
    }
    return n;
  }
};
}  // namespace
