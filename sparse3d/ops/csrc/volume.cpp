// Alpha compositing of rays through many small voxel grids: the weight of every node in every ray.
// Boxes are independent and a box's rays are added in order: bits do not depend on the threads.
#include "common.h"

#include <math.h>

#include <algorithm>
#include <vector>

// Without it loops with a choice in them are not made wide; results stay the same.
#pragma GCC optimize("no-trapping-math")

namespace {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif
#define INLINE inline __attribute__((always_inline))

constexpr int64_t MOST_STEPS = 1000000;  // more only where rounding has eaten the box

struct Settings {
  double near, far, interval, shift, threshold, stop;
};

// One batch of boxes [m], each with `rays` rays and shape[0..2] nodes.
template <class T>
struct Boxes {
  const T *origins, *directions, *lower, *upper, *density;
  const uint8_t* mask;
  const T* step;
  int64_t m, rays;
  int64_t shape[3];
  Settings set;
  int64_t nodes() const { return shape[0] * shape[1] * shape[2]; }
};

// The samples of one ray that lie in the box, in arrays of their own so that loops are wide.
template <class T>
struct Samples {
  std::vector<T> fraction[3], softplus, slope, alpha;
  std::vector<int32_t> corner, number, near, inside;
  int64_t count = 0;
  void reserve(int64_t n) {
    if ((int64_t)softplus.size() >= n) return;
    for (auto* v : {&fraction[0], &fraction[1], &fraction[2], &softplus, &slope, &alpha}) v->resize(n);
    for (auto* v : {&corner, &number, &near, &inside}) v->resize(n);
  }
};

// By value: std::min's references keep loops from being made wide.
template <class T>
INLINE T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
INLINE T most(T a, T b) {
  return a < b ? b : a;
}

// exp(-a) of a >= 0, good to 2e-7 relative down to exp(-80).
INLINE float decay(float a) {
  const float t = -least(a, 80.f) * 1.44269504f;
  const float whole = floorf(t);
  const float f = (t - whole - 0.5f) * 0.693147181f;  // -0.347 .. 0.347
  float p = 1.f / 5040;
  p = p * f + 1.f / 720;
  p = p * f + 1.f / 120;
  p = p * f + 1.f / 24;
  p = p * f + 1.f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.f;
  p = (p * f + 1.f) * 1.41421356f;
  union {
    int32_t i;
    float f;
  } scale;
  scale.i = ((int32_t)whole + 127) << 23;
  return p * scale.f;
}

// log(1 + exp(x)) in place of x, its slope, and the opacity 1 - exp(-interval * it).
WIDE void soften(float* __restrict x, float* __restrict slope, float* __restrict alpha, float interval,
                 int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float e = decay(fabsf(x[i]));
    // log(1 + e) = 2 atanh(e / (2 + e)), argument up to a third
    const float s = e / (2.f + e), q = s * s;
    float l = 1.f / 15;
    l = l * q + 1.f / 13;
    l = l * q + 1.f / 11;
    l = l * q + 1.f / 9;
    l = l * q + 1.f / 7;
    l = l * q + 1.f / 5;
    l = l * q + 1.f / 3;
    l = l * q + 1.f;
    const float inverse = 1.f / (1.f + e);
    slope[i] = x[i] > 0 ? inverse : e * inverse;
    x[i] = most(x[i], 0.f) + 2.f * s * l;
    const float y = interval * x[i];
    float small = -1.f / 5040;  // the series of 1 - exp(-y), where the difference would lose digits
    small = small * y + 1.f / 720;
    small = small * y - 1.f / 120;
    small = small * y + 1.f / 24;
    small = small * y - 1.f / 6;
    small = small * y + 0.5f;
    small = y * (1.f - small * y);
    const float large = 1.f - decay(y);
    alpha[i] = y < 0.25f ? small : large;
  }
}

void soften(double* x, double* slope, double* alpha, double interval, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const double e = exp(-fabs(x[i]));
    slope[i] = x[i] > 0 ? 1 / (1 + e) : e / (1 + e);
    x[i] = most(x[i], 0.0) + log1p(e);
    alpha[i] = -expm1(-interval * x[i]);
  }
}

// Where sample i of a ray lies: cell and place in it along one axis, nearest node, and whether it is
// inside the box. Rounds as the definition does, so that both see the same samples.
template <class T>
struct Ray {
  const T *origin, *direction, *low, *high;
  T enter, step, length;
  int64_t steps;
  int32_t shape[3];

