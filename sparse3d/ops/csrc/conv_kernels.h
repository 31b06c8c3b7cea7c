// Convolution kernels in terms of a struct `Vec`, which the including file defines for its instruction
// set. Everything here is static: no other file may end up with code for this instruction set.
//
// Every sum runs over offsets, then input channels (gradient: over output rows), one fused
// multiply-add each, whatever the width of a vector: sets with fused multiply-adds agree in every bit.
#pragma once
#include <string.h>

#include "conv.h"

namespace {

constexpr int W = Vec::WIDTH;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// MR output rows x NV vectors of output channels live in registers while input channels stream by.
template <int NV, int MR>
inline void tile(const float* const* x, const float* w, int64_t w_row, int64_t cin, float* const* y,
                 Vec::Mask last) {
  Vec::Reg sum[MR][NV];
  for (int r = 0; r < MR; r++) {
    for (int v = 0; v + 1 < NV; v++) sum[r][v] = Vec::load(y[r] + W * v);
    sum[r][NV - 1] = Vec::load(y[r] + W * (NV - 1), last);
  }
  for (int64_t c = 0; c < cin; c++) {
    Vec::Reg b[NV];
    for (int v = 0; v < NV; v++) b[v] = Vec::load(w + c * w_row + W * v);
    for (int r = 0; r < MR; r++) {
      const Vec::Reg a = Vec::all(x[r][c]);
      for (int v = 0; v < NV; v++) sum[r][v] = Vec::fma(a, b[v], sum[r][v]);
    }
  }
  for (int r = 0; r < MR; r++) {
    for (int v = 0; v + 1 < NV; v++) Vec::store(y[r] + W * v, sum[r][v]);
    Vec::store(y[r] + W * (NV - 1), last, sum[r][NV - 1]);
  }
}

// All pairs of one offset, for NV vectors of output channels of one group.
template <int NV>
void pairs_times_weight(const float* x, int64_t x_row, const float* w, int64_t w_row, int64_t cin,
                        const int32_t* in, const int32_t* out, int64_t n, float* y, int64_t y_row,
                        Vec::Mask last) {
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
    tile<NV, MR>(a, w, w_row, cin, o, last);
  }
  if (n - r > Vec::SINGLES) {  // a full tile, whose missing rows go nowhere, beats many single rows
    for (int v = 0; v < NV * W; v++) spare[v] = 0;
    for (int j = 0; j < MR; j++) {
      const int64_t p = r + j < n ? r + j : r;
      a[j] = x + in[p] * x_row;
      o[j] = r + j < n ? y + out[p] * y_row : spare;
    }
    tile<NV, MR>(a, w, w_row, cin, o, last);
    return;
  }
  for (; r < n; r++) {
    a[0] = x + in[r] * x_row;
    o[0] = y + out[r] * y_row;
    tile<NV, 1>(a, w, w_row, cin, o, last);
  }
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

inline Vec::Mask tail_mask(int64_t channels) {
  return Vec::mask((int)((channels - 1) % W) + 1);
}

void start_rows(const ConvCall& q, int64_t first, int64_t len) {
  const int64_t width = q.groups * q.cout;
  float* y = q.y + first * width;
  if (!q.bias) {
    memset(y, 0, sizeof(float) * len * width);
    return;
  }
  for (int64_t r = 0; r < len; r++) memcpy(y + r * width, q.bias, sizeof(float) * width);
}

// One channel per group: y[o] += x[i] * w[k], channel by channel.
void depthwise(const ConvCall& q, const float* wk, const int32_t* in, const int32_t* out, int64_t n) {
  const int64_t width = q.groups;
  for (int64_t p = 0; p < n; p++) {
    const float* a = q.x + in[p] * width;
    float* o = q.y + out[p] * width;
    for (int64_t c = 0; c < width; c += W) {
      const Vec::Mask m = Vec::mask((int)least(W, width - c));
      Vec::store(o + c, m, Vec::fma(Vec::load(a + c, m), Vec::load(wk + c, m), Vec::load(o + c, m)));
    }
  }
}

bool forward(const ConvCall& q, int64_t first, int64_t len, int32_t* lists) {
  int32_t *in = lists, *out = lists + CONV_LIST / 2;
  const int64_t x_row = q.groups * q.cin, y_row = q.groups * q.cout;
  const Vec::Mask full = Vec::mask(W), tail = tail_mask(q.cout);
  const int64_t vectors = (q.cout + W - 1) / W;
  bool legal = true;
  start_rows(q, first, len);
  for (int64_t k = 0; k < q.offsets; k++) {
    const int64_t n =
        Vec::neighbours(q.table + k * q.n_out, first, len, (int32_t)q.n_in, in, out, legal);
    if (!n) continue;
    if (q.cin == 1 && q.cout == 1) {
      depthwise(q, q.w + k * q.w_offset, in, out, n);
      continue;
    }
    for (int64_t g = 0; g < q.groups; g++)
      for_panels(vectors, [&](int64_t v, int64_t nv) {
        const float* x = q.x + g * q.cin;
        const float* w = q.w + k * q.w_offset + g * q.w_group + v * W;
        float* y = q.y + g * q.cout + v * W;
        const Vec::Mask last = v + nv == vectors ? tail : full;
        if (nv == 1)
          pairs_times_weight<1>(x, x_row, w, q.w_row, q.cin, in, out, n, y, y_row, last);
        else if (nv == 2)
          pairs_times_weight<2>(x, x_row, w, q.w_row, q.cin, in, out, n, y, y_row, last);
        else if constexpr (Vec::MAX_NV > 2) {
          if (nv == 3)
            pairs_times_weight<3>(x, x_row, w, q.w_row, q.cin, in, out, n, y, y_row, last);
          else
            pairs_times_weight<4>(x, x_row, w, q.w_row, q.cin, in, out, n, y, y_row, last);
        }
      });
  }
  return legal;
}

// MR input channels x NV vectors of output channels of one offset's gradient, summed over n pairs.
template <int NV, int MR>
inline void gradient_tile(const float* const* x, const float* const* dy, int64_t n, int64_t c,
                          int64_t d, float* sum, int64_t w_row, Vec::Mask last) {
  Vec::Reg acc[MR][NV];
  for (int r = 0; r < MR; r++)
    for (int v = 0; v < NV; v++) acc[r][v] = Vec::load(sum + (c + r) * w_row + W * v);
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
  for (int r = 0; r < MR; r++)
    for (int v = 0; v < NV; v++) Vec::store(sum + (c + r) * w_row + W * v, acc[r][v]);
}

// Input channels from c on: as many tiles of MR as fit, then of half as many, down to one.
template <int NV, int MR>
inline void gradient_rows(const float* const* x, const float* const* dy, int64_t n, int64_t c,
                          int64_t cin, int64_t d, float* sum, int64_t w_row, Vec::Mask last) {
  for (; c + MR <= cin; c += MR) gradient_tile<NV, MR>(x, dy, n, c, d, sum, w_row, last);
  if constexpr (MR > 1) gradient_rows<NV, MR / 2>(x, dy, n, c, cin, d, sum, w_row, last);
}

void depthwise_gradient(const ConvCall& q, const int32_t* in, const int32_t* out, int64_t n,
                        float* sum) {
  const int64_t width = q.groups;
  for (int64_t c = 0; c < width; c += W) {
    const Vec::Mask m = Vec::mask((int)least(W, width - c));
    Vec::Reg acc = Vec::load(sum + c, m);
    for (int64_t p = 0; p < n; p++)
      acc = Vec::fma(Vec::load(q.x + in[p] * width + c, m), Vec::load(q.dy + out[p] * width + c, m), acc);
    Vec::store(sum + c, m, acc);
  }
}

bool gradient(const ConvCall& q, int64_t first, int64_t len, int32_t* lists, float* sum) {
  int32_t *in = lists, *out = lists + CONV_LIST / 2;
  const float *a[CONV_BLOCK], *dy[CONV_BLOCK];
  const Vec::Mask full = Vec::mask(W), tail = tail_mask(q.cout);
  const int64_t vectors = (q.cout + W - 1) / W;
  bool legal = true;
  for (int64_t k = 0; k < q.offsets; k++) {
    const int64_t n =
        Vec::neighbours(q.table + k * q.n_out, first, len, (int32_t)q.n_in, in, out, legal);
    if (!n) continue;
    if (q.cin == 1 && q.cout == 1) {
      depthwise_gradient(q, in, out, n, sum + k * q.w_offset);
      continue;
    }
    for (int64_t g = 0; g < q.groups; g++) {
      for (int64_t p = 0; p < n; p++) {
        a[p] = q.x + (in[p] * q.groups + g) * q.cin;
        dy[p] = q.dy + (out[p] * q.groups + g) * q.cout;
      }
      for_panels(vectors, [&](int64_t v, int64_t nv) {
        float* s = sum + k * q.w_offset + g * q.w_group + v * W;
        const Vec::Mask last = v + nv == vectors ? tail : full;
        if (nv == 1)
          gradient_rows<1, Vec::channels(1)>(a, dy, n, 0, q.cin, v * W, s, q.w_row, last);
        else if (nv == 2)
          gradient_rows<2, Vec::channels(2)>(a, dy, n, 0, q.cin, v * W, s, q.w_row, last);
        else if constexpr (Vec::MAX_NV > 2) {
          if (nv == 3)
            gradient_rows<3, Vec::channels(3)>(a, dy, n, 0, q.cin, v * W, s, q.w_row, last);
          else
            gradient_rows<4, Vec::channels(4)>(a, dy, n, 0, q.cin, v * W, s, q.w_row, last);
        }
      });
    }
  }
  return legal;
}

}  // namespace
