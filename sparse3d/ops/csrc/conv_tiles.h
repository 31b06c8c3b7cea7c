// Groups of output rows with like neighbours, for kernels that multiply whole tiles.
#pragma once
#include "common.h"

// Output rows per group: two AMX tiles.
constexpr int64_t GROUP = 32;

// Within a block of outputs the offsets are split into sets of like frequency. For each set the rows
// are ordered by the offsets of it that they meet, and cut into groups. A group multiplies, for every
// offset that one of its rows meets, the input rows of all of them; some are missing and count as zero.
struct ConvTiles {
  const int64_t* blocks;  // [number + 1], where the groups of a block begin
  const int64_t* steps;   // [groups + 1], where the steps of a group begin
  const uint16_t* out;    // [groups, GROUP] output rows counted from the block's first, or NO_ROW
  const int32_t* offset;  // [steps] kernel offset * 4 + 1 (some of the first 16 rows meet it) + 2 (of the others)
  const int32_t* in;      // [steps, GROUP] input rows, -1 where none
  int64_t block;          // output rows per block
  int64_t mirror;         // 1: weight k meets offset number offsets - 1 - k
};

constexpr uint16_t NO_ROW = 0xffff;