  // One axis after the other; `first`: the arrays begin with this one.
  template <bool first>
  INLINE void place_axis(int k, T* __restrict share, int32_t* __restrict corner, int32_t* __restrict near,
                         int32_t* __restrict inside) const {
    const T o = origin[k], d = direction[k], l = low[k], h = high[k], edge = h - l;
    const T from = enter, by = step, over = length, spread = (T)(shape[k] - 1);
    const int32_t width = shape[k], last = shape[k] - 1;
    for (int32_t i = 0; i < (int32_t)steps; i++) {
      const T along = (T)i * by / over + from;
      const T p = o + along * d;
      // zero first: a NaN becomes a corner of the box
      const T scaled = least((T)1, most((T)0, (p - l) / edge)) * spread;
      const int32_t cell = least((int32_t)scaled, last - 1);  // scaled is not below 0
      const int32_t closest = least((int32_t)(scaled + (T)0.5), last);
      const int32_t there = (int32_t)(p >= l) & (int32_t)(p <= h);
      share[i] = scaled - (T)cell;
      inside[i] = first ? there : inside[i] & there;
      corner[i] = first ? cell : corner[i] * width + cell;
      near[i] = first ? closest : near[i] * width + closest;
    }
  }

  INLINE void place(Samples<T>& s) const {
    int32_t *corner = s.corner.data(), *near = s.near.data(), *inside = s.inside.data();
    place_axis<true>(0, s.fraction[0].data(), corner, near, inside);
    place_axis<false>(1, s.fraction[1].data(), corner, near, inside);
    place_axis<false>(2, s.fraction[2].data(), corner, near, inside);
  }
};

WIDE void place(const Ray<float>& ray, Samples<float>& s) { ray.place(s); }
WIDE void place(const Ray<double>& ray, Samples<double>& s) { ray.place(s); }

// Slab test, then the samples between the faces. Returns false where the ray has none.
template <class T>
bool sample(const Boxes<T>& b, int64_t box, int64_t ray, Samples<T>& s) {
  const T *o = b.origins + (box * b.rays + ray) * 3, *d = b.directions + (box * b.rays + ray) * 3;
  const T *low = b.lower + box * 3, *high = b.upper + box * 3;
  T enter = -INFINITY, leave = INFINITY, square = 0;
  for (int k = 0; k < 3; k++) {
    const T v = d[k] == 0 ? (T)1e-6 : d[k];
    const T first = (low[k] - o[k]) / v, second = (high[k] - o[k]) / v;
    enter = std::max(enter, std::min(first, second));
    leave = std::min(leave, std::max(first, second));
    square += d[k] * d[k];
  }
  enter = std::min(std::max(enter, (T)b.set.near), (T)b.set.far);
  leave = std::min(std::max(leave, (T)b.set.near), (T)b.set.far);
  const T length = sqrt(square), step = b.step[box];
  const T wanted = ceil((leave - enter) * length / step);
  const int64_t steps = wanted > 1 ? (int64_t)std::min(wanted, (T)MOST_STEPS) : 1;
  s.reserve(steps);
  const int32_t shape[3] = {(int32_t)b.shape[0], (int32_t)b.shape[1], (int32_t)b.shape[2]};
  place(Ray<T>{o, d, low, high, enter, step, length, steps, {shape[0], shape[1], shape[2]}}, s);
  const uint8_t* mask = b.mask + box * b.nodes();
  s.count = 0;
  for (int64_t i = 0; i < steps; i++) {
    const int64_t at = s.count;
    for (auto& share : s.fraction) share[at] = share[i];
    s.corner[at] = s.corner[i];
    s.number[at] = (int32_t)i;
    s.count += s.inside[i] & (mask[s.near[i]] != 0);
  }
  return s.count > 0;
}

// Weights of the eight nodes around sample i, and how far they lie from its corner.
template <class T>
inline void corners(const Samples<T>& s, int64_t i, T out[8]) {
  const T x = s.fraction[0][i], y = s.fraction[1][i], z = s.fraction[2][i];
  const T a = (1 - x) * (1 - y), b = (1 - x) * y, c = x * (1 - y), d = x * y;
  out[0] = a * (1 - z), out[1] = a * z, out[2] = b * (1 - z), out[3] = b * z;
  out[4] = c * (1 - z), out[5] = c * z, out[6] = d * (1 - z), out[7] = d * z;
}

