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
  const int most_x = across - 1, most_y = static_cast<int>(view.height) - 1;
  const float* __restrict image = view.image;
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
    const int next = column < most_x ? 1 : 0, below = row < most_y ? across : 0;
    const int at = row * across + column;
    const float top = image[at] + fx * (image[at + next] - image[at]);
    const float bottom = image[at + below] + fx * (image[at + below + next] - image[at + below]);
    value[i] = top + fy * (bottom - top);
  }
}

// Sums over `rows` lines of v, v^2 and a v.
void sum_lines(const float* const* v, const float* const* a, int64_t rows, int64_t width,
               float* sums) {
  float *s = sums, *ss = sums + width, *sa = sums + 2 * width;
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

// 1 - the normalised correlation of windows, from their sums of v, v^2 and a v.
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
    out[x] = ok[x] > 0 ? 1.0f - like : 2.0f;
  }
}

// The mean of the `best` smallest of `count` lines of costs, 0..255.
void best_mean(float* costs, int64_t count, int64_t best, int64_t width, uint8_t* out) {
  for (int64_t i = 0; i < best; ++i)
    for (int64_t j = count - 1; j > i; --j) {
      float *low = costs + (j - 1) * width, *high = costs + j * width;
      for (int64_t x = 0; x < width; ++x) {
        float a = low[x], b = high[x];
        low[x] = a < b ? a : b;
        high[x] = a < b ? b : a;
      }
    }
  for (int64_t i = 1; i < best; ++i)
    for (int64_t x = 0; x < width; ++x) costs[x] += costs[i * width + x];
  const float scale = 127.5f / static_cast<float>(best);
  for (int64_t x = 0; x < width; ++x)
    out[x] = static_cast<uint8_t>(static_cast<int>(costs[x] * scale + 0.5f));
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
