// What the bfloat16 kernels share with the code that calls them. Sums are in float.
#pragma once
#include "conv.h"
#include "conv_tiles.h"

struct Bf16Call {
  const uint16_t* x;           // [n_in, cin]
  const uint16_t* w;           // packed by the kernels' `pack`, offset k at k * w_offset
  const float *scale, *shift;  // [cout] or null: y * scale + shift in the end
  const uint16_t* residual;    // [n_out, cout] or null: added after that
  int64_t relu;                // 1: then negative results become 0
  const uint16_t* dy;          // [n_out, cout], for the gradient of w
  uint16_t* y;                 // [n_out, cout]
  const ConvPairs* pairs;      // all kernels' for the gradient, and AVX512-BF16's for y
  const ConvTiles* tiles;      // AMX's for y
  int64_t n_out, offsets, cin, cout;
  int64_t w_offset;

  int64_t list(int64_t b, int64_t k) const {  // as ConvCall's
    return b * offsets + (pairs->mirror ? offsets - 1 - k : k);
  }
};

// Scratch memory of one thread, which grows to what is asked for.
struct Scratch {
  std::unique_ptr<char[], CacheLines> memory;
  int64_t bytes = 0;
  char* get(int64_t wanted) {
    if (wanted > bytes) {
      memory = cache_lines<char>(wanted);
      bytes = wanted;
    }
    return memory.get();
  }
};

struct Bf16Kernels {
  bool (*available)();
  void (*begin)();  // before a thread's first call, and `end` after its last
  void (*end)();
  int64_t (*packed_size)(int64_t cin, int64_t cout);  // elements per offset
  // Lays out offset k of w, [offsets, cin, cout] or, transposed, [offsets, cout, cin]
  void (*pack)(const Bf16Call& call, const uint16_t* w, bool transposed, int64_t k, uint16_t* to);
  // y of block b
  void (*forward)(const Bf16Call& call, int64_t b, Scratch& scratch);
  // The gradient of one weight is summed in the kernels' own order of channels
  int64_t (*sum_size)(int64_t cin, int64_t cout);  // floats per offset
  void (*gradient)(const Bf16Call& call, int64_t b, int64_t k, float* sum, Scratch& scratch);
  void (*unpack)(const Bf16Call& call, const float* sum, float* dw);  // dw [cin, cout]
};

CONV_HIDDEN extern const Bf16Kernels conv_amx, conv_avx512_bf16;
