// The tiles that Gaussians reach, one Gaussian per lane: included by splat_tiles.cpp once per instruction
// set, inside a namespace of its own, with S3D_LANES floats per vector.

#include "splat_vectors.h"

typedef double Doubles __attribute__((vector_size(8 * S3D_LANES)));

INLINE Mask whole(Lanes x) { return __builtin_convertvector(x, Mask); }
INLINE Lanes real(Mask x) { return __builtin_convertvector(x, Lanes); }
INLINE Doubles exact(Lanes x) { return __builtin_convertvector(x, Doubles); }
INLINE Lanes between(Lanes x, Lanes low, Lanes high) { return smaller(larger(x, low), high); }

// floor and ceil of x, kept within 0 .. limit; 0 of what is not a number.
INLINE Mask floor_in(Lanes x, float limit) { return whole(between(x, spread(0.f), spread(limit))); }
INLINE Mask ceil_in(Lanes x, float limit) {
  const Lanes within = between(x, spread(0.f), spread(limit));
  const Mask down = whole(within);
  return down - (real(down) < within);
}

// Some Gaussians, and the tiles that their boxes reach; none where they are not seen.
struct Boxes {
  Lanes x, y;
  Mask left, top, right, bottom;

  // The Gaussians row_of(lane).
  template <class Row>
  inline __attribute__((always_inline)) Boxes(const Scene& s, const Row& row_of) {
    const auto number = [&](const auto* from, int k) {
      return each([&](int l) { return (float)from[2 * row_of(l) + k]; });
    };
    x = number(s.means, 0), y = number(s.means, 1);
    const Lanes size = spread((float)s.tile), rx = number(s.radii, 0), ry = number(s.radii, 1);
    const Mask seen = (rx > 0) & (ry > 0);
    const Lanes u = x / size, v = y / size, w = rx / size, h = ry / size;
    left = floor_in(u - w, (float)s.across) & seen, right = ceil_in(u + w, (float)s.across) & seen;
    top = floor_in(v - h, (float)s.down) & seen, bottom = ceil_in(v + h, (float)s.down) & seen;
  }
};

// Tiles that the boxes of Gaussians begin .. end - 1 reach.
static void count(const Scene& s, int64_t begin, int64_t end, int32_t* counts) {
  for (int64_t first = begin; first < end; first += L) {
    const int64_t n = std::min<int64_t>(L, end - first);
    const Boxes box(s, [&](int l) { return first + (l < n ? l : n - 1); });
    const Mask wide = box.right - box.left, tall = box.bottom - box.top;
    const Mask tiles = (wide & (wide > 0)) * (tall & (tall > 0));
    for (int l = 0; l < n; l++) counts[first + l] = tiles[l];
  }
}

static void spans_of_lanes(const Scene& s, const int64_t* rows, int64_t n, int at, Spans& out) {
  const auto row_of = [&](int l) { return rows[l < n ? l : n - 1]; };
  const Boxes box(s, row_of);
  const Lanes zero = spread(0.f);
  Lanes a = zero, b = zero, c = zero, level = zero;
  Mask reaches = box.left < box.right;
  if (s.conics) {
    const auto conic = [&](int k) { return each([&](int l) { return s.conics[3 * row_of(l) + k]; }); };
    a = conic(0), b = conic(1), c = conic(2);
    level = each([&](int l) { return 2 * logf(255 * s.opacities[row_of(l)]); }) + SLACK;
    reaches &= level > 0;  // others are fainter than 1/255 everywhere
  }
  const Lanes det = __builtin_convertvector(exact(a) * exact(c) - exact(b) * exact(b), Lanes);
  const Mask ellipse = (a > 0) & (c > 0) & (det > 0);  // none is known of the others
  const Lanes size = spread((float)s.tile), per_size = 1.f / size, per_a = 1.f / a, square = level * a;
  const Lanes highest = root(square / det), turn = b * root(level / (c * det));
  const Mask tall = (box.bottom - box.top) & (box.bottom > box.top) & reaches;
  int32_t most = 0;
  for (int l = 0; l < n; l++) {
    out.top[at + l] = box.top[l], out.tall[at + l] = tall[l];
    most = std::max(most, tall[l]);
  }
  for (int32_t i = 0; i < most; i++) {
    const Lanes above = real((box.top + i) * (int32_t)s.tile) + 0.5f - box.y, below = above + (size - 1.f);
    const Lanes low = larger(above, -highest), high = smaller(below, highest);
    const Lanes v = between(-turn, low, high), u = between(turn, low, high);
    const Lanes right = (root(larger(zero, square - det * v * v)) - b * v) * per_a;
    const Lanes left = (-root(larger(zero, square - det * u * u)) - b * u) * per_a;
    const Lanes end = (box.x + right - 0.5f) * per_size;
    const Mask first = ceil_in((box.x + left + 0.5f) * per_size, (float)s.across) - 1;
    const Mask last = (floor_in(end, (float)s.across) + 1) & (end >= 0) & (low <= high);
    const Mask from = (ellipse & (first > box.left)) ? first : box.left;
    const Mask to = (ellipse & (last < box.right)) ? last : box.right;
    memcpy(out.left(i) + at, &from, sizeof from);
    memcpy(out.right(i) + at, &to, sizeof to);
  }
}

// Writes the tiles in which a pixel of Gaussians rows[0 .. n - 1] reaches an alpha of 1/255, or, without
// conics, those of their boxes.
static void spans(const Scene& s, const int64_t* rows, int64_t n, Spans& out) {
  for (int64_t at = 0; at < n; at += L) spans_of_lanes(s, rows + at, std::min<int64_t>(L, n - at), at, out);
}
#undef INLINE
