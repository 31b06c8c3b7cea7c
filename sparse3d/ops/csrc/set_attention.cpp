// Multi-head attention inside disjoint sets of rows; each set is worked on by one thread.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "common.h"

#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

constexpr int kMostPerHead = 128;

struct Problem {
  const float *qkv, *position;             // [n, 3 C], [places, 2 C] added to queries and keys
  const int64_t *position_index;           // [n]
  const int64_t *order, *offsets;          // rows set by set, and where each set begins
  int64_t sets, channels, heads, largest;  // largest: rows of the largest set
  float scale;
  int team;
};

#define S3D_LANES 4
namespace plain {
#include "set_attention_kernel.h"
}
#undef S3D_LANES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define S3D_LEVELS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=fast")
#define S3D_LANES 8
namespace avx2 {
#include "set_attention_kernel.h"
}
#undef S3D_LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")
#pragma GCC optimize("fp-contract=fast")
#define S3D_LANES 16
namespace avx512 {
#include "set_attention_kernel.h"
}
#undef S3D_LANES
#pragma GCC pop_options
#endif

int level() {
#ifdef S3D_LEVELS
  const char* asked = getenv("SPARSE3D_ISA");
  const bool any = !asked || !*asked;
  if ((any || !strcmp(asked, "avx512")) && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 2;
  if ((any || strcmp(asked, "plain")) && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma"))
    return 1;
#endif
  return 0;
}

Problem problem(const float* qkv, const float* position, const int64_t* position_index,
                const int64_t* order, const int64_t* offsets, int64_t sets, int64_t channels,
                int64_t heads, int64_t threads) {
  int64_t largest = 0;
  for (int64_t s = 0; s < sets; ++s) largest = std::max(largest, offsets[s + 1] - offsets[s]);
  return {qkv, position, position_index, order, offsets, sets, channels, heads, largest,
          1.0f / sqrtf((float)(channels / heads)), useful_threads(threads, sets, 2)};
}

}  // namespace

EXPORT int64_t s3d_set_attention(const float* qkv, const float* position,
                                 const int64_t* position_index, const int64_t* order,
                                 const int64_t* offsets, int64_t sets, int64_t channels,
                                 int64_t heads, float* out, float* norms, int64_t threads) {
  const Problem p =
      problem(qkv, position, position_index, order, offsets, sets, channels, heads, threads);
  switch (level()) {
#ifdef S3D_LEVELS
    case 2: avx512::forward(p, out, norms); break;
    case 1: avx2::forward(p, out, norms); break;
#endif
    default: plain::forward(p, out, norms);
  }
  return 0;
}

EXPORT int64_t s3d_set_attention_backward(const float* grad_out, const float* qkv,
                                          const float* position, const int64_t* position_index,
                                          const int64_t* order, const int64_t* offsets,
                                          const float* norms, int64_t sets, int64_t channels,
                                          int64_t heads, float* grad_qkv, int64_t threads) {
  const Problem p =
      problem(qkv, position, position_index, order, offsets, sets, channels, heads, threads);
  switch (level()) {
#ifdef S3D_LEVELS
    case 2: avx512::backward(p, grad_out, norms, grad_qkv); break;
    case 1: avx2::backward(p, grad_out, norms, grad_qkv); break;
#endif
    default: plain::backward(p, grad_out, norms, grad_qkv);
  }
  return 0;
}
