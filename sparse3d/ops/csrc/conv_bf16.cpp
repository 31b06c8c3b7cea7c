// bfloat16 convolution and the gradient of its weights: see conv.cpp for the order of things.
#include "conv_bf16.h"

#include <omp.h>
#include <string.h>

#include <algorithm>

bool tiles_exist() {
  static const bool found = conv_amx.available();
  return found;
}

// What this processor has for bfloat16: 2 AMX, 1 AVX512-BF16, 0 neither.
EXPORT int64_t s3d_conv_bf16_available() try { return tiles_exist() ? 2 : conv_avx512_bf16.available() ? 1 : 0; } OR_SHORTAGE

// y of all blocks. `mirror`: weight k is where the lists look for weight offsets - 1 - k.
static void convolve(Bf16Call& q, const Bf16Kernels& kernel, const uint16_t* w, bool transposed,
                     int64_t block, bool mirror, int64_t threads) {
  q.w_offset = kernel.packed_size(q.cin, q.cout);
  const auto packed = cache_lines<uint16_t>(q.offsets * q.w_offset);
  q.w = packed.get();
  const int64_t number = (q.n_out + block - 1) / block;
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, number, 1))
  {
    Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t k = 0; k < q.offsets; k++) {
      const int64_t at = mirror ? q.offsets - 1 - k : k;
      kernel.pack(q, w, transposed, k, packed.get() + at * q.w_offset);
    }
    kernel.begin();
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < number; b++) shortage.within([&] { kernel.forward(q, b, scratch); });
    kernel.end();
  }
  shortage.raise();
}

// x [n_in, cin], w [offsets, cin, cout] (transposed: [offsets, cout, cin]), scale and shift [cout] or
// null, residual [n_out, cout] or null -> y [n_out, cout], over the pairs of conv.h.
EXPORT int64_t s3d_sparse_conv_bf16(const uint16_t* x, const uint16_t* w, int64_t transposed,
                                    const float* scale, const float* shift,
                                    const uint16_t* residual, int64_t relu, const int64_t* starts,
                                    const int32_t* in, const uint16_t* out, int64_t block,
                                    int64_t mirror, int64_t n_out, int64_t offsets, int64_t cin,
                                    int64_t cout, uint16_t* y, int64_t threads) try {
  const ConvPairs pairs = {starts, in, out, block, 0};
  Bf16Call q = {x, nullptr, scale, shift, residual, relu, nullptr, y, &pairs, nullptr, n_out, offsets, cin, cout, 0};
  convolve(q, conv_avx512_bf16, w, transposed, block, mirror, threads);
  return 0;
} OR_SHORTAGE

// The same on AMX, over the tiles of conv_tiles.h.
EXPORT int64_t s3d_sparse_conv_bf16_tiles(const uint16_t* x, const uint16_t* w, int64_t transposed,
                                          const float* scale, const float* shift,
                                          const uint16_t* residual, int64_t relu,
                                          const int64_t* blocks, const int64_t* steps,
                                          const uint16_t* out, const int32_t* offset, const int32_t* in,
                                          int64_t block, int64_t mirror, int64_t n_out, int64_t offsets,
                                          int64_t cin, int64_t cout, uint16_t* y, int64_t threads) try {
  const ConvTiles tiles = {blocks, steps, out, offset, in, block, mirror};
  Bf16Call q = {x, nullptr, scale, shift, residual, relu, nullptr, y, nullptr, &tiles, n_out, offsets, cin, cout, 0};
  convolve(q, conv_amx, w, transposed, block, mirror, threads);
  return 0;
} OR_SHORTAGE

// dw [offsets, cin, cout] float of x and dy [n_out, cout], over the pairs of conv.h; on AMX, if `tiles`.
EXPORT int64_t s3d_sparse_conv_weight_grad_bf16(const uint16_t* x, const uint16_t* dy,
                                                const int64_t* starts, const int32_t* in,
                                                const uint16_t* out, int64_t block, int64_t mirror,
                                                int64_t n_out, int64_t offsets, int64_t cin,
                                                int64_t cout, float* dw, int64_t tiles, int64_t threads) try {
  const Bf16Kernels& kernel = tiles ? conv_amx : conv_avx512_bf16;
  const ConvPairs pairs = {starts, in, out, block, mirror};
  const Bf16Call q = {x,       nullptr, nullptr, nullptr, nullptr, 0, dy, nullptr, &pairs, nullptr, n_out,
                      offsets, cin,     cout,    0};
  const int64_t number = (n_out + block - 1) / block, size = kernel.sum_size(cin, cout);
  const int64_t ranges = gradient_ranges(n_out);
  const auto total = cache_lines<float>(offsets * size);  // tiles that straddle cache lines are slow
  memset(total.get(), 0, sizeof(float) * offsets * size);
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, std::max(ranges, offsets), 1))
  {
    Scratch scratch;
    kernel.begin();
    if (ranges == 1) {  // few rows, all in the cache: an offset belongs to one thread
#pragma omp for schedule(dynamic, 1)
      for (int64_t k = 0; k < offsets; k++)
        shortage.within([&] {
          for (int64_t b = 0; b < number; b++)
            kernel.gradient(q, b, k, total.get() + k * size, scratch);
        });
    } else {
      std::unique_ptr<float[], CacheLines> sum;
      shortage.within([&] { sum = cache_lines<float>(offsets * size); });
#pragma omp for schedule(dynamic, 1) ordered
      for (int64_t s = 0; s < ranges; s++) {
        shortage.within([&] {
          memset(sum.get(), 0, sizeof(float) * offsets * size);
          for (int64_t b = number * s / ranges; b < number * (s + 1) / ranges; b++)
            for (int64_t k = 0; k < offsets; k++)
              kernel.gradient(q, b, k, sum.get() + k * size, scratch);
        });
#pragma omp ordered
        for (int64_t i = 0; i < offsets * size && shortage.none(); i++) total[i] += sum[i];
      }
    }
    kernel.end();
#pragma omp for schedule(static)
    for (int64_t k = 0; k < offsets; k++)
      kernel.unpack(q, total.get() + k * size, dw + k * cin * cout);
  }
  shortage.raise();
  return 0;
} OR_SHORTAGE
