// Blending kernels for AVX-512 (F, DQ, BW, VL).
#include <string.h>

#include <algorithm>  // before the pragma: what it defines is for every processor

#include "splat.h"

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC 12's own header
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi,bmi2")
#endif

namespace {
struct V {
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, F v) { _mm512_store_ps(p, v); }
  static I loadi(const int32_t* p) { return _mm512_load_si512(p); }
  static void storei(int32_t* p, I v) { _mm512_store_si512(p, v); }
  static F column() { return _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3); }
  static F row() { return _mm512_setr_ps(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F left(F T, F alpha) { return _mm512_fnmadd_ps(T, alpha, T); }
  static F inverse(F a) {
    const F x = _mm512_rcp14_ps(a);  // one Newton step
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(a, x, set(1.f)), x, x);
  }
  static M le(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static M both(M a, M b) { return a & b; }
  static M without(M a, M b) { return a & (M)~b; }
  static M mask(uint32_t bits) { return (M)bits; }
  static bool any(M m) { return m != 0; }
  static uint32_t bits(M m) { return m; }
  static F keep(M m, F a) { return _mm512_maskz_mov_ps(m, a); }
  static F drop(M m, F a) { return _mm512_maskz_mov_ps((M)~m, a); }
  static I select(M m, int32_t x, I b) { return _mm512_mask_set1_epi32(b, m, x); }
  static M reaches(const int32_t* last, int32_t number) {
    return _mm512_cmpge_epi32_mask(_mm512_loadu_si512(last), _mm512_set1_epi32(number));
  }
  static F exp2(F p) {
    const F whole = _mm512_roundscale_ps(p, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F x = sub(p, whole);
    F y = fma(set(0.001326472731307149f), x, set(0.009671512991189957f));
    y = fma(y, x, set(0.05550733581185341f));
    y = fma(y, x, set(0.24022242426872253f));
    y = fma(y, x, set(0.6931470036506653f));
    return _mm512_scalef_ps(fma(y, x, set(1.f)), whole);
  }
  // lists[b] has bit e where hit[e] has bit b
  static void transpose(const uint16_t* hit, uint64_t* lists) {
    const __m512i low = _mm512_load_si512(hit), high = _mm512_load_si512(hit + 32);
    for (int b = 0; b < 16; b++) {
      const __m512i one = _mm512_set1_epi16((int16_t)(1u << b));
      lists[b] = (uint64_t)_mm512_test_epi16_mask(low, one) |
                 (uint64_t)_mm512_test_epi16_mask(high, one) << 32;
    }
  }
  static __m256 halves(F v) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  }
  // sums[k] += the sum of the lanes of v[k]
  template <int N>
  static void add_sums(const F* v, float* sums) {
    int k = 0;
    for (; k + 4 <= N; k += 4) {
      const __m256 a = _mm256_hadd_ps(halves(v[k]), halves(v[k + 1]));
      const __m256 b = _mm256_hadd_ps(halves(v[k + 2]), halves(v[k + 3]));
      const __m256 c = _mm256_hadd_ps(a, b);
      const __m128 sum = _mm_add_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1));
      _mm_storeu_ps(sums + k, _mm_add_ps(_mm_loadu_ps(sums + k), sum));
    }
    for (; k < N; k++) sums[k] += _mm512_reduce_add_ps(v[k]);
  }
};
}  // namespace

#include "splat_kernels.h"

const SplatKernels splat_avx512 = {forward, gradient};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
