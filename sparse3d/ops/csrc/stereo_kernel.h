// The vector loops of stereo.cpp, as plain loops: levels.h compiles them for each level.

// Where row y of the reference, at the inverse depth s, lies in the view: the pixel up and left of each
// place, and the place's distances from it. ok: 0 where the view shows none.
void aim(const View& view, float s, float y, int64_t width, int32_t* __restrict index,
         float* __restrict right_of, float* __restrict below, float* __restrict ok) {
  const float* r = view.rotation;
  const float u0 = r[1] * y + r[2] + view.shift[0] * s, v0 = r[4] * y + r[5] + view.shift[1] * s,
              w0 = r[7] * y + r[8] + view.shift[2] * s, ru = r[0], rv = r[3], rw = r[6];
  const float right = static_cast<float>(view.width) - 0.5f,
              low = static_cast<float>(view.height) - 0.5f;
  const float last_x = static_cast<float>(view.width - 1),
              last_y = static_cast<float>(view.height - 1);
  const int across = static_cast<int>(view.width);
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
    right_of[i] = a - static_cast<float>(column);
    below[i] = b - static_cast<float>(row);
    index[i] = row * across + column;
  }
}

// Values between the four pixels of each square.
void blend(const uint64_t* __restrict squares, const float* __restrict right_of,
           const float* __restrict below, int64_t width, float* __restrict value) {
  for (int64_t i = 0; i < width; ++i) {
    const uint64_t four = squares[i];
    const uint32_t upper = static_cast<uint32_t>(four), lower = static_cast<uint32_t>(four >> 32);
    const float v00 = static_cast<float>(static_cast<int>(upper & 0xffff)),
                v01 = static_cast<float>(static_cast<int>(upper >> 16)),
                v10 = static_cast<float>(static_cast<int>(lower & 0xffff)),
                v11 = static_cast<float>(static_cast<int>(lower >> 16));
    const float fx = right_of[i];
    const float top = v00 + fx * (v01 - v00), bottom = v10 + fx * (v11 - v10);
    value[i] = (top + below[i] * (bottom - top)) * (1.0f / kWhite);
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
  if (rows == 5) {  // the sums stay in registers
    const float *v0 = v[0], *v1 = v[1], *v2 = v[2], *v3 = v[3], *v4 = v[4];
    const float *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3], *a4 = a[4];
#pragma GCC ivdep
    for (int64_t x = 0; x < width; ++x) {
      s[x] = v0[x] + v1[x] + v2[x] + v3[x] + v4[x];
      ss[x] = v0[x] * v0[x] + v1[x] * v1[x] + v2[x] * v2[x] + v3[x] * v3[x] + v4[x] * v4[x];
      sa[x] = v0[x] * a0[x] + v1[x] * a1[x] + v2[x] * a2[x] + v3[x] * a3[x] + v4[x] * a4[x];
    }
    return;
  }
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
  for (int64_t x = 0; x < width; ++x) out[x] = line[x] + line[x + 1] + line[x + 2];
  for (int64_t t = 3; t < taps; t += 2)
    for (int64_t x = 0; x < width; ++x) out[x] += line[x + t] + line[x + t + 1];
}

// 1 - the normalised correlation of windows, from the sums over their lines of v, v^2 and a v, padded
// with zeros by the radius and `apart` from one to the next; kUnseen where the view shows nothing.
// sums: [3, width], to work in.
void unlikeness(const float* __restrict lines, int64_t apart, int64_t taps, int64_t width,
                const float* __restrict share, const float* __restrict mean,
                const float* __restrict deviation, const float* __restrict ok, float floor,
                float* __restrict sums, float* __restrict out) {
  auto cost = [=](int64_t x, float s, float ss, float sa) {
    const float own = s * share[x];
    float variance = ss * share[x] - own * own;
    variance = variance > 0 ? variance : 0;
    float like = (sa * share[x] - mean[x] * own) / (deviation[x] * sqrtf(variance) + floor);
    like = like > -1.0f ? like : -1.0f;
    like = like < 1.0f ? like : 1.0f;
    return ok[x] > 0 ? 1.0f - like : kUnseen;
  };
  if (taps == 5) {
    const float *s = lines, *ss = lines + apart, *sa = lines + 2 * apart;
    for (int64_t x = 0; x < width; ++x)
      out[x] = cost(x, s[x] + s[x + 1] + s[x + 2] + s[x + 3] + s[x + 4],
                    ss[x] + ss[x + 1] + ss[x + 2] + ss[x + 3] + ss[x + 4],
                    sa[x] + sa[x + 1] + sa[x + 2] + sa[x + 3] + sa[x + 4]);
    return;
  }
  for (int64_t i = 0; i < 3; ++i) sum_columns(lines + i * apart, taps, width, sums + i * width);
  const float *s = sums, *ss = sums + width, *sa = sums + 2 * width;
  for (int64_t x = 0; x < width; ++x) out[x] = cost(x, s[x], ss[x], sa[x]);
}

// best_mean of a number of lines that the compiler knows, which then sorts in registers.
template <int kCount, int kBest>
void best_mean_of(const float* costs, int64_t width, uint8_t* out) {
  for (int64_t x = 0; x < width; ++x) {
    float least[kCount];
#pragma GCC unroll 8
    for (int j = 0; j < kCount; ++j) least[j] = costs[j * width + x];
#pragma GCC unroll 8
    for (int i = 0; i < kBest; ++i)
#pragma GCC unroll 8
      for (int j = kCount - 1; j > i; --j) {
        const float a = least[j - 1], b = least[j];
        least[j - 1] = a < b ? a : b;
        least[j] = a < b ? b : a;
      }
    // The first is as it is: kUnseen becomes the greatest cost if none sees the place.
    float sum = least[0], seeing = 1.0f;
#pragma GCC unroll 8
    for (int i = 1; i < kBest; ++i) {
      sum += least[i] < kUnseen ? least[i] : 0.0f;
      seeing += least[i] < kUnseen ? 1.0f : 0.0f;
    }
    const float mean = 127.5f * sum / seeing + 0.5f;
    out[x] = static_cast<uint8_t>(static_cast<int>(mean < 255.0f ? mean : 255.0f));
  }
}

// The mean of the `best` smallest of `count` lines of costs, 0..255, of those that see the place.
// seeing: [width], to work in.
void best_mean(float* costs, int64_t count, int64_t best, int64_t width, float* __restrict seeing,
               uint8_t* out) {
  if (count == 6 && best == 3) return best_mean_of<6, 3>(costs, width, out);
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
