// Convolution kernels for any processor: vectors of four, as every current one has.
#include "conv.h"

#include <string.h>

namespace {
struct Vec {
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Index __attribute__((vector_size(16)));
  using Mask = int;  // the number of lanes
  static constexpr int WIDTH = 4, MAX_NV = 2, SINGLES = 1;
  static constexpr int rows(int nv) { return nv == 1 ? 8 : 4; }
  static constexpr int steps(int) { return 4; }
  static constexpr int channels(int nv) { return nv == 1 ? 8 : 4; }
  static Mask mask(int lanes) { return lanes; }
  static Reg load(const float* p) {
    Reg v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static Reg load(const float* p, Mask m) {
    Reg v = {0, 0, 0, 0};
    if (m == WIDTH) return load(p);
    for (int i = 0; i < m; i++) v[i] = p[i];
    return v;
  }
  static void store(float* p, Reg v) { memcpy(p, &v, sizeof v); }
  static void store(float* p, Mask m, Reg v) {
    if (m == WIDTH) return store(p, v);
    for (int i = 0; i < m; i++) p[i] = v[i];
  }
  static Reg all(float s) { return Reg{s, s, s, s}; }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }

  static Index index(const int32_t* lane) { return Index{lane[0], lane[1], lane[2], lane[3]}; }
  static Reg spread(Reg v, Index i) { return Reg{v[i[0]], v[i[1]], v[i[2]], v[i[3]]}; }
  static Reg positive(Reg v) { return v > 0 ? v : Reg{0, 0, 0, 0}; }

  static int64_t list(const int32_t* row_of, int64_t len, int32_t* in, uint16_t* out) {
    int64_t n = 0;
    for (int64_t o = 0; o < len; o++) {
      in[n] = row_of[o];
      out[n] = (uint16_t)o;
      n += row_of[o] >= 0;
    }
    return n;
  }
};
}  // namespace

#include "conv_kernels.h"

const ConvKernels conv_plain = {lay_out, Vec::list, pack, forward, gradient};
