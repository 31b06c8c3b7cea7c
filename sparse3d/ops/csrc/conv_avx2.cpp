// Convolution kernels for AVX2 with FMA.
#include "conv.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace {
struct Vec {
  using Reg = __m256;
  using Mask = __m256i;
  using Index = __m256i;
  static constexpr int WIDTH = 8, MAX_NV = 2, SINGLES = 1;
  static constexpr int rows(int nv) { return nv == 1 ? 12 : 6; }
  static constexpr int steps(int) { return 8; }
  static constexpr int channels(int nv) { return nv == 1 ? 8 : 4; }
  static Mask mask(int lanes) {
    const __m256i count = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), count);
  }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, Mask m, Reg v) { _mm256_maskstore_ps(p, m, v); }
  static Reg all(float s) { return _mm256_set1_ps(s); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }

  static Index index(const int32_t* lane) { return _mm256_loadu_si256((const __m256i*)lane); }
  static Reg spread(Reg v, Index i) { return _mm256_permutevar8x32_ps(v, i); }
  static Reg positive(Reg v) { return _mm256_max_ps(v, _mm256_setzero_ps()); }

  static int64_t list(const int32_t* row_of, int64_t len, int32_t* in, uint16_t* out) {
    int64_t n = 0;
    for (int64_t j = 0; j < len; j += 8) {
      const Mask valid = mask(len - j >= 8 ? 8 : (int)(len - j));
      const __m256 i = _mm256_castsi256_ps(_mm256_maskload_epi32(row_of + j, valid));
      int found = ~_mm256_movemask_ps(i) & _mm256_movemask_ps(_mm256_castsi256_ps(valid));
      for (; found; found &= found - 1) {
        const int64_t o = j + __builtin_ctz(found);
        in[n] = row_of[o];
        out[n++] = (uint16_t)o;
      }
    }
    return n;
  }
};
}  // namespace

#include "conv_kernels.h"

const ConvKernels conv_avx2 = {lay_out, Vec::list, pack, forward, gradient};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
