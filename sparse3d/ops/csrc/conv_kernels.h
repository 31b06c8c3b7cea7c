// Convolution kernels in terms of a struct `Vec`, which the including file defines for its instruction
// set. Everything here is static: no other file may end up with code for this instruction set.
//
// A tile is nv vectors wide. Vec::rows(nv), channels(nv): its rows, of outputs and of a gradient;
// Vec::steps(nv): input channels between two looks at the rows' addresses, which registers do not hold.
//
// Every sum runs over offsets, then input channels (gradient: over output rows), one fused
// multiply-add each, whatever the width of a vector: sets with fused multiply-adds agree in every bit.
#pragma once
#include <string.h>

#include "conv.h"
#include "conv_rows.h"

namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void lay_out(ConvCall& q) {
  const bool lanes = groups_in_lanes(q, W);
  q.w_group = lanes ? q.cin * q.cout : (q.cout + W - 1) / W * W * q.cin;
  q.w_offset = q.w_group * q.groups;
}

inline Vec::Mask tail_mask(int64_t channels) {
  return Vec::mask((int)((channels - 1) % W) + 1);
}

// Calls body(first vector, number of vectors) so that near-equal panels cover `vectors` vectors.
template <class Body>
inline void for_panels(int64_t vectors, const Body& body) {
  const int64_t panels = (vectors + Vec::MAX_NV - 1) / Vec::MAX_NV;
  for (int64_t p = 0; p < panels; p++) {
    const int64_t first = vectors * p / panels;
    body(first, vectors * (p + 1) / panels - first);
  }
}

// Panel after panel [cin, nv * W] of each group, so that a tile reads one stream; zeros past cout.
// Groups in lanes: [cin, groups * cout].
void pack(const ConvCall& q, const float* w, bool transposed, int64_t k, float* to) {
  const int64_t w_in = transposed ? 1 : q.groups * q.cout, w_out = transposed ? q.groups * q.cin : 1;
  const float* wk = w + k * q.cin * q.groups * q.cout;
  for (int64_t g = 0; g < q.groups; g++, to += q.w_group) {
    const float* own = wk + g * (transposed ? q.cin : q.cout);
    if (groups_in_lanes(q, W)) {
      float* first = to - g * q.w_group + g * q.cout;
      for (int64_t i = 0; i < q.cin; i++)
        for (int64_t j = 0; j < q.cout; j++)
          first[i * q.groups * q.cout + j] = own[i * w_in + j * w_out];
      continue;
    }
    float* panel = to;
    for_panels((q.cout + W - 1) / W, [&](int64_t v, int64_t nv) {
      const int64_t columns = least(nv * W, q.cout - v * W);
      for (int64_t i = 0; i < q.cin; i++, panel += nv * W) {
        const float* from = own + i * w_in + v * W * w_out;
        for (int64_t j = 0; j < columns; j++) panel[j] = from[j * w_out];
        for (int64_t j = columns; j < nv * W; j++) panel[j] = 0;
      }
    });
  }
}

// Brings a row into the cache before it is needed.
inline void fetch(const float* row, int64_t channels) {
  for (int64_t c = 0; c < channels; c += 16) __builtin_prefetch(row + c);
}

// Pairs of rows to bring into the cache during other work, a few at a time: all at once they hold it up.
struct Coming {
  const float* x;
  const int32_t* in;
  const float* y;
  const uint16_t* out;
  int64_t count, share, x_row, y_row, x_floats, y_floats;  // share: pairs at a time

  void fetch_to(int64_t& done, int64_t end) const {
    for (end = least(end, count); done < end; done++) {
      fetch(x + in[done] * x_row, x_floats);
      fetch(y + out[done] * y_row, y_floats);
    }
  }
};

