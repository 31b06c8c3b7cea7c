// Blending kernels in terms of a struct `V`, sixteen lanes, which the including file defines for its
// instruction set. Everything here is static: no other file may end up with code for that set.
//
// A tile is worked on in cells of up to 16 x 16 pixels, a cell in sixteen blocks of 4 x 4 pixels, one
// pixel per lane. Each Gaussian of the list is first tested against the sixteen blocks at once, one block
// per lane, and then evaluated only in the blocks that its ellipse reaches.
#pragma once
#include <string.h>

#include <algorithm>
#include <cmath>

#include "splat.h"

namespace {

using F = V::F;
using I = V::I;
using M = V::M;

constexpr int CHUNK = 64;      // list entries whose reach is found at a time
constexpr int AHEAD = 28;       // entries: their Gaussians lie anywhere in memory
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
  const int64_t first = (cell.image * q.height + cell.y + y) * q.width + cell.x + x;
  if (across == 4 && down == 4) {  // unrolled
    for (int64_t i = 0; i < 4; i++)
      for (int64_t j = 0; j < 4; j++) body((int)(4 * i + j), first + i * q.width + j);
    return;
  }
  for (int64_t i = 0; i < down; i++)
    for (int64_t j = 0; j < across; j++) body((int)(4 * i + j), first + i * q.width + j);
}

// What a chunk's Gaussians are to the sixteen blocks: u and v at the blocks' centres.
struct Placed {
  alignas(64) float u[CHUNK][16], v[CHUNK][16];
};

// The blocks' first pixel centres.
struct Corners {
  F left, top;
  explicit Corners(const Cell& cell)
      : left(V::add(V::set((float)cell.x + 0.5f), V::mul(V::set(4.f), V::column()))),
        top(V::add(V::set((float)cell.y + 0.5f), V::mul(V::set(4.f), V::row()))) {}
};

// Bits of the blocks in which the Gaussian reaches an alpha of 1/255: the least value of its form on
// each block lies at its mean, or on an edge that faces the mean. Writes u and v of the blocks' centres.
inline uint32_t reach(const float* r, const Corners& at, float* centre_u, float* centre_v) {
  const F zero = V::set(0.f), ux = V::set(r[2]), uy = V::set(r[3]), vy = V::set(r[4]);
  const F x0 = V::sub(at.left, V::set(r[0])), x1 = V::add(x0, V::set(3.f));
  const F y0 = V::sub(at.top, V::set(r[1])), y1 = V::add(y0, V::set(3.f));
  const F cx = V::add(x0, V::set(1.5f)), cy = V::add(y0, V::set(1.5f));
  V::store(centre_u, V::fma(ux, cx, V::mul(uy, cy)));
  V::store(centre_v, V::mul(vy, cy));
  if (r[6] != r[6]) return 0xffff;  // no ellipse
  const F x = V::min(V::max(zero, x0), x1), y = V::min(V::max(zero, y0), y1);
  const F side_y = V::min(V::max(V::mul(V::set(r[7]), x), y0), y1);
  const F edge_x = V::min(V::max(V::mul(V::set(r[6]), y), x0), x1);
  const F su = V::fma(ux, x, V::mul(uy, side_y)), sv = V::mul(vy, side_y);
  const F eu = V::fma(ux, edge_x, V::mul(uy, y)), ev = V::mul(vy, y);
  const F side = V::fma(su, su, V::mul(sv, sv)), edge = V::fma(eu, eu, V::mul(ev, ev));
  return V::bits(V::le(V::min(side, edge), V::set(r[5] - SPLAT_LOG_MIN + SLACK)));
}

inline void prefetch(const SplatCall& q, int64_t row) {
  __builtin_prefetch(q.records + SPLAT_RECORD * row);
  if (q.channels > SPLAT_COLORS) __builtin_prefetch(q.colors + q.channels * row);
}

// u and v of a block's pixels, less those of its centre.
struct Within {
  F u, v;
  explicit Within(const float* r) {
    const F half = V::set(1.5f), x = V::sub(V::column(), half), y = V::sub(V::row(), half);
    u = V::fma(V::set(r[2]), x, V::mul(V::set(r[3]), y));
    v = V::mul(V::set(r[4]), y);
  }
};

