// Blending kernels for AVX2 with fused multiply-add.
#include <string.h>

#include <algorithm>
#include <cmath>

#include "splat.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi")
#pragma GCC optimize("fp-contract=fast")
#endif
#define SPLAT_PARTS 2
#include "splat_lanes.h"

const SplatKernels splat_avx2 = {forward, gradient};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
