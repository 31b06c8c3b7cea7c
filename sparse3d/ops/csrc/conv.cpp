// Sparse convolution over an out-in table, and the gradient of its weights.
//
// Outputs are processed in blocks owned by one thread, all offsets inside: nothing is scattered, and no
// result depends on the number of threads.
#include "conv.h"

#include <omp.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <vector>

// Output rows per partial sum of the weight gradient: fixed, because it decides the order of the sum.
constexpr int64_t GRADIENT_ROWS = 4096;
constexpr int64_t LANES = 16;  // the widest vector: weights are padded to whole ones

// level: 0 the best that the processor has, 1 plain, 2 AVX2, 3 AVX-512 (or the next lower one).
static const ConvKernels& kernels(int64_t level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if ((level == 0 || level == 3) && __builtin_cpu_supports("avx512f")) return conv_avx512;
  if (level != 1 && avx2) return conv_avx2;
#endif
  return conv_plain;
}

// Whether kernels read and write weights in place: whole vectors per group, or one channel each.
static bool in_place(const ConvCall& q) { return q.cout % LANES == 0 || (q.cin == 1 && q.cout == 1); }

static void lay_out_weights(ConvCall& q) {
  const int64_t padded = (q.cout + LANES - 1) / LANES * LANES;
  q.w_row = in_place(q) ? q.groups * q.cout : padded;
  q.w_group = in_place(q) ? q.cout : q.cin * padded;
  q.w_offset = in_place(q) ? q.cin * q.groups * q.cout : q.groups * q.cin * padded;
}

// Calls copy(position in [offsets, cin, groups * cout], position in the padded layout) per row of a group.
template <class Copy>
static void for_weight_rows(const ConvCall& q, const Copy& copy) {
  for (int64_t k = 0; k < q.offsets; k++)
    for (int64_t g = 0; g < q.groups; g++)
      for (int64_t i = 0; i < q.cin; i++)
        copy(((k * q.cin + i) * q.groups + g) * q.cout, k * q.w_offset + g * q.w_group + i * q.w_row);
}

// x [n_in, cin * groups], w [offsets, cin, cout * groups], bias [cout * groups] or null,
// table [offsets, n_out] -> y [n_out, cout * groups]. cin and cout are those of one group.
// Returns 1 when the table names a row outside [0, n_in), else 0.
EXPORT int64_t s3d_sparse_conv(const float* x, const float* w, const float* bias, const int32_t* table,
                               int64_t n_in, int64_t n_out, int64_t offsets, int64_t groups,
                               int64_t cin, int64_t cout, float* y, int64_t level, int64_t threads) {
  ConvCall q = {x, w, bias, nullptr, table, y, n_in, n_out, offsets, groups, cin, cout, 0, 0, 0};
  lay_out_weights(q);
  std::vector<float> packed;
  if (!in_place(q)) {
    packed.assign(offsets * q.w_offset, 0.f);
    for_weight_rows(q, [&](int64_t from, int64_t to) {
      memcpy(packed.data() + to, w + from, sizeof(float) * cout);
    });
    q.w = packed.data();
  }
  const ConvKernels& kernel = kernels(level);
  const int64_t block = std::clamp(n_out / (8 * threads), (int64_t)64, CONV_BLOCK);
  const int team = useful_threads(threads, n_out, 2 * block);
  std::atomic<bool> legal{true};
#pragma omp parallel num_threads(team)
  {
    std::vector<int32_t> lists(CONV_LIST);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < n_out; first += block)
      if (!kernel.forward(q, first, std::min(block, n_out - first), lists.data())) legal = false;
  }
  return !legal;
}

// dw [offsets, cin, cout * groups] of x, dy [n_out, cout * groups] and the table. The outputs are cut
// into ranges whose sums are added in order. Returns 1 when the table names a row outside [0, n_in).
EXPORT int64_t s3d_sparse_conv_weight_grad(const float* x, const float* dy, const int32_t* table,
                                           int64_t n_in, int64_t n_out, int64_t offsets,
                                           int64_t groups, int64_t cin, int64_t cout, float* dw,
                                           int64_t level, int64_t threads) {
  ConvCall q = {x,    nullptr, nullptr, dy,     table, nullptr, n_in, n_out,
                offsets, groups,  cin,     cout,   0,     0,       0};
  lay_out_weights(q);
  const ConvKernels& kernel = kernels(level);
  const int64_t size = offsets * q.w_offset;
  const int64_t ranges = (n_out + GRADIENT_ROWS - 1) / GRADIENT_ROWS;
  const int team = useful_threads(threads, ranges, 1);
  memset(dw, 0, sizeof(float) * offsets * cin * cout * groups);
  std::atomic<bool> legal{true};
#pragma omp parallel num_threads(team)
  {
    std::vector<int32_t> lists(CONV_LIST);
    std::vector<float> sum(size);
#pragma omp for schedule(dynamic, 1) ordered
    for (int64_t s = 0; s < ranges; s++) {
      memset(sum.data(), 0, sizeof(float) * size);
      const int64_t end = std::min(n_out, (s + 1) * GRADIENT_ROWS);
      for (int64_t first = s * GRADIENT_ROWS; first < end; first += CONV_BLOCK)
        if (!kernel.gradient(q, first, std::min(CONV_BLOCK, end - first), lists.data(), sum.data()))
          legal = false;
#pragma omp ordered
      for_weight_rows(q, [&](int64_t to, int64_t from) {
        for (int64_t j = 0; j < cout; j++) dw[to + j] += sum[from + j];
      });
    }
  }
  return !legal;
}