// A form of u and v other than u^2 + v^2: of a conic that is of no ellipse.
struct Form {
  float uu = 1, uv = 0, vv = 1;
  Form(const SplatCall& q, int64_t row) {
    if (q.records[SPLAT_RECORD * row + 6] == q.records[SPLAT_RECORD * row + 6]) return;
    const float* conic = q.conics + 3 * row;
    uu = 0.5f * LOG2_E * conic[0], uv = LOG2_E * conic[1], vv = 0.5f * LOG2_E * conic[2];
  }
};

// Alpha before the clamp in the lanes that count, else 0. They count where alpha is at least 1/255 and
// the form, if it can be, not negative.
inline F alpha_of(F opacity, F u, F v, M among, const Form* form, M& counts) {
  F p = V::fnma(u, u, V::fnma(v, v, opacity));
  if (form) {
    const F t = V::fma(V::set(form->uv), v, V::mul(V::set(form->uu), u));
    const F value = V::fma(t, u, V::mul(V::mul(V::set(form->vv), v), v));
    p = V::sub(opacity, value);
    among = V::both(among, V::le(V::set(0.f), value));
  }
  counts = V::le_among(among, V::set(SPLAT_LOG_MIN), p);
  return V::exp2(counts, p);
}

// ---------------------------------------------------------------------- forward

// The chunk's Gaussians as its blocks read them in turn.
struct Staged {
  alignas(64) float u[CHUNK][16], v[CHUNK][16];  // of Within
  float opacity[CHUNK], colors[CHUNK][4];
  int32_t number[CHUNK];  // in the list, from 1 on
};

// Blends the list entries `bits` of a chunk into block b; returns the pixels still open.
template <int D>
inline uint32_t blend(const SplatCall& q, const int32_t* ids, const Placed& placed, const Staged& staged,
                      uint64_t bits, uint64_t odd, uint32_t open, int b, const Cell& cell) {
  constexpr int R = D ? D : 1;
  float *light = cell.light + 16 * b, *acc = cell.acc + 16 * q.channels * b;
  int32_t* last = cell.last + 16 * b;
  F T = V::load(light), sum[R];
  I seen = V::loadi(last);
  const M all = V::mask(0xffff);
  M among = V::mask(open);
  for (int k = 0; k < D; k++) sum[k] = V::load(acc + 16 * k);
  while (bits) {
    const int e = __builtin_ctzll(bits);
    bits &= bits - 1;
    const F u = V::add(V::load(staged.u[e]), V::set(placed.u[e][b]));
    const F v = V::add(V::load(staged.v[e]), V::set(placed.v[e][b]));
    const F opacity = V::set(staged.opacity[e]);
    M counts;
    F alpha;
    if (__builtin_expect(odd >> e & 1, 0)) {
      const Form form(q, ids[e]);
      alpha = alpha_of(opacity, u, v, all, &form, counts);
    } else {
      alpha = alpha_of(opacity, u, v, all, nullptr, counts);
    }
    // without a branch, which would be guessed wrongly once for every pixel
    alpha = V::min(alpha, V::set(SPLAT_ALPHA_MAX));
    const F next = V::left(T, alpha);
    among = V::lt_among(among, V::set(SPLAT_LIGHT_MIN), next);  // the others leave out this and all behind
    const F w = V::keep(among, V::mul(alpha, T));
    if (D)
      for (int k = 0; k < D; k++) sum[k] = V::fma(w, V::set(staged.colors[e][k]), sum[k]);
    else
      for (int64_t k = 0; k < q.channels; k++)
        V::store(acc + 16 * k, V::fma(w, V::set(q.colors[ids[e] * q.channels + k]), V::load(acc + 16 * k)));
    T = V::choose(among, next, T);
    seen = V::choose(V::both(counts, among), V::seti(staged.number[e]), seen);
    if (!V::any(among)) break;
  }
  V::store(light, T);
  V::storei(last, seen);
  for (int k = 0; k < D; k++) V::store(acc + 16 * k, sum[k]);
  return V::bits(among);
}

