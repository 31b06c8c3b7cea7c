// Convolution kernels for bfloat16 on AVX512-BF16, where there are no AMX tiles. They are those for float
// on elements that hold two channels each: a product is of two channels, summed in float.
#include "conv.h"

#if defined(__x86_64__)
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bf16")
#endif

#include "conv_avx512_vec.h"

namespace {
struct Vec : Avx512 {
  static Reg product(Reg a, Reg b, Reg c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
};
}  // namespace

#include "conv_kernels.h"

const ConvKernels conv_avx512_bf16 = {lay_out, Vec::list, pack, forward, gradient};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
