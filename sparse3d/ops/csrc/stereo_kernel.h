// The vector loops of stereo.cpp, as plain loops: levels.h compiles them for each level.

// What the view shows of row y of the reference at the inverse depth s; ok: 0 where it shows none.
S3D_GATHERS void warp(const View& view, float s, float y, int64_t width, float* __restrict value,
                      float* __restrict ok) {
  const float* r = view.rotation;
  const float u0 = r[1] * y + r[2] + view.shift[0] * s, v0 = r[4] * y + r[5] + view.shift[1] * s,
              w0 = r[7] * y + r[8] + view.shift[2] * s, ru = r[0], rv = r[3], rw = r[6];
  const float right = static_cast<float>(view.width) - 0.5f,
              low = static_cast<float>(view.height) - 0.5f;
  const float last_x = static_cast<float>(view.width - 1),
              last_y = static_cast<float>(view.height - 1);
  const int across = static_cast<int>(view.width);
  const uint64_t* __restrict squares = view.squares;
  for (int64_t i = 0; i < width; ++i) {
    const float x = static_cast<float>(static_cast<int>(i));
    const float w = rw * x + w0;
    const float scale = 1.0f / (w > 1e-6f ? w : 1e-6f);
    float a = (ru * x + u0) * scale, b = (rv * x + v0) * scale;
    const bool in = (w > 1e-6f) & (a >= -0.5f) & (a <= right) & (b >= -0.5f) & (b <= low);
    ok[i] = in ? 1.0f : 0.0f;
    a = a > 0.0f ? a : 0.0f;
    a = a < last_x ? a : last_x;
    b = b > 0.0f ? b : 0.0f;
    b = b < last_y ? b : last_y;
    const int column = static_cast<int>(a), row = static_cast<int>(b);
    const float fx = a - static_cast<float>(column), fy = b - static_cast<float>(row);
    const uint64_t four = squares[row * across + column];
    const uint32_t upper = static_cast<uint32_t>(four), lower = static_cast<uint32_t>(four >> 32);
    const float v00 = static_cast<float>(static_cast<int>(upper & 0xffff)),
                v01 = static_cast<float>(static_cast<int>(upper >> 16)),
                v10 = static_cast<float>(static_cast<int>(lower & 0xffff)),
                v11 = static_cast<float>(static_cast<int>(lower >> 16));
    const float top = v00 + fx * (v01 - v00), bottom = v10 + fx * (v11 - v10);
    value[i] = (top + fy * (bottom - top)) * (1.0f / kWhite);
  }
}

// Counts the other surface for each pixel of row y that it confirms: from where the pixel's point lies
// in it, its own depth leads back to the pixel. It is asked if nothing stands before the point there.
// voices, asked, doubt: of the row so far.
S3D_GATHERS void confirm(const Surface& other, const float* __restrict rays, float y, int64_t width,
                         float most_miss, float most_apart, float least_sine,
                         const float* __restrict depth, int32_t* __restrict voices,
                         int32_t* __restrict asked, float* __restrict doubt) {
  const float *r = other.rotation, *t = other.shift, *q = other.back, *p = other.back_shift;
  const float *c = other.center, *__restrict surface = other.depth;
  const int across = static_cast<int>(other.width), down = static_cast<int>(other.height);
  const float right = static_cast<float>(across), low = static_cast<float>(down);
  for (int64_t i = 0; i < width; ++i) {
    const float x = static_cast<float>(static_cast<int>(i)), z = depth[i];
    const float s = 1.0f / (z > 0.0f ? z : 1.0f);
    const float w = r[6] * x + r[7] * y + r[8] + t[2] * s;
    const float scale = 1.0f / (w > 1e-6f ? w : 1e-6f);
    const float a = (r[0] * x + r[1] * y + r[2] + t[0] * s) * scale,
                b = (r[3] * x + r[4] * y + r[5] + t[1] * s) * scale;
    bool good = (z > 0.0f) & (w > 1e-6f) & (a >= 0.0f) & (a < right) & (b >= 0.0f) & (b < low);
    int column = static_cast<int>((good ? a : 0.0f) + 0.5f),
        row = static_cast<int>((good ? b : 0.0f) + 0.5f);
    column = column < across ? column : across - 1;
    row = row < down ? row : down - 1;
    const float there = surface[row * across + column];
    const float far = 1.0f / (there > 0.0f ? there : 1.0f);
    const float back = q[6] * a + q[7] * b + q[8] + p[2] * far;
    const float shrink = 1.0f / (back > 1e-6f ? back : 1e-6f);
    const float x2 = (q[0] * a + q[1] * b + q[2] + p[0] * far) * shrink,
                y2 = (q[3] * a + q[4] * b + q[5] + p[1] * far) * shrink;
    // std::sqrt would stay a call: it is not tuned as this is.
    const float miss = sqrtf((x2 - x) * (x2 - x) + (y2 - y) * (y2 - y));
    const float again = back * there, apart = again * s - 1.0f;
    const float hx = (rays[0] * x2 + rays[1] * y2 + rays[2]) * again,
                hy = (rays[3] * x2 + rays[4] * y2 + rays[5]) * again, hz = again;
    const float gx = hx - c[0], gy = hy - c[1], gz = hz - c[2];
    const float cx = hy * gz - hz * gy, cy = hz * gx - hx * gz, cz = hx * gy - hy * gx;
    const float lengths = (hx * hx + hy * hy + hz * hz) * (gx * gx + gy * gy + gz * gz);
    const float sine = sqrtf((cx * cx + cy * cy + cz * cz) / (lengths > 0.0f ? lengths : 1.0f));
    good &= there > 0.0f;
    asked[i] += good & (there > (1.0f - most_apart) * w * z) ? 1 : 0;
    good &= (back > 1e-6f) & (miss < most_miss) & (apart < most_apart) &
            (apart > -most_apart) & (sine > least_sine);
    const float unsure = (miss + 0.25f) / (sine > 1e-6f ? sine : 1e-6f);
    voices[i] += good ? 1 : 0;
    doubt[i] = good & (unsure < doubt[i]) ? unsure : doubt[i];
  }
}