template <int D>
inline void write_block(const SplatCall& q, const Cell& cell, int block) {
  const int64_t channels = D ? D : q.channels;
  const float *acc = cell.acc + 16 * channels * block, *light = cell.light + 16 * block;
  const float* behind = q.backgrounds ? q.backgrounds + cell.image * channels : nullptr;
  for_pixels(q, cell, block, [&](int lane, int64_t pixel) {
    q.transmittance[pixel] = light[lane];
    q.looked_at[pixel] = cell.last[16 * block + lane];
    float* out = q.image + pixel * channels;
    for (int64_t k = 0; k < channels; k++)
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
    const Corners corners(cell);
    Placed placed;
    Staged staged;
    for (int64_t first = begin; first < end && blocks; first += CHUNK) {
      const int n = (int)std::min<int64_t>(CHUNK, end - first);
      const int32_t* ids = q.ids + first;
      alignas(64) uint16_t hit[CHUNK] = {};
      uint64_t odd = 0, lists[16];
      for (int e = 0; e < n; e++) {
        if (first + e + AHEAD < end) prefetch(q, ids[e + AHEAD]);
        const float* r = q.records + SPLAT_RECORD * ids[e];
        hit[e] = (uint16_t)(reach(r, corners, placed.u[e], placed.v[e]) & blocks);
        odd |= (uint64_t)(r[6] != r[6]) << e;
        const Within within(r);
        V::store(staged.u[e], within.u);
        V::store(staged.v[e], within.v);
        staged.opacity[e] = r[5];
        staged.number[e] = (int32_t)(first - begin) + e + 1;
        for (int k = 0; k < D; k++) staged.colors[e][k] = r[8 + k];
      }
      V::transpose(hit, lists);
      for (int b = 0; b < 16; b++) {
        if (!lists[b]) continue;
        open[b] = blend<D>(q, ids, placed, staged, lists[b], odd, open[b], b, cell);
        if (!open[b]) blocks &= ~(1u << b);
      }
    }
    for (int b = 0; b < 16; b++) write_block<D>(q, cell, b);
  });
}

// ---------------------------------------------------------------------- gradient

// State of a block on the way back: light before the Gaussian at hand, and the gradient by that light:
// of what lies behind, colors and background, as seen from there, times the cotangent.
struct Blocks {
  float *light, *behind, *cotangent;  // [16][16], [16][16], [16][channels][16]
  int32_t *last, most[16];            // [16][16], and the largest of each block
};

template <int D>
inline int32_t load_blocks(const SplatCall& q, const Cell& cell, Blocks& s) {
  const int64_t channels = D ? D : q.channels;
  s.light = cell.light, s.last = cell.last, s.behind = cell.acc, s.cotangent = cell.acc + 256;
  memset(s.light, 0, sizeof(float) * 256);
  memset(s.last, 0, sizeof(int32_t) * 256);
  memset(s.behind, 0, sizeof(float) * 256 * (1 + channels));
  const float* background = q.backgrounds ? q.backgrounds + cell.image * channels : nullptr;
  int32_t all = 0;
  for (int b = 0; b < 16; b++) {
    s.most[b] = 0;
    for_pixels(q, cell, b, [&](int lane, int64_t pixel) {
      const int at = 16 * b + lane;
      const float* g = q.grad_image + pixel * channels;
      float sum = q.grad_light ? q.grad_light[pixel] : 0.f;
      for (int64_t k = 0; k < channels; k++) {
        s.cotangent[16 * (b * channels + k) + lane] = g[k];
        if (background) sum += background[k] * g[k];
      }
      s.light[at] = q.transmittance[pixel];
      s.behind[at] = sum;
      s.last[at] = q.looked_at[pixel];
      s.most[b] = std::max(s.most[b], s.last[at]);
    });
    all = std::max(all, s.most[b]);
  }
  return all;
}

