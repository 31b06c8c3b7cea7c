// Projection of Gaussians and spherical harmonics, one Gaussian per lane: included by splat_project.cpp
// once per instruction set, inside a namespace of its own, with S3D_LANES floats per vector.

#include "splat_vectors.h"

INLINE Lanes angle(Lanes y, Lanes x) {
  return each([&](int l) { return atan2f(y[l], x[l]); });
}

// A number and its derivatives by x, y and z.
struct Dual {
  Lanes v, d[3];
};
INLINE Dual operator+(const Dual& a, const Dual& b) {
  return {a.v + b.v, {a.d[0] + b.d[0], a.d[1] + b.d[1], a.d[2] + b.d[2]}};
}
INLINE Dual operator-(const Dual& a, const Dual& b) {
  return {a.v - b.v, {a.d[0] - b.d[0], a.d[1] - b.d[1], a.d[2] - b.d[2]}};
}
INLINE Dual operator*(const Dual& a, const Dual& b) {
  return {a.v * b.v,
          {a.d[0] * b.v + a.v * b.d[0], a.d[1] * b.v + a.v * b.d[1], a.d[2] * b.v + a.v * b.d[2]}};
}
INLINE Dual operator/(const Dual& a, const Dual& b) {
  const Lanes q = a.v / b.v;
  return {q, {(a.d[0] - q * b.d[0]) / b.v, (a.d[1] - q * b.d[1]) / b.v, (a.d[2] - q * b.d[2]) / b.v}};
}
INLINE Dual operator+(const Dual& a, float b) { return {a.v + b, {a.d[0], a.d[1], a.d[2]}}; }
INLINE Dual operator*(const Dual& a, float b) { return {a.v * b, {a.d[0] * b, a.d[1] * b, a.d[2] * b}}; }
INLINE Dual operator*(float b, const Dual& a) { return a * b; }
INLINE Dual root(const Dual& a) {
  const Lanes r = root(a.v), h = keep(a.v > 0, 0.5f / r);
  return {r, {a.d[0] * h, a.d[1] * h, a.d[2] * h}};
}
INLINE Dual angle(const Dual& y, const Dual& x) {
  const Lanes s = 1.f / (x.v * x.v + y.v * y.v), p = x.v * s, q = y.v * s;
  return {angle(y.v, x.v),
          {p * y.d[0] - q * x.d[0], p * y.d[1] - q * x.d[1], p * y.d[2] - q * x.d[2]}};
}
INLINE Lanes between(Lanes x, float low, float high) {
  return smaller(larger(x, spread(low)), spread(high));
}
INLINE Dual between(const Dual& x, float low, float high) {
  const Mask in = (x.v >= low) & (x.v <= high);
  return {between(x.v, low, high), {keep(in, x.d[0]), keep(in, x.d[1]), keep(in, x.d[2])}};
}

// ---------------------------------------------------------------------- cameras

struct View {
  float R[3][3], t[3], fx, fy, cx, cy, low_x, high_x, low_y, high_y;

  View(const ProjectCall& q, int64_t image) {
    const float *V = q.viewmats + 16 * image, *K = q.Ks + 9 * image;
    for (int i = 0; i < 3; i++) {
      for (int j = 0; j < 3; j++) R[i][j] = V[4 * i + j];
      t[i] = V[4 * i + 3];
    }
    fx = K[0], fy = K[4], cx = K[2], cy = K[5];
    const float margin_x = 0.15f * q.width / fx, margin_y = 0.15f * q.height / fy;
    low_x = -(cx / fx + margin_x), high_x = (q.width - cx) / fx + margin_x;
    low_y = -(cy / fy + margin_y), high_y = (q.height - cy) / fy + margin_y;
  }
};

