// Convolution kernels for AVX-512 (F).
#include "conv.h"

#if defined(__x86_64__)
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif

#include "conv_avx512_vec.h"

namespace {
struct Vec : Avx512 {};
}  // namespace

#include "conv_kernels.h"

const ConvKernels conv_avx512 = {lay_out, Vec::list, pack, forward, gradient};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
