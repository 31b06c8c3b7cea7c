// Oriented boxes seen from above: common area, NMS, points inside. ops/reference/rotated.py defines them
// and explains the line integral; the arithmetic here follows it operation by operation.
#include <math.h>

#include "common.h"

namespace {

// One row of reference.prepare: centre, half sizes, heading.
struct Rect {
  double x, y, hx, hy, cos, sin;
};

inline double clamp(double value, double low, double high) {
  return value < low ? low : value > high ? high : value;
}

double clamped_integral(double x0, double y0, double x1, double y1, double hx, double hy) {
  const double left = clamp(x0, -hx, hx), right = clamp(x1, -hx, hx);
  if (left == right) return 0;
  const double run = x1 - x0, climb = y1 - y0;
  const double ya = y0 + (left - x0) / run * climb, yb = y0 + (right - x0) / run * climb;
  const double rise = yb == ya ? 1.0 : yb - ya;
  double s = clamp((-hy - ya) / rise, 0, 1), t = clamp((hy - ya) / rise, 0, 1);
  if (s > t) {
    const double swap = s;
    s = t;
    t = swap;
  }
  const double start = clamp(ya, -hy, hy), end = clamp(yb, -hy, hy);
  const double low = clamp(ya + s * (yb - ya), -hy, hy), high = clamp(ya + t * (yb - ya), -hy, hy);
  const double mean = s * (start + low) + (t - s) * (low + high) + (1 - t) * (high + end);
  return mean * (right - left) / 2;
}

double overlap(const Rect& a, const Rect& b) {
  const double dx = b.x - a.x, dy = b.y - a.y;
  const double reach = sqrt(a.hx * a.hx + a.hy * a.hy) + sqrt(b.hx * b.hx + b.hy * b.hy);
  if (dx * dx + dy * dy > reach * reach * (1 + 1e-9)) return 0;
  const double c = a.cos * b.cos + a.sin * b.sin, s = a.cos * b.sin - a.sin * b.cos;
  const double x = dx * a.cos + dy * a.sin, y = dy * a.cos - dx * a.sin;
  const double ux = b.hx * c, uy = b.hx * s, vx = -b.hy * s, vy = b.hy * c;
  if (fabs(x) >= a.hx + fabs(ux) + fabs(vx) || fabs(y) >= a.hy + fabs(uy) + fabs(vy)) return 0;
  const double along = dx * b.cos + dy * b.sin, across = dy * b.cos - dx * b.sin;
  if (fabs(along) >= b.hx + fabs(a.hx * c) + fabs(a.hy * s)) return 0;
  if (fabs(across) >= b.hy + fabs(a.hx * s) + fabs(a.hy * c)) return 0;

  const double px[4] = {x + ux + vx, x - ux + vx, x - ux - vx, x + ux - vx};
  const double py[4] = {y + uy + vy, y - uy + vy, y - uy - vy, y + uy - vy};
  double area = 0;
  for (int i = 0; i < 4; ++i) {
    const int j = (i + 1) % 4;
    area -= clamped_integral(px[i], py[i], px[j], py[j], a.hx, a.hy);
  }
  return area > 0 ? area : 0;
}

}  // namespace

EXPORT int64_t s3d_bev_overlap(const Rect* a, int64_t rows, const Rect* b, int64_t columns, double* out,
                               int64_t threads) try {
  const int team = useful_threads(threads, rows * columns, 4096);
#pragma omp parallel for schedule(dynamic, 8) num_threads(team)
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[i * columns + j] = overlap(a[i], b[j]);
  return 0;
} OR_SHORTAGE

EXPORT int64_t s3d_paired_bev_overlap(const Rect* a, const Rect* b, int64_t rows, double* out) try {
  for (int64_t i = 0; i < rows; ++i) out[i] = overlap(a[i], b[i]);
  return 0;
} OR_SHORTAGE

// `boxes` come by falling score; keep[i] says whether box i stays.
EXPORT int64_t s3d_rotated_nms(const Rect* boxes, int64_t count, double threshold, uint8_t* keep) try {
  for (int64_t i = 0; i < count; ++i) keep[i] = 1;
  for (int64_t i = 0; i < count; ++i) {
    if (!keep[i]) continue;
    const Rect& best = boxes[i];
    const double best_area = 4 * best.hx * best.hy;
    for (int64_t j = i + 1; j < count; ++j) {
      if (!keep[j]) continue;
      const double area = 4 * boxes[j].hx * boxes[j].hy;
      const double common = overlap(best, boxes[j]);
      const double total = best_area + area - common;
      keep[j] = common / (total > 1e-300 ? total : 1e-300) <= threshold;
    }
  }
  return 0;
} OR_SHORTAGE

// points [3, P]; boxes [B, 7]; turn [B, 2] cos and sin of yaw; mask [B, P].
EXPORT int64_t s3d_points_in_boxes(const double* points, int64_t count, const double* boxes,
                                   const double* turn, int64_t number, uint8_t* mask, int64_t threads) try {
  const double *px = points, *py = points + count, *pz = points + 2 * count;
  const int team = useful_threads(threads, number * count, 1 << 16);
#pragma omp parallel for schedule(static) num_threads(team)
  for (int64_t b = 0; b < number; ++b) {
    const double* box = boxes + 7 * b;
    const double c = turn[2 * b], s = turn[2 * b + 1];
    const double hx = box[3] / 2, hy = box[4] / 2, hz = box[5] / 2;
    uint8_t* row = mask + b * count;
    for (int64_t p = 0; p < count; ++p) {
      const double dx = px[p] - box[0], dy = py[p] - box[1], dz = pz[p] - box[2];
      row[p] = (fabs(dx * c + dy * s) < hx) & (fabs(dy * c - dx * s) < hy) & (fabs(dz) < hz);
    }
  }
  return 0;
} OR_SHORTAGE
