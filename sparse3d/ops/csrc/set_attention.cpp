// Multi-head attention inside disjoint sets of rows; each set is worked on by one thread.
#include <math.h>

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

#define S3D_KERNELS "set_attention_kernel.h"
#include "levels.h"

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
                                 int64_t heads, float* out, float* norms, int64_t threads) try {
  const Problem p =
      problem(qkv, position, position_index, order, offsets, sets, channels, heads, threads);
  S3D_AT(best_level(0), forward(p, out, norms));
  return 0;
} OR_SHORTAGE

EXPORT int64_t s3d_set_attention_backward(const float* grad_out, const float* qkv,
                                          const float* position, const int64_t* position_index,
                                          const int64_t* order, const int64_t* offsets,
                                          const float* norms, int64_t sets, int64_t channels,
                                          int64_t heads, float* grad_qkv, int64_t threads) try {
  const Problem p =
      problem(qkv, position, position_index, order, offsets, sets, channels, heads, threads);
  S3D_AT(best_level(0), backward(p, grad_out, norms, grad_qkv));
  return 0;
} OR_SHORTAGE
