// What kernels on AMX tiles share. What follows this header is compiled for them: other headers come first,
// and a file ends with `pragma clang attribute pop`.
#pragma once
#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wuninitialized"  // in gcc's own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")
#endif

#include "conv_lanes.h"

namespace {

constexpr int64_t TILE = 512;  // bfloat16 elements of a tile: 16 rows of 32

// Whether the processor has AMX and AVX512-BF16 and Linux lends this process the tile registers.
inline bool tiles_available() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool amx = (d >> 24 & 1) && (d >> 22 & 1), words = b >> 30 & 1;
  if (!amx || !words || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

// In static memory: compilers know of no more than eight bytes that the instruction reads.
struct TileConfiguration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
alignas(64) const TileConfiguration EIGHT_WHOLE_TILES = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

inline void begin_tiles() { _tile_loadconfig(&EIGHT_WHOLE_TILES); }
inline void end_tiles() { _tile_release(); }

// 16 rows of 16 elements of four bytes -> `to`, 64 bytes a row, with rows and columns exchanged.
inline void transpose(const __m512i* r, void* to) {
  __m512i s[16], t[16], *rows = (__m512i*)to;
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    t[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
    t[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
    t[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
    t[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
  }
  for (int i = 0; i < 4; i++) {  // t[4 q + i] holds columns i, 4 + i, 8 + i, 12 + i of rows 4 q to 4 q + 3
    s[i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88);
    s[4 + i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
    s[8 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
    s[12 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    _mm512_store_si512(rows + i, _mm512_shuffle_i32x4(s[i], s[8 + i], 0x88));
    _mm512_store_si512(rows + 8 + i, _mm512_shuffle_i32x4(s[i], s[8 + i], 0xdd));
    _mm512_store_si512(rows + 4 + i, _mm512_shuffle_i32x4(s[4 + i], s[12 + i], 0x88));
    _mm512_store_si512(rows + 12 + i, _mm512_shuffle_i32x4(s[4 + i], s[12 + i], 0xdd));
  }
}

}  // namespace
