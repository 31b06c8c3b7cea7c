// Stable parallel radix sort of keys that carry their row. The result does not depend on the number of
// threads: each pass is a counting sort in which every thread keeps its rows' order.
#pragma once
#include <omp.h>
#include <string.h>

#include <utility>
#include <vector>

#include "array.h"
#include "common.h"

namespace radix {

// Bits of a pass: counts of this many digits must not cost more than the items.
constexpr int most_bits(int64_t n) { return n >> 16 ? 13 : 11; }

struct Item {
  uint64_t key;
  int64_t row;
};

// Number of bits of the largest key.
inline int bits_of(uint64_t largest) { return largest ? 64 - __builtin_clzll(largest) : 0; }

inline uint64_t digits(const Item& item) { return item.key; }
inline uint64_t digits(uint64_t item) { return item; }

// Sorts [n] items by their bits [low, low + bits); equal ones keep their order. Returns whether the
// result lies in `to` rather than in `from`.
template <class T>
bool sort(T* from, T* to, int64_t n, int low, int bits, int64_t threads) {
  const int most = most_bits(n), passes = (bits + most - 1) / most;
  if (n < 2 || passes == 0) return false;
  const int width = (bits + passes - 1) / passes, values = 1 << width;
  const int team = useful_threads(threads, n, 1 << 13);
  std::vector<int64_t> place((size_t)team * values);
#pragma omp parallel num_threads(team) firstprivate(from, to)
  {
    const int count = omp_get_num_threads(), self = omp_get_thread_num();
    const int64_t begin = n * self / count, end = n * (self + 1) / count;
    int64_t* mine = &place[(size_t)self * values];
    for (int pass = 0; pass < passes; ++pass) {
      const int shift = low + pass * width;
      const uint64_t mask = values - 1;
      memset(mine, 0, sizeof(int64_t) * values);
      for (int64_t i = begin; i < end; ++i) ++mine[digits(from[i]) >> shift & mask];
#pragma omp barrier
#pragma omp single
      {
        int64_t sum = 0;
        for (int digit = 0; digit < values; ++digit)
          for (int t = 0; t < count; ++t) {
            int64_t& slot = place[(size_t)t * values + digit];
            const int64_t here = slot;
            slot = sum;
            sum += here;
          }
      }
      for (int64_t i = begin; i < end; ++i) to[mine[digits(from[i]) >> shift & mask]++] = from[i];
#pragma omp barrier
      std::swap(from, to);
    }
  }
  return passes % 2;
}

inline void sort(std::vector<Item>& items, int bits, int64_t threads) {
  std::vector<Item> spare(items.size());
  if (sort(items.data(), spare.data(), (int64_t)items.size(), 0, bits, threads)) items.swap(spare);
}

template <class T>
void sort(Array<T>& items, int64_t n, int low, int bits, int64_t threads) {
  Array<T> spare = uninitialised<T>(n);
  if (sort(items.get(), spare.get(), n, low, bits, threads)) items.swap(spare);
}

// Rows 0 .. n - 1 in ascending order of their keys, equal keys in that of the rows. Key and row share
// one number where they fit.
class Sorted {
 public:
  // key_of(row) is below 2^bits.
  template <class Key>
  Sorted(int64_t n, int bits, const Key& key_of, int64_t threads)
      : n_(n), row_bits_(bits_of((uint64_t)n)), packed_(bits + row_bits_ <= 64) {
    const int team = useful_threads(threads, n, 1 << 14);
    if (packed_) {
      small_ = uninitialised<uint64_t>(n);
#pragma omp parallel for num_threads(team) schedule(static)
      for (int64_t i = 0; i < n; ++i) small_[i] = (uint64_t)key_of(i) << row_bits_ | (uint64_t)i;
      sort(small_, n, row_bits_, bits, threads);
    } else {
      large_ = uninitialised<Item>(n);
#pragma omp parallel for num_threads(team) schedule(static)
      for (int64_t i = 0; i < n; ++i) large_[i] = {(uint64_t)key_of(i), i};
      sort(large_, n, 0, bits, threads);
    }
  }
  int64_t size() const { return n_; }
  uint64_t key(int64_t place) const {
    return packed_ ? small_[place] >> row_bits_ : large_[place].key;
  }
  int64_t row(int64_t place) const {
    return packed_ ? (int64_t)(small_[place] & (((uint64_t)1 << row_bits_) - 1)) : large_[place].row;
  }

 private:
  int64_t n_;
  int row_bits_;
  bool packed_;
  Array<uint64_t> small_;
  Array<Item> large_;
};

}  // namespace radix