// Place in the picture and Jacobian of a point in the camera's frame: out[2] and J[2][3].
template <class T>
INLINE void picture(const View& c, int64_t model, const T& x, const T& y, const T& z, T* out,
                    T J[2][3]) {
  const T zero = x * 0.f, one = zero + 1.f;
  if (model == 0) {  // pinhole
    const T per_z = one / z, u = x * per_z, v = y * per_z;
    const T near_u = between(u, c.low_x, c.high_x), near_v = between(v, c.low_y, c.high_y);
    out[0] = u * c.fx + c.cx, out[1] = v * c.fy + c.cy;
    J[0][0] = per_z * c.fx, J[0][1] = zero, J[0][2] = near_u * per_z * -c.fx;
    J[1][0] = zero, J[1][1] = per_z * c.fy, J[1][2] = near_v * per_z * -c.fy;
  } else if (model == 1) {  // ortho
    out[0] = x * c.fx + c.cx, out[1] = y * c.fy + c.cy;
    J[0][0] = one * c.fx, J[0][1] = zero, J[0][2] = zero;
    J[1][0] = zero, J[1][1] = one * c.fy, J[1][2] = zero;
  } else {  // equidistant fisheye
    const float tiny = 1e-7f;
    const T r = root(x * x + y * y) + tiny, stretch = angle(r, z + tiny) / r;
    const T xx = x * x + tiny, yy = y * y, xy = x * y, q = xx + yy, d = one / (q + z * z);
    const T a = z * d / q, b = angle(r, z) / r / q;
    out[0] = x * stretch * c.fx + c.cx, out[1] = y * stretch * c.fy + c.cy;
    J[0][0] = (xx * a + yy * b) * c.fx, J[0][1] = xy * (a - b) * c.fx, J[0][2] = x * d * -c.fx;
    J[1][0] = xy * (a - b) * c.fy, J[1][1] = (yy * a + xx * b) * c.fy, J[1][2] = y * d * -c.fy;
  }
}

// ---------------------------------------------------------------------- Gaussians

// N numbers each of `n` rows, one row per lane; the last row again in lanes beyond n.
template <int N>
INLINE void load(const float* rows, int64_t n, Lanes* out) {
  for (int k = 0; k < N; k++) out[k] = each([&](int l) { return rows[(l < n ? l : n - 1) * N + k]; });
}
template <int N>
INLINE void load_or_zero(const float* rows, int64_t first, int64_t n, Lanes* out) {
  if (rows) return load<N>(rows + N * first, n, out);
  for (int k = 0; k < N; k++) out[k] = spread(0.f);
}
template <int N>
INLINE void store(float* rows, int64_t n, const Lanes* in) {
  for (int k = 0; k < N; k++)
    for (int l = 0; l < n; l++) rows[l * N + k] = in[k][l];
}

// Axes times deviations, of which the covariance is half half^T; or, where that is `given`, itself.
struct Shape {
  Lanes half[3][3], n[4] = {}, per_length = {}, scale[3] = {};
  bool given;

  INLINE void rotation(const Lanes* q, Lanes R[3][3]) {
    const Lanes w = q[0], x = q[1], y = q[2], z = q[3];
    R[0][0] = 1.f - 2.f * (y * y + z * z), R[0][1] = 2.f * (x * y - w * z);
    R[0][2] = 2.f * (x * z + w * y), R[1][0] = 2.f * (x * y + w * z);
    R[1][1] = 1.f - 2.f * (x * x + z * z), R[1][2] = 2.f * (y * z - w * x);
    R[2][0] = 2.f * (x * z - w * y), R[2][1] = 2.f * (y * z + w * x);
    R[2][2] = 1.f - 2.f * (x * x + y * y);
  }

