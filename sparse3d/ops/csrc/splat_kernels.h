// Blending kernels in terms of a struct `V`, sixteen lanes, which the including file defines for its
// instruction set. Everything here is static: no other file may end up with code for that set.
//
// A tile is worked on in cells of up to 16 x 16 pixels, a cell in sixteen blocks of 4 x 4 pixels, one
// pixel per lane. Each Gaussian of the list is first tested against the sixteen blocks at once, one block
// per lane, and then evaluated only in the blocks that its ellipse reaches.
#pragma once
#include <string.h>

#include <algorithm>

#include "splat.h"

namespace {

using F = V::F;
using I = V::I;
using M = V::M;

constexpr int CHUNK = 64;      // list entries whose reach is found at a time
constexpr int AHEAD = 12;       // entries: their Gaussians lie anywhere in memory
constexpr float SLACK = 0.02f;  // of the reach, in powers of two: far above the rounding errors

struct Cell {
  int64_t image, x, y, width, height;  // of its first pixel; width and height of at most 16
  float* light;    // [16 blocks][16]
  float* acc;      // [16 blocks][channels][16]
  int32_t* last;   // [16 blocks][16]
};

inline float* aligned(float* p) { return (float*)(((uintptr_t)p + 63) / 64 * 64); }

// Calls body(cell) for the cells of a tile, in order.
template <class Body>
inline void for_cells(const SplatCall& q, int64_t tile, float* scratch, const Body& body) {
  const int64_t y0 = tile / q.across % q.down * q.tile, x0 = tile % q.across * q.tile;
  const int64_t y1 = std::min(y0 + q.tile, q.height), x1 = std::min(x0 + q.tile, q.width);
  Cell cell;
  cell.image = tile / (q.across * q.down);
  cell.light = aligned(scratch);
  cell.last = (int32_t*)(cell.light + 256);
  cell.acc = cell.light + 512;
  for (cell.y = y0; cell.y < y1; cell.y += 16)
    for (cell.x = x0; cell.x < x1; cell.x += 16) {
      cell.width = std::min<int64_t>(16, x1 - cell.x);
      cell.height = std::min<int64_t>(16, y1 - cell.y);
      body(cell);
    }
}

// Calls body(lane, pixel in the pictures) for the pixels of a block.
template <class Body>
inline void for_pixels(const SplatCall& q, const Cell& cell, int block, const Body& body) {
  const int64_t x = block % 4 * 4, y = block / 4 * 4;
  const int64_t across = std::min<int64_t>(4, cell.width - x);
  const int64_t down = std::min<int64_t>(4, cell.height - y);
  for (int64_t i = 0; i < down; i++) {
    const int64_t first = (cell.image * q.height + cell.y + y + i) * q.width + cell.x + x;
    for (int64_t j = 0; j < across; j++) body((int)(4 * i + j), first + j);
  }
}

// Bits of the blocks in which the Gaussian reaches an alpha of 1/255: the least value of its form on
// each block lies at its mean, or on an edge that faces the mean.
inline uint32_t reach(const float* r, F left, F top) {
  if (r[6] != r[6]) return 0xffff;  // no ellipse
  const F zero = V::set(0.f);
  const F x0 = V::sub(left, V::set(r[0])), x1 = V::add(x0, V::set(3.f));
  const F y0 = V::sub(top, V::set(r[1])), y1 = V::add(y0, V::set(3.f));
  const F x = V::min(V::max(zero, x0), x1), y = V::min(V::max(zero, y0), y1);
  const F a = V::set(r[2]), b = V::set(r[3]), c = V::set(r[4]);
  const F v = V::min(V::max(V::mul(V::set(r[7]), x), y0), y1);
  const F u = V::min(V::max(V::mul(V::set(r[6]), y), x0), x1);
  const F side = V::fma(V::fma(a, x, V::mul(b, v)), x, V::mul(V::mul(c, v), v));
  const F edge = V::fma(V::fma(a, u, V::mul(b, y)), u, V::mul(V::mul(c, y), y));
  return V::bits(V::le(V::min(side, edge), V::set(r[5] - SPLAT_LOG_MIN + SLACK)));
}

inline void prefetch(const SplatCall& q, int64_t row) {
  __builtin_prefetch(q.records + SPLAT_RECORD * row);
  __builtin_prefetch(q.colors + q.channels * row);
}

// The blocks' first pixel centres.
inline F block_left(const Cell& cell) {
  return V::add(V::set((float)cell.x + 0.5f), V::mul(V::set(4.f), V::column()));
}
inline F block_top(const Cell& cell) {
  return V::add(V::set((float)cell.y + 0.5f), V::mul(V::set(4.f), V::row()));
}

// Alpha before the clamp, and which lanes count: alpha at least 1/255, and the form not negative.
inline F exponent(const float* r, F dx, F dy, M among, M& counts) {
  const F t = V::fma(V::set(r[3]), dy, V::mul(V::set(r[2]), dx));
  const F form = V::fma(t, dx, V::mul(V::mul(V::set(r[4]), dy), dy));
  const F p = V::sub(V::set(r[5]), form);
  counts = V::both(V::both(among, V::le(V::set(SPLAT_LOG_MIN), p)), V::le(V::set(0.f), form));
  return V::exp2(p);
}

// ---------------------------------------------------------------------- forward

// Blends the list entries `bits` of a chunk into one block; returns the pixels still open.
template <int D>
inline uint32_t blend(const SplatCall& q, const int32_t* ids, uint64_t bits, int32_t number,
                      uint32_t open, F px, F py, float* light, int32_t* last, float* acc) {
  constexpr int R = D ? D : 1;
  F T = V::load(light), sum[R];
  I seen = V::loadi(last);
  M among = V::mask(open);
  for (int k = 0; k < D; k++) sum[k] = V::load(acc + 16 * k);
  while (bits) {
    const int e = __builtin_ctzll(bits);
    bits &= bits - 1;
    const int64_t row = ids[e];
    const float *r = q.records + SPLAT_RECORD * row, *c = q.colors + row * (D ? D : q.channels);
    const F dx = V::sub(V::set(r[0]), px), dy = V::sub(V::set(r[1]), py);
    M counts;
    const F raw = exponent(r, dx, dy, among, counts);
    F alpha = V::keep(counts, V::min(raw, V::set(SPLAT_ALPHA_MAX)));
    F next = V::left(T, alpha);
    const M full = V::le(next, V::set(SPLAT_LIGHT_MIN));
    if (__builtin_expect(V::any(full), 0)) {  // leaves this Gaussian out, and all behind it
      alpha = V::drop(full, alpha);
      next = V::left(T, alpha);
      counts = V::without(counts, full);
      open &= ~V::bits(full);
      among = V::mask(open);
      if (!open) bits = 0;
    }
    const F w = V::mul(alpha, T);
    if (D)
      for (int k = 0; k < D; k++) sum[k] = V::fma(w, V::set(c[k]), sum[k]);
    else
      for (int64_t k = 0; k < q.channels; k++)
        V::store(acc + 16 * k, V::fma(w, V::set(c[k]), V::load(acc + 16 * k)));
    T = next;
    seen = V::select(counts, number + e, seen);
  }
  V::store(light, T);
  V::storei(last, seen);
  for (int k = 0; k < D; k++) V::store(acc + 16 * k, sum[k]);
  return open;
}

inline void write_block(const SplatCall& q, const Cell& cell, int block) {
  const float *acc = cell.acc + 16 * q.channels * block, *light = cell.light + 16 * block;
  const float* behind = q.backgrounds ? q.backgrounds + cell.image * q.channels : nullptr;
  for_pixels(q, cell, block, [&](int lane, int64_t pixel) {
    q.transmittance[pixel] = light[lane];
    q.looked_at[pixel] = cell.last[16 * block + lane];
    float* out = q.image + pixel * q.channels;
    for (int64_t k = 0; k < q.channels; k++)
      out[k] = acc[16 * k + lane] + (behind ? light[lane] * behind[k] : 0.f);
  });
}

template <int D>
void forward_tile(const SplatCall& q, int64_t tile, float* scratch) {
  const bool shown = !q.shown || q.shown[tile];
  const int64_t begin = q.begin(tile), end = shown ? q.end(tile) : begin;
  for_cells(q, tile, scratch, [&](Cell& cell) {
    uint32_t open[16] = {}, blocks = 0;
    memset(cell.acc, 0, sizeof(float) * 256 * q.channels);
    memset(cell.last, 0, sizeof(int32_t) * 256);
    for (int i = 0; i < 256; i++) cell.light[i] = 1.f;
    for (int b = 0; b < 16; b++) {
      for_pixels(q, cell, b, [&](int lane, int64_t) { open[b] |= 1u << lane; });
      blocks |= (open[b] ? 1u : 0u) << b;
    }
    const F left = block_left(cell), top = block_top(cell);
    for (int64_t first = begin; first < end && blocks; first += CHUNK) {
      const int n = (int)std::min<int64_t>(CHUNK, end - first);
      const int32_t* ids = q.ids + first;
      alignas(64) uint16_t hit[CHUNK] = {};
      for (int e = 0; e < n; e++) {
        if (first + e + AHEAD < end) prefetch(q, ids[e + AHEAD]);
        hit[e] = (uint16_t)(reach(q.records + SPLAT_RECORD * ids[e], left, top) & blocks);
      }
      uint64_t lists[16];
      V::transpose(hit, lists);
      for (int b = 0; b < 16; b++) {
        if (!lists[b]) continue;
        const F px = V::add(V::set((float)(cell.x + b % 4 * 4) + 0.5f), V::column());
        const F py = V::add(V::set((float)(cell.y + b / 4 * 4) + 0.5f), V::row());
        open[b] = blend<D>(q, ids, lists[b], (int32_t)(first - begin) + 1, open[b], px, py,
                           cell.light + 16 * b, cell.last + 16 * b, cell.acc + 16 * q.channels * b);
        if (!open[b]) blocks &= ~(1u << b);
      }
    }
    for (int b = 0; b < 16; b++) write_block(q, cell, b);
  });
}

// ---------------------------------------------------------------------- gradient

// State of a block on the way back: light before the Gaussian at hand, and the part of the gradient that
// all behind it give (colors and background, times the light that reaches them).
struct Blocks {
  float *light, *behind, *cotangent;  // [16][16], [16][16], [16][channels][16]
  F x[16], y[16];                     // pixel centres
  int32_t *last, most[16];            // [16][16], and the largest of each block
};

inline int32_t load_blocks(const SplatCall& q, const Cell& cell, Blocks& s) {
  s.light = cell.light, s.last = cell.last, s.behind = cell.acc, s.cotangent = cell.acc + 256;
  memset(s.light, 0, sizeof(float) * 256);
  memset(s.last, 0, sizeof(int32_t) * 256);
  memset(s.behind, 0, sizeof(float) * 256 * (1 + q.channels));
  const float* background = q.backgrounds ? q.backgrounds + cell.image * q.channels : nullptr;
  int32_t all = 0;
  for (int b = 0; b < 16; b++) {
    s.most[b] = 0;
    s.x[b] = V::add(V::set((float)(cell.x + b % 4 * 4) + 0.5f), V::column());
    s.y[b] = V::add(V::set((float)(cell.y + b / 4 * 4) + 0.5f), V::row());
    for_pixels(q, cell, b, [&](int lane, int64_t pixel) {
      const int at = 16 * b + lane;
      const float* g = q.grad_image + pixel * q.channels;
      float sum = q.grad_light[pixel];
      for (int64_t k = 0; k < q.channels; k++) {
        s.cotangent[16 * (b * q.channels + k) + lane] = g[k];
        if (background) sum += background[k] * g[k];
      }
      s.light[at] = q.transmittance[pixel];
      s.behind[at] = q.transmittance[pixel] * sum;
      s.last[at] = q.looked_at[pixel];
      s.most[b] = std::max(s.most[b], s.last[at]);
    });
    all = std::max(all, s.most[b]);
  }
  return all;
}

// Adds to `sums` what one Gaussian, number `number` of the list, gets from the blocks `bits`.
template <int D, bool ABS>
inline void gather(const SplatCall& q, const float* r, const float* c, uint32_t bits, int32_t number,
                   Blocks& s, float* colors, float* sums) {
  constexpr int R = D ? D : 1;
  const int64_t channels = D ? D : q.channels;
  F v[8 + R];
  for (int k = 0; k < 8 + R; k++) v[k] = V::set(0.f);
  if (!D) memset(colors, 0, sizeof(float) * 16 * channels);
  while (bits) {
    const int b = __builtin_ctz(bits);
    bits &= bits - 1;
    float *light = s.light + 16 * b, *behind = s.behind + 16 * b;
    const float* g = s.cotangent + 16 * channels * b;
    const F dx = V::sub(V::set(r[0]), s.x[b]), dy = V::sub(V::set(r[1]), s.y[b]);
    M counts;
    const F raw = exponent(r, dx, dy, V::reaches(s.last + 16 * b, number), counts);
    const F alpha = V::keep(counts, V::min(raw, V::set(SPLAT_ALPHA_MAX)));
    const F ra = V::inverse(V::sub(V::set(1.f), alpha));
    const F T = V::mul(V::load(light), ra), B = V::load(behind), w = V::mul(alpha, T);
    F dot = V::mul(V::set(c[0]), V::load(g));
    for (int64_t k = 1; k < channels; k++) dot = V::fma(V::set(c[k]), V::load(g + 16 * k), dot);
    if (D)
      for (int k = 0; k < D; k++) v[8 + k] = V::fma(w, V::load(g + 16 * k), v[8 + k]);
    else
      for (int64_t k = 0; k < channels; k++)
        V::store(colors + 16 * k, V::fma(w, V::load(g + 16 * k), V::load(colors + 16 * k)));
    const F slope = V::sub(V::mul(T, dot), V::mul(ra, B));
    const M free = V::both(counts, V::le(raw, V::set(SPLAT_ALPHA_MAX)));
    const F sg = V::keep(free, V::mul(alpha, slope)), sx = V::mul(sg, dx), sy = V::mul(sg, dy);
    V::store(light, T);
    V::store(behind, V::fma(w, dot, B));
    v[0] = V::add(v[0], sg), v[1] = V::add(v[1], sx), v[2] = V::add(v[2], sy);
    v[3] = V::fma(sx, dx, v[3]), v[4] = V::fma(sx, dy, v[4]), v[5] = V::fma(sy, dy, v[5]);
    if (ABS) {
      const F a = V::set(r[2] * 2), m = V::set(r[3]), d = V::set(r[4] * 2);
      v[6] = V::add(v[6], V::abs(V::fma(a, sx, V::mul(m, sy))));
      v[7] = V::add(v[7], V::abs(V::fma(m, sx, V::mul(d, sy))));
    }
  }
  if (D) return V::add_sums<SPLAT_MOMENTS + R>(v, sums);
  V::add_sums<SPLAT_MOMENTS>(v, sums);
  for (int64_t k = 0; k < channels; k++) {
    const F one = V::load(colors + 16 * k);
    V::add_sums<1>(&one, sums + SPLAT_MOMENTS + k);
  }
}

template <int D, bool ABS>
void gradient_tile(const SplatCall& q, int64_t tile, float* scratch, float* sums) {
  const int64_t begin = q.begin(tile), channels = D ? D : q.channels;
  memset(sums, 0, sizeof(float) * (q.end(tile) - begin) * q.stride());
  if (q.shown && !q.shown[tile]) return;
  for_cells(q, tile, scratch, [&](Cell& cell) {
    Blocks s;
    const int32_t count = load_blocks(q, cell, s);
    float* colors = cell.acc + 256 * (1 + channels);
    const F left = block_left(cell), top = block_top(cell);
    for (int32_t first = (count - 1) / CHUNK * CHUNK; count && first >= 0; first -= CHUNK) {
      const int n = std::min(CHUNK, count - first);
      const int32_t* ids = q.ids + begin + first;
      uint16_t hit[CHUNK];
      for (int e = n - 1; e >= 0; e--) {
        if (first + e >= AHEAD) prefetch(q, ids[e - AHEAD]);
        hit[e] = (uint16_t)(reach(q.records + SPLAT_RECORD * ids[e], left, top) &
                            V::bits(V::reaches(s.most, first + e + 1)));
      }
      for (int e = n - 1; e >= 0; e--)
        if (hit[e])
          gather<D, ABS>(q, q.records + SPLAT_RECORD * ids[e], q.colors + channels * ids[e], hit[e],
                         first + e + 1, s, colors, sums + (first + e) * q.stride());
    }
  });
}

// ---------------------------------------------------------------------- choice of the width

void forward(const SplatCall& q, int64_t tile, float* scratch) {
  switch (q.channels) {
    case 1: return forward_tile<1>(q, tile, scratch);
    case 3: return forward_tile<3>(q, tile, scratch);
    case 4: return forward_tile<4>(q, tile, scratch);
    default: return forward_tile<0>(q, tile, scratch);
  }
}

template <bool ABS>
void gradient_of(const SplatCall& q, int64_t tile, float* scratch, float* sums) {
  switch (q.channels) {
    case 1: return gradient_tile<1, ABS>(q, tile, scratch, sums);
    case 3: return gradient_tile<3, ABS>(q, tile, scratch, sums);
    case 4: return gradient_tile<4, ABS>(q, tile, scratch, sums);
    default: return gradient_tile<0, ABS>(q, tile, scratch, sums);
  }
}

void gradient(const SplatCall& q, int64_t tile, float* scratch, float* sums) {
  if (q.absolute) return gradient_of<true>(q, tile, scratch, sums);
  return gradient_of<false>(q, tile, scratch, sums);
}

}  // namespace
