// Stable parallel radix sort of 64-bit keys that carry their row. The result does not depend on the
// number of threads: each pass is a counting sort in which every thread keeps its rows' order.
#pragma once
#include <omp.h>
#include <string.h>

#include <vector>

#include "common.h"

namespace radix {

struct Item {
  uint64_t key;
  int64_t row;
};

constexpr int kBits = 11;
constexpr int kDigits = 1 << kBits;

// Sorts `items` by key; equal keys keep their order. `bits`: keys are below 2^bits.
inline void sort(std::vector<Item>& items, int bits, int64_t threads) {
  const int64_t n = (int64_t)items.size();
  const int passes = (bits + kBits - 1) / kBits;
  if (n < 2 || passes == 0) return;
  std::vector<Item> spare(n);
  const int team = useful_threads(threads, n, 1 << 14);
  std::vector<int64_t> place((size_t)team * kDigits);
  Item* from = items.data();
  Item* to = spare.data();
#pragma omp parallel num_threads(team) firstprivate(from, to)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t begin = n * self / count, end = n * (self + 1) / count;
    int64_t* mine = &place[(size_t)self * kDigits];
    for (int pass = 0; pass < passes; ++pass) {
      const int shift = pass * kBits;
      memset(mine, 0, sizeof(int64_t) * kDigits);
      for (int64_t i = begin; i < end; ++i) ++mine[(from[i].key >> shift) & (kDigits - 1)];
#pragma omp barrier
#pragma omp single
      {
        int64_t sum = 0;
        for (int digit = 0; digit < kDigits; ++digit)
          for (int t = 0; t < count; ++t) {
            int64_t& slot = place[(size_t)t * kDigits + digit];
            const int64_t here = slot;
            slot = sum;
            sum += here;
          }
      }
      for (int64_t i = begin; i < end; ++i)
        to[mine[(from[i].key >> shift) & (kDigits - 1)]++] = from[i];
#pragma omp barrier
      Item* swap = from;
      from = to;
      to = swap;
    }
  }
  if (passes % 2) items.swap(spare);
}

// Number of bits of the largest key.
inline int bits_of(uint64_t largest) { return largest ? 64 - __builtin_clzll(largest) : 0; }

}  // namespace radix