// The last vector of a row of outputs; WHOLE: all its lanes, because masks cost time.
template <bool WHOLE>
inline Vec::Reg load_last(const float* p, Vec::Mask last) {
  return WHOLE ? Vec::load(p) : Vec::load(p, last);
}
template <bool WHOLE>
inline void store_last(float* p, Vec::Mask last, Vec::Reg v) {
  if (WHOLE)
    Vec::store(p, v);
  else
    Vec::store(p, last, v);
}

// STEPS input channels of MR rows x NV vectors of output channels.
template <int NV, int MR, int STEPS>
inline void steps(const float* const* x, int64_t c, const float* w, Vec::Reg (&sum)[MR][NV]) {
#pragma GCC unroll 8
  for (int s = 0; s < STEPS; s++) {
    Vec::Reg b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) b[v] = Vec::load(w + (s * NV + v) * W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
      const Vec::Reg a = Vec::all(x[r][c + s]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sum[r][v] = Vec::fma(a, b[v], sum[r][v]);
    }
  }
}

// MR output rows x NV vectors of output channels live in registers while input channels stream by. The
// first of these meets the rows as they are loaded: loads of their own would keep the multipliers waiting.
template <int NV, int MR, bool WHOLE>
__attribute__((always_inline)) inline void tile(const float* const* x, const float* w, int64_t cin,
                                                float* const* y, Vec::Mask last, const Coming& coming) {
  constexpr int STEPS = Vec::steps(NV);
  Vec::Reg sum[MR][NV], b[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; v++) b[v] = Vec::load(w + v * W);
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
    const Vec::Reg a = Vec::all(x[r][0]);
#pragma GCC unroll 4
    for (int v = 0; v + 1 < NV; v++) sum[r][v] = Vec::fma(a, b[v], Vec::load(y[r] + W * v));
    sum[r][NV - 1] = Vec::fma(a, b[NV - 1], load_last<WHOLE>(y[r] + W * (NV - 1), last));
  }
  w += NV * W;
  int64_t c = 1, done = 0;
  for (; c + STEPS <= cin; c += STEPS, w += STEPS * NV * W) {
    coming.fetch_to(done, done + coming.share);
    steps<NV, MR, STEPS>(x, c, w, sum);
  }
  for (; c < cin; c++, w += NV * W) steps<NV, MR, 1>(x, c, w, sum);
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
#pragma GCC unroll 4
    for (int v = 0; v + 1 < NV; v++) Vec::store(y[r] + W * v, sum[r][v]);
    store_last<WHOLE>(y[r] + W * (NV - 1), last, sum[r][NV - 1]);
  }
}

// All pairs of one list, for NV vectors of output channels of one group.
template <int NV, bool WHOLE>
void pairs_times_weight(const float* x, int64_t x_row, const float* w, int64_t cin, const int32_t* in,
                        const uint16_t* out, int64_t n, float* y, int64_t y_row, Vec::Mask last) {
  constexpr int MR = Vec::rows(NV);
  const float* a[MR];
  float* o[MR];
  float spare[NV * W];
  const int64_t turns = (cin - 1) / Vec::steps(NV);
  Coming coming = {x, in, y, out, 0, turns ? (MR + turns - 1) / turns : 0, x_row, y_row, cin, NV * W};
  int64_t r = 0;
  for (; r + MR <= n; r += MR) {
    for (int j = 0; j < MR; j++) {
      a[j] = x + in[r + j] * x_row;
      o[j] = y + out[r + j] * y_row;
    }
    coming.in = in + r + MR, coming.out = out + r + MR;
    coming.count = least(MR, n - r - MR);
    tile<NV, MR, WHOLE>(a, w, cin, o, last, coming);
  }
  if (n - r > Vec::SINGLES) {  // a full tile, whose missing rows go nowhere, beats many single rows
    for (int v = 0; v < NV * W; v++) spare[v] = 0;
    for (int j = 0; j < MR; j++) {
      const int64_t p = r + j < n ? r + j : r;
      a[j] = x + in[p] * x_row;
      o[j] = r + j < n ? y + out[p] * y_row : spare;
    }
    tile<NV, MR, WHOLE>(a, w, cin, o, last, {});
    return;
  }
  for (; r < n; r++) {
    a[0] = x + in[r] * x_row;
    o[0] = y + out[r] * y_row;
    tile<NV, 1, WHOLE>(a, w, cin, o, last, {});
  }
}

// For output lane l of groups of G channels, input channel i of its group: lane l / G * G + i.
template <int G>
inline void spread(Vec::Index (&index)[G]) {
  for (int i = 0; i < G; i++) {
    int32_t lane[W];
    for (int l = 0; l < W; l++) lane[l] = l / G * G + i;
    index[i] = Vec::index(lane);
  }
}

// One channel per group: y[o] += x[i] * w[k], channel by channel.
void depthwise_forward(const ConvCall& q, const float* wk, const int32_t* in, const uint16_t* out,
                       int64_t n, float* y) {
  const int64_t width = q.groups;
  for (int64_t p = 0; p < n; p++) {
    const float* a = q.x + in[p] * width;
    float* o = y + out[p] * width;
    for (int64_t c = 0; c < width; c += W) {
      const Vec::Mask m = Vec::mask((int)least(W, width - c));
      Vec::store(o + c, m, Vec::fma(Vec::load(a + c, m), Vec::load(wk + c, m), Vec::load(o + c, m)));
    }
  }
}

// Whole groups of G channels in a vector: a row of inputs is loaded once, and its lanes are spread.
template <int G>
void lanes_forward(const ConvCall& q, const float* wk, const int32_t* in, const uint16_t* out,
                   int64_t n, float* y) {
  const int64_t width = q.groups * G;
  Vec::Index index[G];
  spread<G>(index);
  for (int64_t c = 0; c < width; c += W) {
    const Vec::Mask m = Vec::mask((int)least(W, width - c));
    Vec::Reg w[G];
    for (int i = 0; i < G; i++) w[i] = Vec::load(wk + i * width + c, m);
    for (int64_t p = 0; p < n; p++) {
      float* o = y + out[p] * width + c;
      const Vec::Reg a = Vec::load(q.x + in[p] * width + c, m);
      Vec::Reg sum = Vec::load(o, m);
      for (int i = 0; i < G; i++) sum = Vec::fma(Vec::spread(a, index[i]), w[i], sum);
      Vec::store(o, m, sum);
    }
  }
}

template <int G>
void lanes_gradient(const ConvCall& q, const int32_t* in, const uint16_t* out, int64_t n,
                    const float* dy, float* sum) {
  const int64_t width = q.groups * G;
  Vec::Index index[G];
  spread<G>(index);
  for (int64_t c = 0; c < width; c += W) {
    const Vec::Mask m = Vec::mask((int)least(W, width - c));
    Vec::Reg acc[G];
    for (int i = 0; i < G; i++) acc[i] = Vec::load(sum + i * width + c, m);
    for (int64_t p = 0; p < n; p++) {
      const Vec::Reg a = Vec::load(q.x + in[p] * width + c, m), g = Vec::load(dy + out[p] * width + c, m);
      for (int i = 0; i < G; i++) acc[i] = Vec::fma(G > 1 ? Vec::spread(a, index[i]) : a, g, acc[i]);
    }
    for (int i = 0; i < G; i++) Vec::store(sum + i * width + c, m, acc[i]);
  }
}

// pairs_times_weight for nv vectors of output channels.
template <bool WHOLE>
inline auto panel(int64_t nv) {
  auto found = pairs_times_weight<1, WHOLE>;
  if (nv == 2) found = pairs_times_weight<2, WHOLE>;
  if constexpr (Vec::MAX_NV > 2) {
    if (nv == 3) found = pairs_times_weight<3, WHOLE>;
    if (nv == 4) found = pairs_times_weight<4, WHOLE>;
  }
  return found;
}

void forward(const ConvCall& q, int64_t b) {
  const int64_t x_row = q.groups * q.cin, y_row = q.groups * q.cout;
  const Vec::Mask full = Vec::mask(W), tail = tail_mask(q.cout);
  const int64_t vectors = (q.cout + W - 1) / W;
  float* rows = q.y + b * q.pairs.block * y_row;
  start_rows(q, rows, q.length(b));
  for (int64_t k = 0; k < q.offsets; k++) {
    const int64_t* range = q.pairs.starts + q.list(b, k);
    const int64_t n = range[1] - range[0];
    const int32_t* in = q.pairs.in + range[0];
    const uint16_t* out = q.pairs.out + range[0];
    if (!n || !q.cin) continue;
    if (groups_in_lanes(q, W)) {
      const auto lanes = q.cin == 1   ? depthwise_forward
                         : q.cin == 2 ? lanes_forward<2>
                                      : lanes_forward<4>;
      lanes(q, q.w + k * q.w_offset, in, out, n, rows);
      continue;
    }
    for (int64_t g = 0; g < q.groups; g++)
      for_panels(vectors, [&](int64_t v, int64_t nv) {
        const float* x = q.x + g * q.cin;
        const float* w = q.w + k * q.w_offset + g * q.w_group + v * W * q.cin;
        float* y = rows + g * q.cout + v * W;
        const Vec::Mask last = v + nv == vectors ? tail : full;
        const auto multiply = v + nv < vectors || q.cout % W == 0 ? panel<true>(nv) : panel<false>(nv);
        multiply(x, x_row, w, q.cin, in, out, n, y, y_row, last);
      });
  }
  finish_rows(q, rows, q.length(b));
}

// MR input channels x NV vectors of output channels of one offset's gradient += what a pair gives. FIRST:
// they are still in memory, and met as in `tile`.
template <int NV, int MR, bool WHOLE, bool FIRST>
inline void add_pair(const float* a, const float* g, const float* sum, int64_t w_row, Vec::Mask last,
                     Vec::Reg (&acc)[MR][NV]) {
  Vec::Reg b[NV];
#pragma GCC unroll 4
  for (int v = 0; v + 1 < NV; v++) b[v] = Vec::load(g + W * v);
  b[NV - 1] = load_last<WHOLE>(g + W * (NV - 1), last);
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
    const Vec::Reg s = Vec::all(a[r]);
    if (FIRST) {
#pragma GCC unroll 4
      for (int v = 0; v + 1 < NV; v++) acc[r][v] = Vec::load(sum + r * w_row + W * v);
      acc[r][NV - 1] = load_last<WHOLE>(sum + r * w_row + W * (NV - 1), last);
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) acc[r][v] = Vec::fma(s, b[v], acc[r][v]);
  }
}

// The same for n > 0 pairs.
template <int NV, int MR, bool WHOLE>
inline void gradient_tile(const float* const* x, const float* const* dy, int64_t n, int64_t c, int64_t d,
                          float* sum, int64_t w_row, Vec::Mask last, const Coming& coming, int64_t& done) {
  Vec::Reg acc[MR][NV];
  sum += c * w_row + d;
  add_pair<NV, MR, WHOLE, true>(x[0] + c, dy[0] + d, sum, w_row, last, acc);
  for (int64_t p = 1; p < n; p++) {
    if (p % 4 == 1) coming.fetch_to(done, done + coming.share);
    add_pair<NV, MR, WHOLE, false>(x[p] + c, dy[p] + d, sum, w_row, last, acc);
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
#pragma GCC unroll 4
    for (int v = 0; v + 1 < NV; v++) Vec::store(sum + r * w_row + W * v, acc[r][v]);
    store_last<WHOLE>(sum + r * w_row + W * (NV - 1), last, acc[r][NV - 1]);
  }
}

// Input channels from c on: as many tiles of MR as fit, then of half as many, down to one.
template <int NV, int MR, bool WHOLE>
inline void gradient_rows(const float* const* x, const float* const* dy, int64_t n, int64_t c, int64_t cin,
                          int64_t d, float* sum, int64_t w_row, Vec::Mask last, const Coming& coming,
                          int64_t& done) {
  for (; c + MR <= cin; c += MR)
    gradient_tile<NV, MR, WHOLE>(x, dy, n, c, d, sum, w_row, last, coming, done);
  if constexpr (MR > 1)
    gradient_rows<NV, MR / 2, WHOLE>(x, dy, n, c, cin, d, sum, w_row, last, coming, done);
}

// gradient_rows for nv vectors of output channels.
template <bool WHOLE>
inline auto gradient_panel(int64_t nv) {
  auto found = gradient_rows<1, Vec::channels(1), WHOLE>;
  if (nv == 2) found = gradient_rows<2, Vec::channels(2), WHOLE>;
  if constexpr (Vec::MAX_NV > 2) {
    if (nv == 3) found = gradient_rows<3, Vec::channels(3), WHOLE>;
    if (nv == 4) found = gradient_rows<4, Vec::channels(4), WHOLE>;
  }
  return found;
}

// Pairs that all tiles of a gradient read before the next ones: so few that their rows stay in the L1 cache.
constexpr int64_t CHUNK = 64;

// n pairs for group g; the rows of the `next` pairs behind them are fetched meanwhile.
void gradient_chunk(const ConvCall& q, const int32_t* in, const uint16_t* out, int64_t n, int64_t next,
                    const float* rows, int64_t g, float* sum) {
  const float *a[CHUNK], *dy[CHUNK];
  const Vec::Mask full = Vec::mask(W), tail = tail_mask(q.cout);
  const int64_t vectors = (q.cout + W - 1) / W, x_row = q.groups * q.cin, w_row = q.groups * q.cout;
  const float *x = q.x + g * q.cin, *y = rows + g * q.cout;
  for (int64_t p = 0; p < n; p++) {
    a[p] = x + in[p] * x_row;
    dy[p] = y + out[p] * w_row;
  }
  const int64_t panels = (vectors + Vec::MAX_NV - 1) / Vec::MAX_NV;
  const int64_t tiles = panels * q.cin / Vec::channels((int)least(vectors, Vec::MAX_NV)) + 1;
  const Coming coming = {x, in + n, y, out + n, next, 4 / tiles + 1, x_row, w_row, q.cin, q.cout};
  int64_t done = 0;
  for_panels(vectors, [&](int64_t v, int64_t nv) {
    const Vec::Mask last = v + nv == vectors ? tail : full;
    const auto add = v + nv < vectors || q.cout % W == 0 ? gradient_panel<true>(nv) : gradient_panel<false>(nv);
    add(a, dy, n, 0, q.cin, v * W, sum + g * q.cout, w_row, last, coming, done);
  });
}

void gradient(const ConvCall& q, int64_t b, int64_t k, float* sum) {
  const float* rows = q.dy + b * q.pairs.block * q.groups * q.cout;
  const int64_t* range = q.pairs.starts + q.list(b, k);
  if (groups_in_lanes(q, W)) {
    const auto lanes = q.cin == 1   ? lanes_gradient<1>
                       : q.cin == 2 ? lanes_gradient<2>
                                    : lanes_gradient<4>;
    lanes(q, q.pairs.in + range[0], q.pairs.out + range[0], range[1] - range[0], rows, sum);
    return;
  }
  for (int64_t p = range[0]; p < range[1]; p += CHUNK)
    for (int64_t g = 0; g < q.groups; g++) {
      const int64_t n = least(CHUNK, range[1] - p), next = least(CHUNK, range[1] - p - n);
      gradient_chunk(q, q.pairs.in + p, q.pairs.out + p, n, next, rows, g, sum);
    }
}

}  // namespace
