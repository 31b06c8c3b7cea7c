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
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static F left(F T, F alpha) { return _mm512_fnmadd_ps(T, alpha, T); }
  static F divide(F a, F b) { return _mm512_div_ps(a, b); }
  static M le(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static M le_among(M m, F a, F b) { return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_LE_OQ); }
  static M lt_among(M m, F a, F b) { return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_LT_OQ); }
  static M both(M a, M b) { return a & b; }
  static M mask(uint32_t bits) { return (M)bits; }
  static bool any(M m) { return m != 0; }
  static uint32_t bits(M m) { return m; }
  static F keep(M m, F a) { return _mm512_maskz_mov_ps(m, a); }
  static F choose(M m, F a, F b) { return _mm512_mask_mov_ps(b, m, a); }
  static I choose(M m, I a, I b) { return _mm512_mask_mov_epi32(b, m, a); }
  static I seti(int32_t x) { return _mm512_set1_epi32(x); }
  static M reaches(const int32_t* last, int32_t number) {
    return _mm512_cmpge_epi32_mask(_mm512_loadu_si512(last), _mm512_set1_epi32(number));
  }
  // 2^p in the lanes m, 0 in the others
  static F exp2(M m, F p) {
    const F shifted = add(p, set(12582912.f));  // rounds to whole numbers
    const F x = sub(p, sub(shifted, set(12582912.f)));
    const F xx = mul(x, x);  // by pairs of terms: a shorter chain
    const F high = fma(set(0.001326472731307149f), x, set(0.009671512991189957f));
    const F middle = fma(set(0.05550733581185341f), x, set(0.24022242426872253f));
    const F low = fma(set(0.6931470036506653f), x, set(1.f));
    const F y = fma(fma(high, xx, middle), xx, low);
    const I exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(m, _mm512_castps_si512(y), exponent));
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
  // Exchanges neighbouring groups of W lanes.
  template <int W>
  static F swap(F x) {
    if (W == 1) return _mm512_permute_ps(x, 0xb1);
    if (W == 2) return _mm512_permute_ps(x, 0x4e);
    if (W == 4) return _mm512_shuffle_f32x4(x, x, 0xb1);
    return _mm512_shuffle_f32x4(x, x, 0x4e);
  }
  // Adds neighbouring groups of a, and of b; the sums take turns, b's lie in the lanes `odd`.
  template <int W>
  static F fold(M odd, F a, F b) {
    return add(_mm512_mask_mov_ps(a, odd, b), swap<W>(_mm512_mask_mov_ps(b, odd, a)));
  }
  // sums[k] += the sum of the lanes of v[k]; from 9 on all 16 sums are touched
  template <int N>
  static void add_sums(const F* v, float* sums) {
    if (N == 1) {
      sums[0] += _mm512_reduce_add_ps(v[0]);
      return;
    }
    const F zero = _mm512_setzero_ps();
    F a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
      a[i] = 2 * i < N ? fold<1>(0xaaaa, v[2 * i], 2 * i + 1 < N ? v[2 * i + 1] : zero) : zero;
    for (int i = 0; i < 4; i++) b[i] = 4 * i < N ? fold<2>(0xcccc, a[2 * i], a[2 * i + 1]) : zero;
    for (int i = 0; i < 2; i++) c[i] = 8 * i < N ? fold<4>(0xf0f0, b[2 * i], b[2 * i + 1]) : zero;
    const F all = fold<8>(0xff00, c[0], c[1]);
    const M some = N > 8 ? 0xffff : (1 << N) - 1;
    _mm512_mask_storeu_ps(sums, some, add(_mm512_maskz_loadu_ps(some, sums), all));
  }
};
}  // namespace

#include "splat_kernels.h"

const SplatKernels splat_avx512 = {forward, gradient};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
