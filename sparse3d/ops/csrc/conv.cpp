// Sparse convolution over listed pairs of rows, and the gradient of its weights.
//
// Outputs are processed in blocks owned by one thread, all offsets inside: nothing is scattered, and no
// result depends on the number of threads.
#include "conv.h"
#include "kernel_map.h"

#include <omp.h>
#include <string.h>

#include <algorithm>
#include <vector>

// level: 0 the best that the processor has, 1 plain, 2 AVX2, 3 AVX-512 (or the next lower one).
static const ConvKernels& conv_kernels(int64_t level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if ((level == 0 || level == 3) && __builtin_cpu_supports("avx512f")) return conv_avx512;
  if (level != 1 && avx2) return conv_avx2;
#endif
  return conv_plain;
}

// The same for one convolution: tiles, where they were measured to be faster.
static const ConvKernels& conv_kernels(int64_t level, const ConvCall& q, bool gradient) {
  const auto pays = [&](int64_t channels) { return gradient ? channels >= 96 : channels == 32 || channels >= 64; };
  const bool tiles = level == 0 && q.groups == 1 && pays(q.cin) && pays(q.cout) && tiles_exist();
  return tiles ? conv_amx_float : conv_kernels(level);
}

// Counts rows that are not negative; highest: of these, and of what it was.
S3D_CLONES static int32_t count_rows(const int32_t* row_of, int64_t n, int32_t* highest) {
  int32_t count = 0, most = *highest;
  for (int64_t j = 0; j < n; j++) {
    count += row_of[j] >= 0;
    most = row_of[j] > most ? row_of[j] : most;
  }
  *highest = most;
  return count;
}

// Counts the pairs of table [offsets, n_out] (the input row, negative where none) into
// starts[1 + list]. Returns the largest row named, -1 where there is none.
EXPORT int64_t s3d_conv_pairs_count(const int32_t* table, int64_t offsets, int64_t n_out, int64_t block,
                                    int64_t* starts, int64_t threads) try {
  const int64_t blocks = (n_out + block - 1) / block;
  int32_t highest = -1;
  starts[0] = 0;
#pragma omp parallel for num_threads(useful_threads(threads, blocks, 1)) reduction(max : highest)
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t k = 0; k < offsets; k++) {
      const int64_t len = std::min(block, n_out - b * block);
      starts[1 + b * offsets + k] = count_rows(table + k * n_out + b * block, len, &highest);
    }
  for (int64_t i = 0; i < blocks * offsets; i++) starts[1 + i] += starts[i];
  return highest;
} OR_SHORTAGE

// Lists the pairs that were counted: input rows, and output rows counted from their block's first.
EXPORT int64_t s3d_conv_pairs_list(const int32_t* table, int64_t offsets, int64_t n_out, int64_t block,
                                   const int64_t* starts, int32_t* in, uint16_t* out, int64_t level,
                                   int64_t threads) try {
  const int64_t blocks = (n_out + block - 1) / block;
  const ConvKernels& kernel = conv_kernels(level);
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, blocks, 1))
  {
    std::vector<int32_t> own_in;
    std::vector<uint16_t> own_out;
    shortage.within([&] { own_in.resize(block + 16), own_out.resize(block + 16); });  // lists may run over
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t k = 0; k < offsets && shortage.none(); k++) {
        const int64_t len = std::min(block, n_out - b * block), list = b * offsets + k;
        if (starts[list] == starts[list + 1]) continue;
        const int32_t* row_of = table + k * n_out + b * block;
        const int64_t n = kernel.list(row_of, len, own_in.data(), own_out.data());
        memcpy(in + starts[list], own_in.data(), sizeof(int32_t) * n);
        memcpy(out + starts[list], own_out.data(), sizeof(uint16_t) * n);
      }
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE

// x [n_in, cin * groups], w [offsets, cin, cout * groups] (transposed: [offsets, cout, cin * groups]),
// bias, scale, shift [cout * groups] and residual [n_out, cout * groups] or null -> y like residual,
// (bias + sum) * scale + shift + residual, cut off at 0 with relu. cin and cout are those of one group.
EXPORT int64_t s3d_sparse_conv(const float* x, const float* w, int64_t transposed, const float* bias,
                               const float* scale, const float* shift, const float* residual,
                               int64_t relu, const int64_t* starts, const int32_t* in, const uint16_t* out,
                               int64_t block, int64_t mirror, int64_t n_out, int64_t offsets,
                               int64_t groups, int64_t cin, int64_t cout, float* y, int64_t level,
                               int64_t threads) try {
  ConvCall q = {x,     nullptr, bias,    scale,  shift, residual, relu, nullptr, y, {starts, in, out, block, mirror},
                n_out, offsets, groups, cin,   cout, 0,       0};
  const ConvKernels& kernel = conv_kernels(level, q, false);
  kernel.lay_out(q);
  const std::unique_ptr<float[], CacheLines> packed = cache_lines<float>(offsets * q.w_offset);
  q.w = packed.get();
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, q.blocks(), 1))
  {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < offsets; k++) kernel.pack(q, w, transposed, k, packed.get() + k * q.w_offset);
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < q.blocks(); b++) shortage.within([&] { kernel.forward(q, b); });
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE

// dw [offsets, cin, cout * groups] of x and dy [n_out, cout * groups]. The outputs are cut into ranges
// whose sums are added in order.
EXPORT int64_t s3d_sparse_conv_weight_grad(const float* x, const float* dy, const int64_t* starts,
                                           const int32_t* in, const uint16_t* out, int64_t block,
                                           int64_t mirror, int64_t n_out, int64_t offsets,
                                           int64_t groups, int64_t cin, int64_t cout, float* dw,
                                           int64_t level, int64_t threads) try {
  const ConvCall q = {x,  nullptr, nullptr, nullptr, nullptr, nullptr, 0, dy, nullptr,
                      {starts, in, out, block, mirror}, n_out, offsets, groups, cin, cout, 0, 0};
  const ConvKernels& kernel = conv_kernels(level, q, true);
  const int64_t size = cin * cout * groups, blocks = q.blocks();
  const int64_t ranges = gradient_ranges(n_out);
  memset(dw, 0, sizeof(float) * offsets * size);
  Shortage shortage;
  if (ranges == 1) {  // few rows, all in the cache: an offset belongs to one thread
#pragma omp parallel for schedule(dynamic, 1) num_threads(useful_threads(threads, offsets, 1))
    for (int64_t k = 0; k < offsets; k++)
      shortage.within([&] {
        for (int64_t b = 0; b < blocks; b++) kernel.gradient(q, b, k, dw + k * size);
      });
    shortage.raise();
    return 0;
  }
#pragma omp parallel num_threads(useful_threads(threads, ranges, 1))
  {
    std::unique_ptr<float[], CacheLines> sum;
    shortage.within([&] { sum = cache_lines<float>(offsets * size); });
#pragma omp for schedule(dynamic, 1) ordered
    for (int64_t s = 0; s < ranges; s++) {
      shortage.within([&] {
        memset(sum.get(), 0, sizeof(float) * offsets * size);
        for (int64_t b = blocks * s / ranges; b < blocks * (s + 1) / ranges; b++)
          for (int64_t k = 0; k < offsets; k++) kernel.gradient(q, b, k, sum.get() + k * size);
      });
#pragma omp ordered
      for (int64_t i = 0; i < offsets * size && shortage.none(); i++) dw[i] += sum[i];
    }
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE
