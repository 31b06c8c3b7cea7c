// Convolution kernels in terms of a struct `Vec`, which the including file defines for its instruction
// set. Everything here is static: no other file may end up with code for this instruction set.
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

// STEPS input channels of MR rows x NV vectors of output channels.
template <int NV, int MR, int STEPS>
inline void steps(const float* const* x, int64_t c, const float* w, Vec::Reg (&sum)[MR][NV]) {
  for (int s = 0; s < STEPS; s++) {
    Vec::Reg b[NV];
    for (int v = 0; v < NV; v++) b[v] = Vec::load(w + (s * NV + v) * W);
    for (int r = 0; r < MR; r++) {
      const Vec::Reg a = Vec::all(x[r][c + s]);
      for (int v = 0; v < NV; v++) sum[r][v] = Vec::fma(a, b[v], sum[r][v]);
    }
  }
}

// MR output rows x NV vectors of output channels live in registers while input channels stream by.
template <int NV, int MR>
inline void tile(const float* const* x, const float* w, int64_t cin, float* const* y,
                 Vec::Mask last) {
  constexpr int STEPS = NV > 2 ? 1 : 4;  // several at once where row pointers are short of registers
  Vec::Reg sum[MR][NV];
  for (int r = 0; r < MR; r++) {
    for (int v = 0; v + 1 < NV; v++) sum[r][v] = Vec::load(y[r] + W * v);
    sum[r][NV - 1] = Vec::load(y[r] + W * (NV - 1), last);
  }
  int64_t c = 0;
  for (; c + STEPS <= cin; c += STEPS, w += STEPS * NV * W) steps<NV, MR, STEPS>(x, c, w, sum);
  if (STEPS > 1)
    for (; c < cin; c++, w += NV * W) steps<NV, MR, 1>(x, c, w, sum);
  for (int r = 0; r < MR; r++) {
    for (int v = 0; v + 1 < NV; v++) Vec::store(y[r] + W * v, sum[r][v]);
    Vec::store(y[r] + W * (NV - 1), last, sum[r][NV - 1]);
  }
}

// All pairs of one list, for NV vectors of output channels of one group.
template <int NV>
void pairs_times_weight(const float* x, int64_t x_row, const float* w, int64_t cin, const int32_t* in,
                        const uint16_t* out, int64_t n, float* y, int64_t y_row, Vec::Mask last) {
  constexpr int MR = Vec::rows(NV);
  const float* a[MR];
  float* o[MR];
  float spare[NV * W];
  int64_t r = 0;
  for (; r + MR <= n; r += MR) {
    for (int j = 0; j < MR; j++) {
      a[j] = x + in[r + j] * x_row;
      o[j] = y + out[r + j] * y_row;
    }
    if (NV > 1 && r + 2 * MR <= n)  // with one vector there is too little to do meanwhile
      for (int j = 0; j < MR; j++) {
        fetch(x + in[r + MR + j] * x_row, cin);
        fetch(y + out[r + MR + j] * y_row, NV * W);
      }
    tile<NV, MR>(a, w, cin, o, last);
  }
  if (n - r > Vec::SINGLES) {  // a full tile, whose missing rows go nowhere, beats many single rows
    for (int v = 0; v < NV * W; v++) spare[v] = 0;
    for (int j = 0; j < MR; j++) {
      const int64_t p = r + j < n ? r + j : r;
      a[j] = x + in[p] * x_row;
      o[j] = r + j < n ? y + out[p] * y_row : spare;
    }
    tile<NV, MR>(a, w, cin, o, last);
    return;
  }
  for (; r < n; r++) {
    a[0] = x + in[r] * x_row;
    o[0] = y + out[r] * y_row;
    tile<NV, 1>(a, w, cin, o, last);
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
    if (!n) continue;
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
        if (nv == 1)
          pairs_times_weight<1>(x, x_row, w, q.cin, in, out, n, y, y_row, last);
        else if (nv == 2)
          pairs_times_weight<2>(x, x_row, w, q.cin, in, out, n, y, y_row, last);
        else if constexpr (Vec::MAX_NV > 2) {
          if (nv == 3)
            pairs_times_weight<3>(x, x_row, w, q.cin, in, out, n, y, y_row, last);
          else
            pairs_times_weight<4>(x, x_row, w, q.cin, in, out, n, y, y_row, last);
        }
      });
  }
  finish_rows(q, rows, q.length(b));
}