// Sums over `rows` lines of v, v^2 and a v, `apart` from one to the next.
void sum_lines(const float* const* v, const float* const* a, int64_t rows, int64_t width,
               int64_t apart, float* __restrict sums) {
  float *s = sums, *ss = sums + apart, *sa = sums + 2 * apart;
  for (int64_t x = 0; x < width; ++x) {
    float value = v[0][x];
    s[x] = value;
    ss[x] = value * value;
    sa[x] = value * a[0][x];
  }
  for (int64_t k = 1; k < rows; ++k) {
    const float *line = v[k], *other = a[k];
    for (int64_t x = 0; x < width; ++x) {
      float value = line[x];
      s[x] += value;
      ss[x] += value * value;
      sa[x] += value * other[x];
    }
  }
}

// Sums over the columns of a window, of a line padded with zeros by the radius.
void sum_columns(const float* __restrict line, int64_t taps, int64_t width,
                 float* __restrict out) {
  if (taps == 5) {
    for (int64_t x = 0; x < width; ++x)
      out[x] = line[x] + line[x + 1] + line[x + 2] + line[x + 3] + line[x + 4];
    return;
  }
  for (int64_t x = 0; x < width; ++x) out[x] = line[x] + line[x + 1] + line[x + 2];
  for (int64_t t = 3; t < taps; t += 2)
    for (int64_t x = 0; x < width; ++x) out[x] += line[x + t] + line[x + t + 1];
}

// 1 - the normalised correlation of windows, from their sums of v, v^2 and a v; kUnseen where the view
// shows nothing.
void unlikeness(const float* __restrict sums, int64_t width,
                const float* __restrict share, const float* __restrict mean,
                const float* __restrict deviation, const float* __restrict ok,
                float floor, float* __restrict out) {
  const float *s = sums, *ss = sums + width, *sa = sums + 2 * width;
  for (int64_t x = 0; x < width; ++x) {
    const float own = s[x] * share[x];
    float variance = ss[x] * share[x] - own * own;
    variance = variance > 0 ? variance : 0;
    float like =
        (sa[x] * share[x] - mean[x] * own) / (deviation[x] * std::sqrt(variance) + floor);
    like = like > -1.0f ? like : -1.0f;
    like = like < 1.0f ? like : 1.0f;
    out[x] = ok[x] > 0 ? 1.0f - like : kUnseen;
  }
}

// The mean of the `best` smallest of `count` lines of costs, 0..255, of those that see the place.
// seeing: [width], to work in.
void best_mean(float* costs, int64_t count, int64_t best, int64_t width, float* __restrict seeing,
               uint8_t* out) {
  for (int64_t i = 0; i < best; ++i)
    for (int64_t j = count - 1; j > i; --j) {
      float *low = costs + (j - 1) * width, *high = costs + j * width;
      for (int64_t x = 0; x < width; ++x) {
        float a = low[x], b = high[x];
        low[x] = a < b ? a : b;
        high[x] = a < b ? b : a;
      }
    }
  // The first is as it is: kUnseen becomes the greatest cost if none sees the place.
  for (int64_t x = 0; x < width; ++x) seeing[x] = 1.0f;
  for (int64_t i = 1; i < best; ++i)
    for (int64_t x = 0; x < width; ++x) {
      const float one = costs[i * width + x];
      const bool seen = one < kUnseen;
      costs[x] += seen ? one : 0.0f;
      seeing[x] += seen ? 1.0f : 0.0f;
    }
  for (int64_t x = 0; x < width; ++x) {
    const float mean = 127.5f * costs[x] / seeing[x] + 0.5f;
    out[x] = static_cast<uint8_t>(static_cast<int>(mean < 255.0f ? mean : 255.0f));
  }
}

// One step of a path: a pixel's costs and those of the one before (padded by one on each side).
// Returns the least of the new ones.
int64_t step(const uint8_t* cost, const uint16_t* before, int64_t planes,
             uint16_t least, uint16_t small, uint16_t large, uint16_t* now) {
  const uint16_t jump = static_cast<uint16_t>(least + large);
  uint16_t found = 0xffff;
  for (int64_t p = 0; p < planes; ++p) {
    uint16_t side = before[p] < before[p + 2] ? before[p] : before[p + 2];
    side = static_cast<uint16_t>(side + small);
    uint16_t way = before[p + 1] < side ? before[p + 1] : side;
    way = way < jump ? way : jump;
    way = static_cast<uint16_t>(way + cost[p] - least);
    now[p + 1] = way;
    found = found < way ? found : way;
  }
  return found;
}

void add(const uint16_t* path, int64_t planes, uint16_t* sum) {
  for (int64_t p = 0; p < planes; ++p) sum[p] = static_cast<uint16_t>(sum[p] + path[p + 1]);
}

// The first plane with the least sum, moved to the foot of the parabola through its neighbours.
float winner(const uint16_t* sum, int64_t planes) {
  uint16_t least = 0xffff;
  for (int64_t p = 0; p < planes; ++p) least = least < sum[p] ? least : sum[p];
  int64_t best = 0;
  while (sum[best] != least) ++best;
  float plane = static_cast<float>(best);
  if (best > 0 && best + 1 < planes) {
    const int low = sum[best - 1], high = sum[best + 1], bend = low + high - 2 * least;
    if (bend > 0) plane += 0.5f * static_cast<float>(low - high) / static_cast<float>(bend);
  }
  return plane;
}
