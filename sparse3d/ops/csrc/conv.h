// What the instruction sets' convolution kernels share with the code that calls them.
#pragma once
#include <stdlib.h>

#include <memory>

#include "common.h"

// Uninitialised memory that begins on a cache line.
struct CacheLines {
  void operator()(void* p) const { free(p); }
};
template <class T>
static std::unique_ptr<T[], CacheLines> cache_lines(int64_t n) {
  void* const memory = aligned_alloc(64, (n * sizeof(T) / 64 + 1) * 64);
  if (!memory) throw std::bad_alloc();
  return std::unique_ptr<T[], CacheLines>((T*)memory);
}

// The triples of a kernel map, listed by block of output rows and, within it, by kernel offset.
struct ConvPairs {
  const int64_t* starts;  // [blocks * offsets + 1], where the list of (block, offset) begins
  const int32_t* in;      // input rows
  const uint16_t* out;    // output rows, counted from the block's first; ascending in each list
  int64_t block;          // output rows per block
  int64_t mirror;         // 1: weight k meets list offsets - 1 - k
};

struct ConvCall {
  const float* x;  // [n_in, groups * cin]
  const float* w;  // packed: offset k at k * w_offset, its group g w_group further; see `pack`
  const float* bias;          // [groups * cout] or null
  const float *scale, *shift;  // [groups * cout] or null: y * scale + shift in the end
  const float* residual;      // [n_out, groups * cout] or null: added after that
  int64_t relu;               // 1: then negative results become 0
  const float* dy;            // [n_out, groups * cout], for the gradient of w
  float* y;                   // [n_out, groups * cout]
  ConvPairs pairs;
  int64_t n_out, offsets, groups, cin, cout;  // channels are those of one group
  int64_t w_offset, w_group;

  int64_t blocks() const { return (n_out + pairs.block - 1) / pairs.block; }
  int64_t length(int64_t b) const {
    return n_out - b * pairs.block < pairs.block ? n_out - b * pairs.block : pairs.block;
  }
  // Number of the list that weight k meets in block b.
  int64_t list(int64_t b, int64_t k) const {
    return b * offsets + (pairs.mirror ? offsets - 1 - k : k);
  }
};

// Whether whole groups of as many inputs as outputs lie side by side in a vector of `width` lanes. Where
// they have eight channels, tiles are as fast.
static inline bool groups_in_lanes(const ConvCall& q, int64_t width) {
  return q.groups > 1 && q.cin == q.cout && q.cin <= 4 && width % q.cin == 0;
}

struct ConvKernels {
  void (*lay_out)(ConvCall& call);  // sets the sizes of the packed weights
  // Writes the pairs (row_of[j], j) with row_of[j] >= 0, j < len, and up to 15 entries past them.
  int64_t (*list)(const int32_t* row_of, int64_t len, int32_t* in, uint16_t* out);
  // Lays out offset k of w, [offsets, cin, groups * cout] or, transposed, [offsets, cout, groups * cin]
  void (*pack)(const ConvCall& call, const float* w, bool transposed, int64_t k, float* to);
  // y of block b
  void (*forward)(const ConvCall& call, int64_t b);
  // adds to `sum` what the pairs of block b give to the gradient of weight k, [cin, groups * cout]
  void (*gradient)(const ConvCall& call, int64_t b, int64_t k, float* sum);
};

// Partial sums of a weight gradient, added in order: fixed by the rows, because they decide the bits.
static inline int64_t gradient_ranges(int64_t n_out) {
  const int64_t ranges = n_out / 8192;
  return ranges < 1 ? 1 : ranges < 16 ? ranges : 16;
}

#define CONV_HIDDEN __attribute__((visibility("hidden")))
CONV_HIDDEN extern const ConvKernels conv_plain, conv_avx2, conv_avx512, conv_amx_float;
CONV_HIDDEN bool tiles_exist();  // AMX's, for this process