  inline __attribute__((always_inline)) void read(const ProjectCall& p, int64_t row, int64_t m) {
    given = p.covars != nullptr;
    if (given) {
      Lanes c[6];
      load<6>(p.covars + 6 * row, m, c);
      half[0][0] = c[0], half[0][1] = half[1][0] = c[1], half[0][2] = half[2][0] = c[2];
      half[1][1] = c[3], half[1][2] = half[2][1] = c[4], half[2][2] = c[5];
      return;
    }
    Lanes q[4];
    load<4>(p.quats + 4 * row, m, q);
    load<3>(p.scales + 3 * row, m, scale);
    const Lanes square = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3];
    per_length = 1.f / larger(root(square), spread(1e-12f));
    for (int k = 0; k < 4; k++) n[k] = q[k] * per_length;
    Lanes R[3][3];
    rotation(n, R);
    for (int i = 0; i < 3; i++)
      for (int j = 0; j < 3; j++) half[i][j] = R[i][j] * scale[j];
  }

  // Gradients of quaternions and deviations, of that of `half`.
  inline __attribute__((always_inline)) void pull_back(const Lanes g[3][3], Lanes* dq,
                                                       Lanes* ds) const {
    Lanes R[3][3], G[3][3];
    rotation(n, R);
    for (int j = 0; j < 3; j++) {
      ds[j] = R[0][j] * g[0][j] + R[1][j] * g[1][j] + R[2][j] * g[2][j];
      for (int i = 0; i < 3; i++) G[i][j] = 2.f * g[i][j] * scale[j];
    }
    const Lanes w = n[0], x = n[1], y = n[2], z = n[3];
    const Lanes s01 = G[0][1] + G[1][0], s02 = G[0][2] + G[2][0], s12 = G[1][2] + G[2][1];
    const Lanes a01 = G[1][0] - G[0][1], a02 = G[0][2] - G[2][0], a12 = G[2][1] - G[1][2];
    const Lanes d[4] = {z * a01 + y * a02 + x * a12,
                        y * s01 + z * s02 + w * a12 - 2.f * x * (G[1][1] + G[2][2]),
                        x * s01 + z * s12 + w * a02 - 2.f * y * (G[0][0] + G[2][2]),
                        x * s02 + y * s12 + w * a01 - 2.f * z * (G[0][0] + G[1][1])};
    const Lanes along = w * d[0] + x * d[1] + y * d[2] + z * d[3];
    for (int k = 0; k < 4; k++) dq[k] = (d[k] - n[k] * along) * per_length;
  }
};

// A Gaussian in a picture; T = J R, P = T half.
struct Flat {
  Lanes a, b, c, det, det0, ratio;  // covariance with eps2d
  Lanes T[2][3], P[2][3];

  inline __attribute__((always_inline)) Flat(const View& view, const Shape& s, const Lanes J[2][3],
                                             float eps) {
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 3; j++)
        T[i][j] = J[i][0] * view.R[0][j] + J[i][1] * view.R[1][j] + J[i][2] * view.R[2][j];
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 3; j++)
        P[i][j] = T[i][0] * s.half[0][j] + T[i][1] * s.half[1][j] + T[i][2] * s.half[2][j];
    const Lanes(*Q)[3] = s.given ? T : P;
    const Lanes a0 = P[0][0] * Q[0][0] + P[0][1] * Q[0][1] + P[0][2] * Q[0][2];
    const Lanes c0 = P[1][0] * Q[1][0] + P[1][1] * Q[1][1] + P[1][2] * Q[1][2];
    b = P[0][0] * Q[1][0] + P[0][1] * Q[1][1] + P[0][2] * Q[1][2];
    a = a0 + eps, c = c0 + eps;
    det0 = a0 * c0 - b * b;
    det = a * c - b * b;
    ratio = larger(det0 / det, spread(0.f));
  }
};

INLINE void to_camera(const View& c, const Lanes* m, Lanes* out) {
  for (int i = 0; i < 3; i++)
    out[i] = c.R[i][0] * m[0] + c.R[i][1] * m[1] + c.R[i][2] * m[2] + c.t[i];
}

INLINE Mask lanes_below(int64_t n) {
  Mask out;
  for (int l = 0; l < L; l++) out[l] = l < n ? -1 : 0;
  return out;
}

static void project_lanes(const ProjectCall& p, const View& view, int64_t row, int64_t out,
                          int64_t n) {
  Lanes m[3], at[3], place[2], J[2][3];
  Shape shape;
  load<3>(p.means + 3 * row, n, m);
  shape.read(p, row, n);
  to_camera(view, m, at);
  picture(view, p.model, at[0], at[1], at[2], place, J);
  const Flat flat(view, shape, J, p.eps2d);
  const Lanes compensation = root(flat.ratio);
  Mask seen = (flat.det > 0) & (at[2] > p.near) & (at[2] < p.far);
  Lanes extent = spread(3.33f);
  if (p.opacities) {
    Lanes o;
    load<1>(p.opacities + row, n, &o);
    if (p.compensate) o *= compensation;
    seen &= o >= 1.f / 255;
    extent = smaller(extent, root(2.f * each([&](int l) { return seen[l] ? logf(255 * o[l]) : 0.f; })));
  }
  const Lanes sx = extent * root(flat.a), sy = extent * root(flat.c);
  Lanes rx = each([&](int l) { return ceilf(sx[l]); }), ry = each([&](int l) { return ceilf(sy[l]); });
  seen &= (rx > p.radius_clip) | (ry > p.radius_clip);
  seen &= (place[0] + rx > 0) & (place[0] - rx < (float)p.width);
  seen &= (place[1] + ry > 0) & (place[1] - ry < (float)p.height);
  rx = keep(seen, smaller(rx, spread(0x1p30f))), ry = keep(seen, smaller(ry, spread(0x1p30f)));
  for (int l = 0; l < n; l++) {
    p.radii[2 * (out + l)] = (int32_t)rx[l];
    p.radii[2 * (out + l) + 1] = (int32_t)ry[l];
  }
  const Lanes conic[3] = {keep(seen, flat.c / flat.det), keep(seen, -flat.b / flat.det),
                          keep(seen, flat.a / flat.det)};
  const Lanes where[2] = {keep(seen, place[0]), keep(seen, place[1])};
  const Lanes depth = keep(seen, at[2]), factor = keep(seen, compensation);
  store<2>(p.means2d + 2 * out, n, where);
  store<1>(p.depths + out, n, &depth);
  store<3>(p.conics + 3 * out, n, conic);
  store<1>(p.compensations + out, n, &factor);
}

static void project(const ProjectCall& p, int64_t batch, int64_t chunk) {
  const int64_t end = std::min(p.count, (chunk + 1) * PROJECT_CHUNK);
  for (int64_t camera = 0; camera < p.cameras; camera++) {
    const int64_t image = batch * p.cameras + camera;
    const View view(p, image);
    for (int64_t i = chunk * PROJECT_CHUNK; i < end; i += L)
      project_lanes(p, view, batch * p.count + i, image * p.count + i, std::min<int64_t>(L, end - i));
  }
}

// ---------------------------------------------------------------------- gradient

// Sums of the gradient of one Gaussian per lane, over cameras.
struct Slopes {
  Lanes mean[3] = {}, half[3][3] = {}, cov[6] = {};
};

// The gradient of the covariance in the picture (off-diagonal: of each of the two entries).
INLINE void covariance_slope(const ProjectCall& p, const Flat& f, int64_t out, int64_t n, Lanes* g) {
  Lanes dq[3], dk;
  load_or_zero<3>(p.d_conics, out, n, dq);
  load_or_zero<1>(p.d_compensations, out, n, &dk);
  const Lanes per = 1.f / f.det, A = f.c * per, B = -f.b * per, C = f.a * per, h = 0.5f * dq[1];
  // - Q G Q of the conic Q
  const Lanes u0 = A * dq[0] + B * h, u1 = A * h + B * dq[2];
  const Lanes v0 = B * dq[0] + C * h, v1 = B * h + C * dq[2];
  g[0] = -(u0 * A + u1 * B), g[1] = -(u0 * B + u1 * C), g[2] = -(v0 * B + v1 * C);
  const Lanes k = keep(f.ratio > 0, 0.5f * dk / root(f.ratio)) * per, kr = k * f.ratio;
  const Lanes a0 = f.a - p.eps2d, c0 = f.c - p.eps2d;
  g[0] += k * c0 - kr * f.c, g[1] += kr * f.b - k * f.b, g[2] += k * a0 - kr * f.a;
}