// Densities of a ray's samples: trilinear in the grid of their box.
template <class T>
INLINE void mix(const T* __restrict grid, const int64_t offset[8], Samples<T>& s, T shift) {
  const T *x = s.fraction[0].data(), *y = s.fraction[1].data(), *z = s.fraction[2].data();
  const int32_t* corner = s.corner.data();
  T* __restrict out = s.softplus.data();
  const int32_t o1 = (int32_t)offset[1], o2 = (int32_t)offset[2], o3 = (int32_t)offset[3];
  const int32_t o4 = (int32_t)offset[4], o5 = (int32_t)offset[5], o6 = (int32_t)offset[6];
  const int32_t o7 = (int32_t)offset[7], n = (int32_t)s.count;
  for (int32_t i = 0; i < n; i++) {
    const int32_t g = corner[i];
    const T u = 1 - x[i], v = 1 - y[i], w = 1 - z[i];
    const T a = grid[g] * w + grid[g + o1] * z[i], b = grid[g + o2] * w + grid[g + o3] * z[i];
    const T c = grid[g + o4] * w + grid[g + o5] * z[i], d = grid[g + o6] * w + grid[g + o7] * z[i];
    out[i] = (a * v + b * y[i]) * u + (c * v + d * y[i]) * x[i] + shift;
  }
}

WIDE void mix_all(const float* grid, const int64_t offset[8], Samples<float>& s, float shift) {
  mix(grid, offset, s, shift);
}
WIDE void mix_all(const double* grid, const int64_t offset[8], Samples<double>& s, double shift) {
  mix(grid, offset, s, shift);
}

// Fills softplus, slope and alpha of a ray's samples.
template <class T>
void densities(const Boxes<T>& b, int64_t box, const int64_t offset[8], Samples<T>& s) {
  mix_all(b.density + box * b.nodes(), offset, s, (T)b.set.shift);
  soften(s.softplus.data(), s.slope.data(), s.alpha.data(), (T)b.set.interval, s.count);
}

template <class T>
void corner_offsets(const Boxes<T>& b, int64_t out[8]) {
  for (int k = 0; k < 8; k++)
    out[k] = ((k >> 2) * b.shape[1] + ((k >> 1) & 1)) * b.shape[2] + (k & 1);
}

// Calls body(i, weight, transmittance after) for the samples that count; returns the last one.
template <class T, class Body>
T composite(const Settings& set, const Samples<T>& s, const Body& body) {
  T left = 1;
  for (int64_t i = 0; i < s.count; i++) {
    const T alpha = s.alpha[i];
    if (!(alpha > (T)set.threshold)) continue;
    const T weight = left * alpha, after = left - weight;
    body(i, weight > (T)set.threshold ? weight : (T)0, after);
    left = after;
    if (left < (T)set.stop) break;
  }
  return left;
}

template <class T>
int64_t forward(const Boxes<T>& b, T* nodes, T* left, T* depth, int64_t* used, int64_t threads) {
  int64_t offset[8];
  corner_offsets(b, offset);
  const int64_t n = b.nodes();
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, b.m * b.rays, 64))
  {
    Samples<T> s;
#pragma omp for schedule(static)
    for (int64_t at = 0; at < b.m * b.rays; at++) {
      T* out = nodes + at * n;
      std::fill(out, out + n, (T)0);
      left[at] = 1, depth[at] = 0, used[at] = 0;
      bool met = false;
      if (!shortage.within([&] { met = sample(b, at / b.rays, at % b.rays, s); }) || !met) continue;
      densities(b, at / b.rays, offset, s);
      left[at] = composite(b.set, s, [&](int64_t i, T weight, T) {
        if (weight == 0) return;
        T w[8];
        corners(s, i, w);
        for (int k = 0; k < 8; k++) out[s.corner[i] + offset[k]] += weight * w[k];
        depth[at] += weight * (T)s.number[i];
        used[at]++;
      });
    }
  }
  shortage.raise();
  return 0;
}

// What one composited sample gains by its weight, for the way back.
template <class T>
struct Gain {
  int64_t sample;
  T own, after;  // gradient of the weight times the weight, and times the transmittance after it
};

// Adds one ray's gradient to grad [nodes].
template <class T>
void backward_ray(const Boxes<T>& b, const Samples<T>& s, const int64_t offset[8],
                  const T* grad_nodes, T grad_left, std::vector<Gain<T>>& gains, T* grad) {
  gains.clear();
  const T end = composite(b.set, s, [&](int64_t i, T weight, T left) {
    T w[8], g = 0;
    corners(s, i, w);
    for (int k = 0; k < 8; k++) g += grad_nodes[s.corner[i] + offset[k]] * w[k];
    gains.push_back({i, g * weight, weight > 0 ? g * left : (T)0});
  });
  T behind = grad_left * end;  // what an opaquer sample takes from those behind it
  for (int64_t at = (int64_t)gains.size() - 1; at >= 0; at--) {
    const int64_t i = gains[at].sample;
    const T slope = (T)b.set.interval * (gains[at].after - behind) * s.slope[i];
    T w[8];
    corners(s, i, w);
    for (int k = 0; k < 8; k++) grad[s.corner[i] + offset[k]] += slope * w[k];
    behind += gains[at].own;
  }
}

