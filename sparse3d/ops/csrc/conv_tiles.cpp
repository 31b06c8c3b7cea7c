// Lists the groups of conv_tiles.h for a table of input rows.
#include "conv_tiles.h"

#include <string.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

namespace {

struct Groups {
  std::vector<uint16_t> out;
  std::vector<int64_t> ends;  // steps up to the end of each group
  std::vector<int32_t> offset, in;
};

// Stable counting sort of `order` by 11 bits of key[row].
void sort_by_digit(const std::vector<uint64_t>& key, int shift, std::vector<uint16_t>& order,
                   std::vector<uint16_t>& other) {
  constexpr int BUCKETS = 2048;
  int32_t place[BUCKETS + 1] = {0};
  for (const uint16_t row : order) place[((key[row] >> shift) & (BUCKETS - 1)) + 1]++;
  std::partial_sum(place, place + BUCKETS + 1, place);
  for (const uint16_t row : order) other[place[(key[row] >> shift) & (BUCKETS - 1)]++] = row;
  order.swap(other);
}

// Rows in ascending order of the set of offsets that they meet, the rarest offset first; rows that
// meet none are left out unless `all`.
std::vector<uint16_t> by_neighbours(const int32_t* table, int64_t n_out, int64_t first, int64_t len,
                                    const std::vector<int32_t>& set, bool all) {
  std::vector<uint64_t> key(len, 0);
  const int64_t bits = std::min<int64_t>(set.size(), 64);
  for (int64_t i = 0; i < bits; i++) {
    const int32_t* row_of = table + set[set.size() - bits + i] * n_out + first;
    for (int64_t j = 0; j < len; j++) key[j] |= (uint64_t)(row_of[j] >= 0) << i;
  }
  std::vector<uint16_t> order;
  order.reserve(len);
  for (int64_t j = 0; j < len; j++)
    if (all || key[j] || (int64_t)set.size() > bits) order.push_back((uint16_t)j);
  std::vector<uint16_t> other(order.size());
  for (int shift = 0; shift < bits; shift += 11) sort_by_digit(key, shift, order, other);
  return order;
}

void add_groups(const int32_t* table, int64_t n_out, int64_t first,
                const std::vector<int32_t>& set, const std::vector<uint16_t>& order, Groups& to) {
  for (size_t at = 0; at < order.size(); at += GROUP) {
    const int64_t rows = std::min<int64_t>(GROUP, order.size() - at);
    for (int64_t j = 0; j < GROUP; j++) to.out.push_back(j < rows ? order[at + j] : NO_ROW);
    for (const int32_t k : set) {
      const int32_t* row_of = table + k * n_out + first;
      int32_t in[GROUP], met[2] = {0, 0};
      for (int64_t j = 0; j < GROUP; j++) {
        in[j] = j < rows ? std::max(row_of[order[at + j]], -1) : -1;
        met[j / 16] |= in[j] >= 0;
      }
      if (!met[0] && !met[1]) continue;
      to.offset.push_back(k * 4 + met[0] + met[1] * 2);
      to.in.insert(to.in.end(), in, in + GROUP);
    }
    to.ends.push_back(to.offset.size());
  }
}

// Groups of one block with the offsets, sorted by falling frequency, in `sets` equal sets.
Groups groups_of(const int32_t* table, int64_t n_out, int64_t first, int64_t len,
                 const std::vector<int32_t>& offsets, int64_t sets) {
  Groups result;
  const int64_t count = offsets.size();
  for (int64_t s = 0; s < sets; s++) {
    const std::vector<int32_t> set(offsets.begin() + count * s / sets,
                                   offsets.begin() + count * (s + 1) / sets);
    if (s > 0 && set.empty()) continue;
    const auto order = by_neighbours(table, n_out, first, len, set, s == 0);
    add_groups(table, n_out, first, set, order, result);
  }
  return result;
}

// Cycles, about, at 64 channels: what the halves of steps multiply against what a group adds up.
double cost(const Groups& g, bool several) {
  int64_t halves = 0;
  for (const int32_t code : g.offset) halves += (code & 1) + (code >> 1 & 1);
  return 150. * halves + (several ? 500. : 250.) * g.ends.size();
}

Groups best_groups(const int32_t* table, int64_t n_out, int64_t offsets, int64_t first, int64_t len) {
  std::vector<int64_t> met(offsets, 0);
  std::vector<int32_t> falling;
  for (int64_t k = 0; k < offsets; k++) {
    for (int64_t j = 0; j < len; j++) met[k] += table[k * n_out + first + j] >= 0;
    if (met[k]) falling.push_back((int32_t)k);
  }
  std::stable_sort(falling.begin(), falling.end(), [&](int a, int b) { return met[a] > met[b]; });
  Groups one = groups_of(table, n_out, first, len, falling, 1);
  if (falling.size() < 3) return one;
  Groups three = groups_of(table, n_out, first, len, falling, 3);
  return cost(one, false) <= cost(three, true) ? one : three;
}

struct Found {
  std::vector<Groups> blocks;
};

}  // namespace

// Groups for table [offsets, n_out] (the input row, negative where none). Returns a handle for
// s3d_conv_tiles_take; sizes receives the numbers of groups and of steps.
EXPORT int64_t s3d_conv_tiles_find(const int32_t* table, int64_t offsets, int64_t n_out, int64_t block,
                                   int64_t* sizes, int64_t threads) try {
  const int64_t number = (n_out + block - 1) / block;
  std::unique_ptr<Found> found(new Found{std::vector<Groups>(number)});
  Shortage shortage;
#pragma omp parallel for schedule(dynamic, 1) num_threads(useful_threads(threads, number, 1))
  for (int64_t b = 0; b < number; b++)
    shortage.within([&] {
      found->blocks[b] =
          best_groups(table, n_out, offsets, b * block, std::min(block, n_out - b * block));
    });
  shortage.raise();
  sizes[0] = sizes[1] = 0;
  for (const Groups& g : found->blocks) {
    sizes[0] += g.ends.size();
    sizes[1] += g.offset.size();
  }
  return (int64_t)found.release();
} OR_SHORTAGE

// Writes what was found, laid out as in ConvTiles, and frees it.
EXPORT int64_t s3d_conv_tiles_take(int64_t handle, int64_t* blocks, int64_t* steps, uint16_t* out,
                                   int32_t* offset, int32_t* in) try {
  Found* found = (Found*)handle;
  int64_t groups = 0, total = 0;
  *blocks++ = 0;
  *steps++ = 0;
  for (const Groups& g : found->blocks) {
    std::copy(g.out.begin(), g.out.end(), out + groups * GROUP);
    std::copy(g.offset.begin(), g.offset.end(), offset + total);
    std::copy(g.in.begin(), g.in.end(), in + total * GROUP);
    for (const int64_t end : g.ends) *steps++ = total + end;
    groups += g.ends.size();
    total += g.offset.size();
    *blocks++ = groups;
  }
  delete found;
  return 0;
} OR_SHORTAGE