// Adds what one picture gives to `s` and, per lane, to the rotation and translation of its camera.
static void pull_back_lanes(const ProjectCall& p, const View& view, const Shape& shape,
                            const Lanes* m, int64_t out, int64_t n, Slopes& s, Lanes dR[3][4]) {
  Mask seen = lanes_below(n);
  int32_t any = 0;
  for (int l = 0; l < n; l++) {
    seen[l] = p.radii[2 * (out + l)] > 0 && p.radii[2 * (out + l) + 1] > 0 ? -1 : 0;
    any |= seen[l];
  }
  if (!any) return;
  Lanes at[3], J[2][3], g[3], dT[2][3], dP[2][3], dm[2], dz;
  Dual place[2], slope[2][3];
  to_camera(view, m, at);
  const Lanes one = spread(1.f), zero = spread(0.f);
  picture(view, p.model, Dual{at[0], {one, zero, zero}}, Dual{at[1], {zero, one, zero}},
          Dual{at[2], {zero, zero, one}}, place, slope);
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 3; j++) J[i][j] = slope[i][j].v;
  const Flat f(view, shape, J, p.eps2d);
  covariance_slope(p, f, out, n, g);
  for (int j = 0; j < 3; j++) {
    dP[0][j] = 2.f * (g[0] * f.P[0][j] + g[1] * f.P[1][j]);
    dP[1][j] = 2.f * (g[1] * f.P[0][j] + g[2] * f.P[1][j]);
  }
  if (shape.given) {
    Lanes U[2][3];
    for (int j = 0; j < 3; j++) {
      dT[0][j] = dP[0][j], dT[1][j] = dP[1][j];  // P = T cov
      U[0][j] = g[0] * f.T[0][j] + g[1] * f.T[1][j], U[1][j] = g[1] * f.T[0][j] + g[2] * f.T[1][j];
    }
    int k = 0;
    for (int i = 0; i < 3; i++)
      for (int j = i; j < 3; j++, k++) {
        const Lanes e = f.T[0][i] * U[0][j] + f.T[1][i] * U[1][j];
        s.cov[k] += keep(seen, i == j ? e : 2.f * e);
      }
  } else {
    for (int i = 0; i < 3; i++)
      for (int j = 0; j < 3; j++)
        s.half[i][j] += keep(seen, f.T[0][i] * dP[0][j] + f.T[1][i] * dP[1][j]);
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 3; j++)
        dT[i][j] = dP[i][0] * shape.half[j][0] + dP[i][1] * shape.half[j][1] +
                   dP[i][2] * shape.half[j][2];
  }
  load_or_zero<2>(p.d_means2d, out, n, dm);
  load_or_zero<1>(p.d_depths, out, n, &dz);
  Lanes d[3] = {zero, zero, dz};
  for (int k = 0; k < 3; k++)
    for (int i = 0; i < 2; i++) {
      d[k] += dm[i] * place[i].d[k];
      for (int j = 0; j < 3; j++) {
        const Lanes dJ = dT[i][0] * view.R[j][0] + dT[i][1] * view.R[j][1] + dT[i][2] * view.R[j][2];
        d[k] += dJ * slope[i][j].d[k];
      }
    }
  for (int i = 0; i < 3; i++) {
    d[i] = keep(seen, d[i]);
    for (int j = 0; j < 3; j++)
      dR[i][j] += d[i] * m[j] + keep(seen, J[0][i] * dT[0][j] + J[1][i] * dT[1][j]);
    dR[i][3] += d[i];
  }
  for (int j = 0; j < 3; j++)
    s.mean[j] += view.R[0][j] * d[0] + view.R[1][j] * d[1] + view.R[2][j] * d[2];
}

static void pull_back(const ProjectCall& p, int64_t batch, int64_t chunk, std::vector<float>& memory) {
  const int64_t end = std::min(p.count, (chunk + 1) * PROJECT_CHUNK);
  memory.assign(p.cameras * 12 * L, 0.f);
  for (int64_t i = chunk * PROJECT_CHUNK; i < end; i += L) {
    const int64_t n = std::min<int64_t>(L, end - i), row = batch * p.count + i;
    Lanes m[3], dq[4], ds[3];
    Shape shape;
    Slopes s;
    load<3>(p.means + 3 * row, n, m);
    shape.read(p, row, n);
    for (int64_t camera = 0; camera < p.cameras; camera++) {
      const int64_t image = batch * p.cameras + camera;
      Lanes(*dR)[4] = (Lanes(*)[4])(memory.data() + camera * 12 * L);
      pull_back_lanes(p, View(p, image), shape, m, image * p.count + i, n, s, dR);
    }
    store<3>(p.d_means + 3 * row, n, s.mean);
    if (shape.given) {
      store<6>(p.d_covars + 6 * row, n, s.cov);
      continue;
    }
    shape.pull_back(s.half, dq, ds);
    store<4>(p.d_quats + 4 * row, n, dq);
    store<3>(p.d_scales + 3 * row, n, ds);
  }
  for (int64_t k = 0; k < p.cameras * 12; k++) {
    double sum = 0;
    for (int l = 0; l < L; l++) sum += memory[k * L + l];
    p.d_views[(batch * p.chunks() + chunk) * p.cameras * 12 + k] = sum;
  }
}

// ---------------------------------------------------------------------- spherical harmonics