// MR input channels x NV vectors of output channels of one offset's gradient, summed over n pairs.
template <int NV, int MR>
inline void gradient_tile(const float* const* x, const float* const* dy, int64_t n, int64_t c,
                          int64_t d, float* sum, int64_t w_row, Vec::Mask last) {
  Vec::Reg acc[MR][NV];
  sum += c * w_row + d;
  for (int r = 0; r < MR; r++) {
    for (int v = 0; v + 1 < NV; v++) acc[r][v] = Vec::load(sum + r * w_row + W * v);
    acc[r][NV - 1] = Vec::load(sum + r * w_row + W * (NV - 1), last);
  }
  for (int64_t p = 0; p < n; p++) {
    const float *a = x[p] + c, *g = dy[p] + d;
    Vec::Reg b[NV];
    for (int v = 0; v + 1 < NV; v++) b[v] = Vec::load(g + W * v);
    b[NV - 1] = Vec::load(g + W * (NV - 1), last);
    for (int r = 0; r < MR; r++) {
      const Vec::Reg s = Vec::all(a[r]);
      for (int v = 0; v < NV; v++) acc[r][v] = Vec::fma(s, b[v], acc[r][v]);
    }
  }
  for (int r = 0; r < MR; r++) {
    for (int v = 0; v + 1 < NV; v++) Vec::store(sum + r * w_row + W * v, acc[r][v]);
    Vec::store(sum + r * w_row + W * (NV - 1), last, acc[r][NV - 1]);
  }
}

// Input channels from c on: as many tiles of MR as fit, then of half as many, down to one.
template <int NV, int MR>
inline void gradient_rows(const float* const* x, const float* const* dy, int64_t n, int64_t c,
                          int64_t cin, int64_t d, float* sum, int64_t w_row, Vec::Mask last) {
  for (; c + MR <= cin; c += MR) gradient_tile<NV, MR>(x, dy, n, c, d, sum, w_row, last);
  if constexpr (MR > 1) gradient_rows<NV, MR / 2>(x, dy, n, c, cin, d, sum, w_row, last);
}

// A chunk of pairs is small enough for its rows to stay in the L1 cache while all tiles read them.
constexpr int64_t MOST_PAIRS = 256, CHUNK_FLOATS = 8192;

void gradient_chunk(const ConvCall& q, const int32_t* in, const uint16_t* out, int64_t n,
                    const float* rows, int64_t g, float* sum) {
  const float *a[MOST_PAIRS], *dy[MOST_PAIRS];
  const Vec::Mask full = Vec::mask(W), tail = tail_mask(q.cout);
  const int64_t vectors = (q.cout + W - 1) / W, w_row = q.groups * q.cout;
  for (int64_t p = 0; p < n; p++) {
    a[p] = q.x + (in[p] * q.groups + g) * q.cin;
    dy[p] = rows + (out[p] * q.groups + g) * q.cout;
    fetch(a[p], q.cin);
    fetch(dy[p], q.cout);
  }
  for_panels(vectors, [&](int64_t v, int64_t nv) {
    float* s = sum + g * q.cout;
    const Vec::Mask last = v + nv == vectors ? tail : full;
    if (nv == 1)
      gradient_rows<1, Vec::channels(1)>(a, dy, n, 0, q.cin, v * W, s, w_row, last);
    else if (nv == 2)
      gradient_rows<2, Vec::channels(2)>(a, dy, n, 0, q.cin, v * W, s, w_row, last);
    else if constexpr (Vec::MAX_NV > 2) {
      if (nv == 3)
        gradient_rows<3, Vec::channels(3)>(a, dy, n, 0, q.cin, v * W, s, w_row, last);
      else
        gradient_rows<4, Vec::channels(4)>(a, dy, n, 0, q.cin, v * W, s, w_row, last);
    }
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
  const int64_t fit = CHUNK_FLOATS / (q.cin + q.cout) / 16 * 16;
  const int64_t chunk = fit < 16 ? 16 : least(fit, MOST_PAIRS);
  for (int64_t p = range[0]; p < range[1]; p += chunk)
    for (int64_t g = 0; g < q.groups; g++)
      gradient_chunk(q, q.pairs.in + p, q.pairs.out + p, least(chunk, range[1] - p), rows, g, sum);
}

}  // namespace
