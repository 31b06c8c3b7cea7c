// What the instruction sets' convolution kernels share with the code that calls them.
#pragma once
#include "common.h"

// Output rows that one thread works on at a time: their features stay in the L2 cache.
constexpr int64_t CONV_BLOCK = 512;
// Room for the (input row, output row) pairs of a block; kernels write up to 16 past the end of each.
constexpr int64_t CONV_LIST = 2 * (CONV_BLOCK + 16);

struct ConvCall {
  const float* x;        // [n_in, groups * cin]
  const float* w;        // element (k, g, i, j) lies at k * w_offset + g * w_group + i * w_row + j
  const float* bias;     // [groups * cout] or null
  const float* dy;       // [n_out, groups * cout], for the gradient of w
  const int32_t* table;  // [offsets, n_out], -1 = no input
  float* y;              // [n_out, groups * cout]
  int64_t n_in, n_out, offsets, groups, cin, cout;  // channels are those of one group
  int64_t w_offset, w_group, w_row;
};

struct ConvKernels {
  // y of the rows [first, first + len); false when the table names a row outside [0, n_in)
  bool (*forward)(const ConvCall& call, int64_t first, int64_t len, int32_t* lists);
  // adds what these rows give to the gradient of w, in `sum`, laid out like w; false as above
  bool (*gradient)(const ConvCall& call, int64_t first, int64_t len, int32_t* lists, float* sum);
};

#define CONV_HIDDEN __attribute__((visibility("hidden")))
CONV_HIDDEN extern const ConvKernels conv_plain, conv_avx2, conv_avx512;