// The bases of a direction of length 1, up to a degree.
template <class T>
INLINE void bases(int64_t degree, const T& x, const T& y, const T& z, T* b) {
  b[0] = x * 0.f + 0.2820947917738781f;
  if (degree < 1) return;
  b[1] = y * -0.48860251190292f, b[2] = z * 0.48860251190292f, b[3] = x * -0.48860251190292f;
  if (degree < 2) return;
  const T c1 = x * x - y * y, s1 = x * y * 2.f, zz = z * z, f2 = z * -1.092548430592079f;
  b[4] = s1 * 0.5462742152960395f, b[5] = f2 * y;
  b[6] = zz * 0.9461746957575601f + -0.3153915652525201f;
  b[7] = f2 * x, b[8] = c1 * 0.5462742152960395f;
  if (degree < 3) return;
  const T c2 = x * c1 - y * s1, s2 = x * s1 + y * c1;
  const T f3 = z * 1.445305721320277f, g3 = zz * -2.285228997322329f + 0.4570457994644658f;
  b[9] = s2 * -0.5900435899266435f, b[10] = f3 * s1, b[11] = g3 * y;
  b[12] = z * (zz * 1.865881662950577f + -1.119528997770346f);
  b[13] = g3 * x, b[14] = f3 * c1, b[15] = c2 * -0.5900435899266435f;
  if (degree < 4) return;
  const T c3 = x * c2 - y * s2, s3 = x * s2 + y * c2;
  const T f4 = z * -1.770130769779931f, g4 = zz * 3.31161143515146f + -0.47308734787878f;
  const T h4 = z * (zz * -4.683325804901025f + 2.007139630671868f);
  b[16] = s3 * 0.6258357354491763f, b[17] = f4 * s2, b[18] = g4 * s1, b[19] = h4 * y;
  b[20] = z * b[12] * 1.984313483298443f - b[6] * 1.006230589874905f;
  b[21] = h4 * x, b[22] = g4 * c1, b[23] = f4 * c2, b[24] = c3 * 0.6258357354491763f;
}

INLINE Lanes to_unit(Lanes* d) {
  const Lanes per = 1.f / larger(root(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]), spread(1e-12f));
  for (int k = 0; k < 3; k++) d[k] *= per;
  return per;
}

template <int S>
INLINE void exchange(Lanes* m) {
  Mask low, high;
  for (int l = 0; l < L; l++) {
    low[l] = l & S ? L + l - S : l;
    high[l] = l & S ? L + l : l + S;
  }
  for (int i = 0; i < L; i++)
    if (!(i & S)) {
      const Lanes a = m[i], b = m[i + S];
      m[i] = __builtin_shuffle(a, b, low), m[i + S] = __builtin_shuffle(a, b, high);
    }
}

// Lane l of vector k becomes lane k of vector l.
INLINE void transpose(Lanes* m) {
  exchange<1>(m);
  exchange<2>(m);
  if (L > 4) exchange<(L > 4 ? 4 : 1)>(m);
  if (L > 8) exchange<(L > 8 ? 8 : 1)>(m);
}

constexpr int64_t MOST_OTHERS = 24;

// `columns` floats of each of n rows, `apart` floats from one to the next: out[k][l] is number k of row l.
INLINE void load_rows(const float* rows, int64_t apart, int64_t n, int64_t columns, Lanes* out) {
  if (n < L || columns < L) {
    for (int64_t k = 0; k < columns; k++)
      out[k] = each([&](int l) { return rows[(l < n ? l : n - 1) * apart + k]; });
    return;
  }
  for (int64_t k = 0; k < columns; k += L) {
    const int64_t from = std::min(k, columns - L);  // the last block overlaps the one before
    Lanes block[L];
    for (int l = 0; l < L; l++) memcpy(block + l, rows + l * apart + from, sizeof(Lanes));
    transpose(block);
    memcpy(out + from, block, sizeof block);
  }
}

INLINE void store_rows(float* rows, int64_t apart, int64_t n, int64_t columns, const Lanes* in) {
  if (n < L || columns < L) {
    for (int64_t k = 0; k < columns; k++)
      for (int64_t l = 0; l < n; l++) rows[l * apart + k] = in[k][l];
    return;
  }
  for (int64_t k = 0; k < columns; k += L) {
    const int64_t from = std::min(k, columns - L);
    Lanes block[L];
    memcpy(block, in + from, sizeof block);
    transpose(block);
    for (int l = 0; l < L; l++) memcpy(rows + l * apart + from, block + l, sizeof(Lanes));
  }
}

