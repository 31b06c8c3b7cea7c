// Sixteen lanes made of `PARTS` vectors of 16 / PARTS floats: for instruction sets without masks.
// The including file defines SPLAT_PARTS.
#pragma once
#include <string.h>

#include <cmath>

#include "splat.h"

namespace {
struct V {
  static constexpr int PARTS = SPLAT_PARTS, WIDTH = 16 / PARTS;
  typedef float Floats __attribute__((vector_size(4 * WIDTH)));
  typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
  struct F {
    Floats v[PARTS];
  };
  struct I {
    Ints v[PARTS];
  };
  using M = I;  // all ones or zero
  template <class Part>
  static F each(const Part& part) {
    F out;
    for (int i = 0; i < PARTS; i++) out.v[i] = part(i);
    return out;
  }
  template <class Part>
  static I eachi(const Part& part) {
    I out;
    for (int i = 0; i < PARTS; i++) out.v[i] = part(i);
    return out;
  }
  static F set(float x) {
    return each([&](int) { return x - (Floats){}; });
  }
  static F load(const float* p) {
    F out;
    memcpy(&out, p, sizeof out);
    return out;
  }
  static void store(float* p, F v) { memcpy(p, &v, sizeof v); }
  static I loadi(const int32_t* p) {
    I out;
    memcpy(&out, p, sizeof out);
    return out;
  }
  static void storei(int32_t* p, I v) { memcpy(p, &v, sizeof v); }
  static F column() {
    alignas(64) static const float at[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    return load(at);
  }
  static F row() {
    alignas(64) static const float at[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    return load(at);
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F fnma(F a, F b, F c) {
    return each([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
  }
  static F min(F a, F b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F max(F a, F b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F abs(F a) {
    return each([&](int i) { return (Floats)((Ints)a.v[i] & 0x7fffffff); });
  }
  static F left(F T, F alpha) {
    return each([&](int i) { return T.v[i] * (1.f - alpha.v[i]); });
  }
  static F divide(F a, F b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static M le(F a, F b) {
    return eachi([&](int i) { return a.v[i] <= b.v[i]; });
  }
  static M le_among(M m, F a, F b) { return both(m, le(a, b)); }
  static M lt_among(M m, F a, F b) {
    return both(m, eachi([&](int i) { return a.v[i] < b.v[i]; }));
  }
  static M both(M a, M b) {
    return eachi([&](int i) { return a.v[i] & b.v[i]; });
  }
  static uint32_t bits(M m) {
    uint32_t out = 0;
    for (int i = 0; i < 16; i++) out |= (uint32_t)(m.v[i / WIDTH][i % WIDTH] & 1) << i;
    return out;
  }
  static M mask(uint32_t bits) {
    alignas(64) static const int32_t one[16] = {1 << 0,  1 << 1,  1 << 2,  1 << 3, 1 << 4,  1 << 5,
                                                1 << 6,  1 << 7,  1 << 8,  1 << 9, 1 << 10, 1 << 11,
                                                1 << 12, 1 << 13, 1 << 14, 1 << 15};
    const I each_bit = loadi(one);
    return eachi([&](int i) { return ((int32_t)bits & each_bit.v[i]) != 0; });
  }
  static bool any(M m) {
    Ints all = m.v[0];
    for (int i = 1; i < PARTS; i++) all |= m.v[i];
    int32_t out = 0;
    for (int i = 0; i < WIDTH; i++) out |= all[i];
    return out != 0;
  }
  static F keep(M m, F a) {
    return each([&](int i) { return (Floats)((Ints)a.v[i] & m.v[i]); });
  }
  static F choose(M m, F a, F b) {
    return each([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
  }
  static I choose(M m, I a, I b) {
    return eachi([&](int i) { return m.v[i] ? a.v[i] : b.v[i]; });
  }
  static I seti(int32_t x) {
    return eachi([&](int) { return x - (Ints){}; });
  }
  static M reaches(const int32_t* last, int32_t number) {
    const I at = loadi(last);
    return eachi([&](int i) { return at.v[i] >= number; });
  }
  // 2^p in the lanes m, 0 in the others
  static F exp2(M m, F p) {
    return keep(m, each([&](int i) {
      const Floats low = p.v[i] < -100.f ? -100.f - (Floats){} : p.v[i];
      const Floats at = low > 100.f ? 100.f - (Floats){} : low;
      const Floats shifted = at + 12582912.f;  // rounds to whole numbers
      const Floats whole = shifted - 12582912.f, x = at - whole;
      Floats y = 0.001326472731307149f * x + 0.009671512991189957f;
      y = y * x + 0.05550733581185341f;
      y = y * x + 0.24022242426872253f;
      y = y * x + 0.6931470036506653f;
      y = y * x + 1.f;
      return y * (Floats)((__builtin_convertvector(whole, Ints) + 127) << 23);
    }));
  }
  // lists[b] has bit e where hit[e] has bit b
  static void transpose(const uint16_t* hit, uint64_t* lists) {
    memset(lists, 0, 16 * sizeof(uint64_t));
    for (int e = 0; e < 64; e++)
      for (uint32_t bits = hit[e]; bits; bits &= bits - 1)
        lists[__builtin_ctz(bits)] |= (uint64_t)1 << e;
  }
  template <int N>
  static void add_sums(const F* v, float* sums) {
    for (int k = 0; k < N; k++) {
      Floats one = v[k].v[0];
      for (int i = 1; i < PARTS; i++) one += v[k].v[i];
      float sum = 0;
      for (int i = 0; i < WIDTH; i++) sum += one[i];
      sums[k] += sum;
    }
  }
};
}  // namespace

#include "splat_kernels.h"
