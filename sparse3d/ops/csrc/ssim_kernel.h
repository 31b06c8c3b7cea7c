// The vector loops of ssim.cpp, as plain loops: levels.h compiles them for each level.

// out[x] = sum over t of window[t] * padded[x + t * apart].
void blur_along(const float* __restrict padded, int64_t width, int64_t apart,
                const float* __restrict window, float* __restrict out) {
  for (int64_t x = 0; x < width; ++x) {
    float sum = 0;
    for (int t = 0; t < kTaps; ++t) sum += window[t] * padded[x + t * apart];
    out[x] = sum;
  }
}

// out[x] = sum over t of window[t] * rows[t][x].
void blur_across(const float* const* rows, int64_t width, const float* __restrict window,
                 float* __restrict out) {
  const float *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3], *r4 = rows[4],
              *r5 = rows[5], *r6 = rows[6], *r7 = rows[7], *r8 = rows[8], *r9 = rows[9],
              *r10 = rows[10];
  for (int64_t x = 0; x < width; ++x)
    out[x] = window[0] * (r0[x] + r10[x]) + window[1] * (r1[x] + r9[x]) +
             window[2] * (r2[x] + r8[x]) + window[3] * (r3[x] + r7[x]) +
             window[4] * (r4[x] + r6[x]) + window[5] * r5[x];
}

// a, b, a^2 + b^2 and ab, `apart` from one to the next.
void products(const float* __restrict a, const float* __restrict b, int64_t width, int64_t apart,
              float* __restrict out) {
  for (int64_t x = 0; x < width; ++x) {
    out[x] = a[x];
    out[apart + x] = b[x];
    out[2 * apart + x] = a[x] * a[x] + b[x] * b[x];
    out[3 * apart + x] = a[x] * b[x];
  }
}

// The sum of a row of the map; its derivatives by the blurred a, a^2 and ab, `apart` from one to the
// next.
double similarity(const float* __restrict blurred, int64_t width, float c1, float c2, int64_t apart,
                  float* __restrict value, float* __restrict slopes) {
  const float *ma = blurred, *mb = blurred + width, *squares = blurred + 2 * width,
              *ab = blurred + 3 * width;
  for (int64_t x = 0; x < width; ++x) {
    const float m1 = ma[x], m2 = mb[x];
    const float both = m1 * m2, apiece = m1 * m1 + m2 * m2;
    const float top1 = 2 * both + c1, top2 = 2 * (ab[x] - both) + c2;
    const float low1 = apiece + c1, low2 = squares[x] - apiece + c2;
    const float inverse = 1 / (low1 * low2);
    const float s = top1 * top2 * inverse;
    value[x] = s;
    // 1 / low2 - 1 / low1 is (low1 - low2) / (low1 low2)
    slopes[x] = 2 * inverse * (m2 * (top2 - top1) + m1 * s * (low1 - low2));
    slopes[apart + x] = -s * low1 * inverse;
    slopes[2 * apart + x] = 2 * top1 * inverse;
  }
  double lanes[8] = {};
  int64_t x = 0;
  for (; x + 8 <= width; x += 8)
    for (int k = 0; k < 8; ++k) lanes[k] += value[x + k];
  double sum = 0;
  for (; x < width; ++x) sum += value[x];
  for (int k = 0; k < 8; ++k) sum += lanes[k];
  return sum;
}

void combine(const float* __restrict a, const float* __restrict b, const float* __restrict blurred,
             int64_t width, float scale, float* __restrict out) {
  for (int64_t x = 0; x < width; ++x)
    out[x] = scale * (blurred[x] + 2 * a[x] * blurred[width + x] + b[x] * blurred[2 * width + x]);
}