// All ones where a row is to be shown.
INLINE Mask shown(const HarmonicsCall& q, int64_t at, int64_t n) {
  Mask out = {};
  for (int l = 0; l < n; l++) out[l] = !q.masks || q.masks[at + l] ? -1 : 0;
  return out;
}

static void harmonics(const HarmonicsCall& q, int64_t image, int64_t first, int64_t end) {
  const int64_t columns = 3 * ((q.degree + 1) * (q.degree + 1) - 1);
  for (int64_t i = first; i < end; i += L) {
    const int64_t n = std::min<int64_t>(L, end - i), at = image * q.count + i;
    const int64_t row = (q.shared ? 0 : image * q.count) + i;
    Lanes d[3], b[25], c[3 * MOST_OTHERS], sum[3];
    load<3>(q.dirs + 3 * at, n, d);
    to_unit(d);
    bases(q.degree, d[0], d[1], d[2], b);
    load_rows(q.first + row * q.apart, q.apart, n, 3, sum);
    load_rows(q.rest + row * q.others_apart, q.others_apart, n, columns, c);
    for (int j = 0; j < 3; j++) sum[j] *= b[0];
    for (int64_t k = 0; k < columns; k += 3)
      for (int j = 0; j < 3; j++) sum[j] += b[1 + k / 3] * c[k + j];
    const Mask seen = shown(q, at, n);
    for (int j = 0; j < 3; j++) sum[j] = keep(seen, sum[j]);
    store<3>(q.colors + 3 * at, n, sum);
  }
}

static void harmonics_gradient(const HarmonicsCall& q, int64_t image, int64_t first, int64_t end) {
  const int64_t columns = 3 * ((q.degree + 1) * (q.degree + 1) - 1);
  for (int64_t i = first; i < end; i += L) {
    const int64_t n = std::min<int64_t>(L, end - i), at = image * q.count + i;
    const int64_t row = (q.shared ? 0 : image * q.count) + i;
    Lanes d[3], g[3], c[3 * MOST_OTHERS], dc[3 * MOST_OTHERS], d_first[3], out[3] = {};
    Dual b[25];
    load<3>(q.dirs + 3 * at, n, d);
    const Mask seen = shown(q, at, n);  // whatever else is in these rows, NaN too, says nothing
    for (int j = 0; j < 3; j++) d[j] = keep(seen, d[j]);
    const Lanes per = to_unit(d), one = spread(1.f), zero = spread(0.f);
    bases(q.degree, Dual{d[0], {one, zero, zero}}, Dual{d[1], {zero, one, zero}},
          Dual{d[2], {zero, zero, one}}, b);
    load<3>(q.grad + 3 * at, n, g);
    for (int j = 0; j < 3; j++) g[j] = keep(seen, g[j]);
    load_rows(q.rest + row * q.others_apart, q.others_apart, n, columns, c);
    for (int j = 0; j < 3; j++) d_first[j] = b[0].v * g[j];
    for (int64_t k = 0; k < columns; k += 3) {
      const Dual& basis = b[1 + k / 3];
      const Lanes pull = c[k] * g[0] + c[k + 1] * g[1] + c[k + 2] * g[2];
      for (int j = 0; j < 3; j++) {
        dc[k + j] = basis.v * g[j];
        out[j] += pull * basis.d[j];
      }
    }
    float *to_first = q.d_first + row * q.apart, *to_rest = q.d_rest + row * q.others_apart;
    if (q.shared && image > 0) {
      Lanes before[3 * MOST_OTHERS];
      load_rows(to_first, q.apart, n, 3, before);
      for (int j = 0; j < 3; j++) d_first[j] += before[j];
      load_rows(to_rest, q.others_apart, n, columns, before);
      for (int64_t k = 0; k < columns; k++) dc[k] += before[k];
    } else {
      for (int64_t l = 0; l < n; l++)
        memset(to_rest + l * q.others_apart + columns, 0,
               sizeof(float) * (3 * q.others - columns));
    }
    store_rows(to_first, q.apart, n, 3, d_first);
    store_rows(to_rest, q.others_apart, n, columns, dc);
    const Lanes along = d[0] * out[0] + d[1] * out[1] + d[2] * out[2];
    for (int j = 0; j < 3; j++) out[j] = keep(seen, (out[j] - d[j] * along) * per);
    store<3>(q.d_dirs + 3 * at, n, out);
  }
}
#undef INLINE