// Adds to `sums` what one Gaussian, number `number` of the list, gets from the blocks `bits`. CAREFUL: it
// may be of no ellipse, or its alpha reach the clamp.
template <int D, bool ABS, bool CAREFUL>
inline void gather(const SplatCall& q, int64_t row, const float* centre_u, const float* centre_v,
                   uint32_t bits, int32_t number, Blocks& s, float* colors, float* sums) {
  constexpr int R = D ? D : 1;
  const int64_t channels = D ? D : q.channels;
  const float *r = q.records + SPLAT_RECORD * row, *c = D ? r + 8 : q.colors + channels * row;
  const Within within(r);
  const Form form(q, row);
  F v[8 + R];
  for (int k = 0; k < 8 + R; k++) v[k] = V::set(0.f);
  if (!D) memset(colors, 0, sizeof(float) * 16 * channels);
  // In two steps, of which the first is a block ahead: what depends on each other stands far apart.
  struct Step {
    F u, v, raw;
    int b;
  };
  const auto begin = [&](int b) {
    const F du = V::add(within.u, V::set(centre_u[b])), dv = V::add(within.v, V::set(centre_v[b]));
    M counts;
    const M among = V::reaches(s.last + 16 * b, number);
    const F raw = alpha_of(V::set(r[5]), du, dv, among, CAREFUL ? &form : nullptr, counts);
    return Step{du, dv, raw, b};
  };
  const auto finish = [&](const Step& at) {
    float *light = s.light + 16 * at.b, *behind = s.behind + 16 * at.b;
    const float* g = s.cotangent + 16 * channels * at.b;
    const F alpha = CAREFUL ? V::min(at.raw, V::set(SPLAT_ALPHA_MAX)) : at.raw;
    const F T = V::divide(V::load(light), V::sub(V::set(1.f), alpha)), w = V::mul(alpha, T);
    F dot = V::mul(V::set(c[0]), V::load(g));
    for (int64_t k = 1; k < channels; k++) dot = V::fma(V::set(c[k]), V::load(g + 16 * k), dot);
    if (D)
      for (int k = 0; k < D; k++) v[8 + k] = V::fma(w, V::load(g + 16 * k), v[8 + k]);
    else
      for (int64_t k = 0; k < channels; k++)
        V::store(colors + 16 * k, V::fma(w, V::load(g + 16 * k), V::load(colors + 16 * k)));
    const F more = V::sub(dot, V::load(behind));
    V::store(light, T);
    V::store(behind, V::fma(alpha, more, V::load(behind)));
    F sg = V::mul(w, more);
    if (CAREFUL) sg = V::keep(V::le(at.raw, V::set(SPLAT_ALPHA_MAX)), sg);
    const F su = V::mul(sg, at.u), sv = V::mul(sg, at.v);
    v[0] = V::add(v[0], sg), v[1] = V::add(v[1], su), v[2] = V::add(v[2], sv);
    v[3] = V::fma(su, at.u, v[3]), v[4] = V::fma(su, at.v, v[4]), v[5] = V::fma(sv, at.v, v[5]);
    if (ABS) {
      const F x = V::fma(V::set(2 * form.uu), su, V::mul(V::set(form.uv), sv));
      const F y = V::fma(V::set(form.uv), su, V::mul(V::set(2 * form.vv), sv));
      v[6] = V::add(v[6], V::abs(V::mul(V::set(r[2]), x)));
      v[7] = V::add(v[7], V::abs(V::fma(V::set(r[3]), x, V::mul(V::set(r[4]), y))));
    }
  };
  Step at = begin(__builtin_ctz(bits));
  while (bits &= bits - 1) {
    const Step next = begin(__builtin_ctz(bits));
    finish(at);
    at = next;
  }
  finish(at);
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
  const float clamped = log2f(SPLAT_ALPHA_MAX) - 1e-5f;
  for_cells(q, tile, scratch, [&](Cell& cell) {
    Blocks s;
    Placed placed;
    const int32_t count = load_blocks<D>(q, cell, s);
    float* colors = cell.acc + 256 * (1 + channels);
    const Corners corners(cell);
    for (int32_t first = (count - 1) / CHUNK * CHUNK; count && first >= 0; first -= CHUNK) {
      const int n = std::min(CHUNK, count - first);
      const int32_t* ids = q.ids + begin + first;
      uint16_t hit[CHUNK];
      for (int e = n - 1; e >= 0; e--) {
        if (first + e >= AHEAD) prefetch(q, ids[e - AHEAD]);
        hit[e] = (uint16_t)(reach(q.records + SPLAT_RECORD * ids[e], corners, placed.u[e], placed.v[e]) &
                            V::bits(V::reaches(s.most, first + e + 1)));
      }
      for (int e = n - 1; e >= 0; e--) {
        if (!hit[e]) continue;
        const float* r = q.records + SPLAT_RECORD * ids[e];
        const bool simple = r[6] == r[6] && r[5] < clamped;
        float* to = sums + (first + e) * q.stride();
        if (simple)
          gather<D, ABS, false>(q, ids[e], placed.u[e], placed.v[e], hit[e], first + e + 1, s, colors, to);
        else
          gather<D, ABS, true>(q, ids[e], placed.u[e], placed.v[e], hit[e], first + e + 1, s, colors, to);
      }
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