template <class T>
int64_t backward(const Boxes<T>& b, const T* grad_nodes, const T* grad_left, T* grad,
                 int64_t threads) {
  int64_t offset[8];
  corner_offsets(b, offset);
  const int64_t n = b.nodes();
  Shortage shortage;
#pragma omp parallel num_threads(useful_threads(threads, b.m * b.rays, 64))
  {
    Samples<T> s;
    std::vector<Gain<T>> gains;
#pragma omp for schedule(static)
    for (int64_t box = 0; box < b.m; box++) {
      T* out = grad + box * n;
      std::fill(out, out + n, (T)0);
      shortage.within([&] {
        for (int64_t ray = 0; ray < b.rays; ray++) {
          if (!sample(b, box, ray, s)) continue;
          densities(b, box, offset, s);
          const int64_t at = box * b.rays + ray;
          backward_ray(b, s, offset, grad_nodes + at * n, grad_left[at], gains, out);
        }
      });
    }
  }
  shortage.raise();
  return 0;
}

// out [boxes, rays, channels] = left [boxes, rays] + nodes [boxes, rays, n] @ features [boxes, n, channels],
// cut to [-cut, cut]. A ray sees few of its box's nodes, and only those are read.
template <class T>
INLINE void blend_rows(const T* nodes, const T* features, int64_t n, int64_t channels, T left, T cut,
                       T* __restrict out) {
  std::fill(out, out + channels, left);
  for (int64_t i = 0; i < n; i++) {
    const T weight = nodes[i], *row = features + i * channels;
    if (weight == 0) continue;
    for (int64_t c = 0; c < channels; c++) out[c] += weight * row[c];
  }
  for (int64_t c = 0; c < channels; c++) out[c] = most(least(out[c], cut), -cut);
}

WIDE void blend_ray(const float* nodes, const float* features, int64_t n, int64_t channels, float left,
                    float cut, float* out) {
  blend_rows(nodes, features, n, channels, left, cut, out);
}
WIDE void blend_ray(const double* nodes, const double* features, int64_t n, int64_t channels, double left,
                    double cut, double* out) {
  blend_rows(nodes, features, n, channels, left, cut, out);
}

template <class T>
int64_t blend(const T* nodes, const T* features, const T* left, int64_t boxes, int64_t rays, int64_t n,
              int64_t channels, double cut, T* out, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(useful_threads(threads, boxes * rays, 64))
  for (int64_t at = 0; at < boxes * rays; at++)
    blend_ray(nodes + at * n, features + at / rays * n * channels, n, channels, left[at], (T)cut,
              out + at * channels);
  return 0;
}

}  // namespace

#define BLEND(T, SUFFIX)                                                                           \
  EXPORT int64_t s3d_blend_##SUFFIX(const T* nodes, const T* features, const T* left,              \
                                    int64_t boxes, int64_t rays, int64_t n, int64_t channels,      \
                                    double cut, T* out, int64_t threads) try {                     \
    return blend(nodes, features, left, boxes, rays, n, channels, cut, out, threads);              \
  } OR_SHORTAGE

BLEND(float, f32)
BLEND(double, f64)

#define RAY_WEIGHTS(T, SUFFIX)                                                                       \
  EXPORT int64_t s3d_ray_weights_##SUFFIX(                                                           \
      const T* origins, const T* directions, const T* lower, const T* upper, const T* density,       \
      const uint8_t* mask, const T* step, int64_t m, int64_t rays, int64_t x, int64_t y, int64_t z,  \
      double near, double far, double interval, double shift, double threshold, double stop,         \
      T* nodes, T* left, T* depth, int64_t* used, int64_t threads) try {                             \
    const Boxes<T> b{origins, directions, lower, upper, density, mask, step, m, rays,                \
                     {x, y, z}, {near, far, interval, shift, threshold, stop}};                      \
    return forward(b, nodes, left, depth, used, threads);                                            \
  } OR_SHORTAGE                                                                                      \
  EXPORT int64_t s3d_ray_weights_backward_##SUFFIX(                                                  \
      const T* grad_nodes, const T* grad_left, const T* origins, const T* directions,                \
      const T* lower, const T* upper, const T* density, const uint8_t* mask, const T* step,          \
      int64_t m, int64_t rays, int64_t x, int64_t y, int64_t z, double near, double far,             \
      double interval, double shift, double threshold, double stop, T* grad, int64_t threads) try {  \
    const Boxes<T> b{origins, directions, lower, upper, density, mask, step, m, rays,                \
                     {x, y, z}, {near, far, interval, shift, threshold, stop}};                      \
    return backward(b, grad_nodes, grad_left, grad, threads);                                        \
  } OR_SHORTAGE

RAY_WEIGHTS(float, f32)
RAY_WEIGHTS(double, f64)
