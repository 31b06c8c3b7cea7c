// Attention inside sets, for one instruction set: included by set_attention.cpp once per level, inside
// a namespace of its own, with S3D_LANES floats per vector. One query per lane.

constexpr int kLanes = S3D_LANES;
typedef float Lanes __attribute__((vector_size(4 * S3D_LANES), aligned(4 * S3D_LANES)));
typedef int32_t IntLanes __attribute__((vector_size(4 * S3D_LANES), aligned(4 * S3D_LANES)));

static inline __attribute__((always_inline)) Lanes spread(float x) {
  return x - (Lanes){};  // broadcast
}

// exp of x <= 0, relative error below 2e-7; below exp(-87) it stays there.
static inline __attribute__((always_inline)) Lanes exponential(const Lanes& at) {
  const Lanes x = at < -87.0f ? spread(-87.0f) : at;
  const Lanes shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to whole numbers
  const Lanes whole = shifted - 12582912.0f;
  const Lanes r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntLanes bits = (__builtin_convertvector(whole, IntLanes) + 127) << 23;
  return p * (Lanes)bits;
}

// What one thread keeps for the set it works on: rows as in memory [n, C], and lanes of queries
// [C][blocks]. Padding lanes hold zero queries and cotangents, so they add nothing anywhere.
struct Scratch {
  std::vector<float> memory;
  float *q, *k, *v, *grad, *grad_k, *grad_v;
  Lanes *query, *cotangent, *result, *weights, *slopes, *most, *total;

  void make_room(int64_t rows, int64_t channels, int64_t heads) {
    const int64_t padded = (rows + kLanes - 1) / kLanes * kLanes, flat = padded * channels;
    memory.resize(9 * flat + 2 * rows * kLanes + 2 * heads * padded + 16 * 16);
    float* next = memory.data();
    next += (64 - (uintptr_t)next % 64) % 64 / sizeof(float);
    auto take = [&](int64_t count) {
      float* here = next;
      next += (count + 15) / 16 * 16;
      return here;
    };
    q = take(flat), k = take(flat), v = take(flat), grad = take(flat);
    grad_k = take(flat), grad_v = take(flat);
    query = (Lanes*)take(flat), cotangent = (Lanes*)take(flat), result = (Lanes*)take(flat);
    weights = (Lanes*)take(rows * kLanes), slopes = (Lanes*)take(rows * kLanes);
    most = (Lanes*)take(heads * padded), total = (Lanes*)take(heads * padded);
  }
};

// lanes[c][block] lane i = rows[block * kLanes + i][c], zero beyond the n rows.
static void to_lanes(const float* __restrict rows, int64_t n, int64_t channels,
                     Lanes* __restrict lanes) {
  const int64_t blocks = (n + kLanes - 1) / kLanes;
  for (int64_t block = 0; block < blocks; ++block) {
    const float* from = rows + block * kLanes * channels;
    const int64_t here = std::min<int64_t>(n - block * kLanes, kLanes);
    for (int64_t c = 0; c < channels; ++c) {
      Lanes lane = {};
      if (here == kLanes)
        for (int i = 0; i < kLanes; ++i) lane[i] = from[i * channels + c];
      else
        for (int i = 0; i < here; ++i) lane[i] = from[i * channels + c];
      lanes[c * blocks + block] = lane;
    }
  }
}

// row[c] = lane i of lanes[c], times `factor`.
static inline void from_lanes(const Lanes* lanes, int64_t blocks, int64_t i, int64_t channels,
                              float factor, float* __restrict row) {
  const float* from = (const float*)lanes + i;
  for (int64_t c = 0; c < channels; ++c) row[c] = from[c * blocks * kLanes] * factor;
}

static void load_set(const Problem& p, int64_t begin, int64_t end, Scratch& s) {
  const int64_t C = p.channels;
  const float scale = p.scale;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = p.order[i];
    const float* __restrict from = p.qkv + row * 3 * C;
    const float* __restrict place = p.position + p.position_index[row] * 2 * C;
    float *__restrict q = s.q + (i - begin) * C, *__restrict k = s.k + (i - begin) * C;
    float* __restrict v = s.v + (i - begin) * C;
    for (int64_t c = 0; c < C; ++c) q[c] = (from[c] + place[c]) * scale;
    for (int64_t c = 0; c < C; ++c) k[c] = from[C + c] + place[C + c];
    memcpy(v, from + 2 * C, sizeof(float) * C);
  }
  to_lanes(s.q, end - begin, C, s.query);
}

// One head, whose channels begin at c0, and one block of queries.
struct Part {
  int64_t n, C, c0, d, block, blocks;
};

// softmax(q k) v; leaves the largest score and the softmax's divisor.
template <int D>
static void attend(const Scratch& s, const Part& part, Lanes* most_out, Lanes* total_out) {
  const int64_t n = part.n, C = part.C, d = D ? D : part.d;
  constexpr int kMost = D ? D : kMostPerHead;
  const Lanes* query = s.query + part.c0 * part.blocks + part.block;
  Lanes q[kMost], sum[kMost];
  for (int64_t e = 0; e < d; ++e) q[e] = query[e * part.blocks], sum[e] = (Lanes){};
  Lanes most = spread(-INFINITY);
  for (int64_t j = 0; j < n; ++j) {
    const float* k = s.k + j * C + part.c0;
    Lanes score = q[0] * k[0];
    for (int64_t e = 1; e < d; ++e) score += q[e] * k[e];
    s.weights[j] = score;
    most = score > most ? score : most;
  }
  Lanes total = (Lanes){};
  for (int64_t j = 0; j < n; ++j) {
    const float* v = s.v + j * C + part.c0;
    const Lanes w = exponential(s.weights[j] - most);
    total += w;
    for (int64_t e = 0; e < d; ++e) sum[e] += w * v[e];
  }
  const Lanes share = 1.0f / total;
  Lanes* result = s.result + part.c0 * part.blocks + part.block;
  for (int64_t e = 0; e < d; ++e) result[e * part.blocks] = sum[e] * share;
  *most_out = most;
  *total_out = total;
}

template <int W>
struct Chunk {
  typedef float Unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
  typedef float Value __attribute__((vector_size(4 * W)));
};

// grad[r] += sum over lanes i of lanes[r][i] * rows[i], for kRows rows and W channels.
template <int W, int kRows>
static inline __attribute__((always_inline)) void collect_chunk(const float* lanes,
                                                                const float* rows, int64_t here,
                                                                int64_t C, float* grad) {
  using Unaligned = typename Chunk<W>::Unaligned;
  typename Chunk<W>::Value sum[kRows];
  for (int r = 0; r < kRows; ++r) sum[r] = *(const Unaligned*)(grad + r * C);
  for (int64_t i = 0; i < here; ++i) {
    const typename Chunk<W>::Value row = *(const Unaligned*)(rows + i * C);
    for (int r = 0; r < kRows; ++r) sum[r] += lanes[r * kLanes + i] * row;
  }
  for (int r = 0; r < kRows; ++r) *(Unaligned*)(grad + r * C) = sum[r];
}

// The same for d channels.
template <int kRows>
static inline void collect_rows(const float* lanes, const float* rows, int64_t here, int64_t C,
                                int d, float* grad) {
  int e = 0;
  if constexpr (kLanes >= 16)
    for (; e + 16 <= d; e += 16) collect_chunk<16, kRows>(lanes, rows + e, here, C, grad + e);
  if constexpr (kLanes >= 8)
    for (; e + 8 <= d; e += 8) collect_chunk<8, kRows>(lanes, rows + e, here, C, grad + e);
  for (; e + 4 <= d; e += 4) collect_chunk<4, kRows>(lanes, rows + e, here, C, grad + e);
  for (; e < d; ++e) collect_chunk<1, kRows>(lanes, rows + e, here, C, grad + e);
}

// The same for all n rows of `grad`.
static void collect(const Lanes* lanes, const float* rows, int64_t here, int64_t n, int64_t C,
                    int d, float* grad) {
  constexpr int kRows = 8;
  const float* factor = (const float*)lanes;
  int64_t j = 0;
  for (; j + kRows <= n; j += kRows)
    collect_rows<kRows>(factor + j * kLanes, rows, here, C, d, grad + j * C);
  for (; j < n; ++j) collect_rows<1>(factor + j * kLanes, rows, here, C, d, grad + j * C);
}

// The same part backwards: adds to grad_k and grad_v, writes the gradient of the scaled queries.
template <int D>
static void attend_backward(const Scratch& s, const Part& part, const Lanes& most,
                            const Lanes& total) {
  const int64_t n = part.n, C = part.C, d = D ? D : part.d;
  constexpr int kMost = D ? D : kMostPerHead;
  const int64_t at = part.c0 * part.blocks + part.block;
  Lanes q[kMost], g[kMost], sum[kMost];
  for (int64_t e = 0; e < d; ++e) {
    q[e] = s.query[at + e * part.blocks];
    g[e] = s.cotangent[at + e * part.blocks];
    sum[e] = (Lanes){};
  }
  const Lanes share = 1.0f / total;
  Lanes mean = (Lanes){};
  for (int64_t j = 0; j < n; ++j) {
    const float *k = s.k + j * C + part.c0, *v = s.v + j * C + part.c0;
    Lanes score = q[0] * k[0], slope = g[0] * v[0];
    for (int64_t e = 1; e < d; ++e) score += q[e] * k[e], slope += g[e] * v[e];
    const Lanes w = exponential(score - most) * share;
    s.weights[j] = w;
    s.slopes[j] = slope;
    mean += w * slope;
  }
  for (int64_t j = 0; j < n; ++j) {
    const float* k = s.k + j * C + part.c0;
    const Lanes slope = s.weights[j] * (s.slopes[j] - mean);
    s.slopes[j] = slope;
    for (int64_t e = 0; e < d; ++e) sum[e] += slope * k[e];
  }
  for (int64_t e = 0; e < d; ++e) s.result[at + e * part.blocks] = sum[e];

  const int64_t first = part.block * kLanes, here = std::min<int64_t>(n - first, kLanes);
  const int64_t row = first * C + part.c0;
  collect(s.slopes, s.q + row, here, n, C, (int)d, s.grad_k + part.c0);
  collect(s.weights, s.grad + row, here, n, C, (int)d, s.grad_v + part.c0);
}

template <int D>
static void forward_sets(const Problem& p, float* out, float* norms) {
  const int64_t C = p.channels, d = C / p.heads;
  Shortage shortage;
#pragma omp parallel num_threads(p.team)
  {
    Scratch s;
    shortage.within([&] { s.make_room(p.largest, C, p.heads); });
#pragma omp for schedule(dynamic, 4)
    for (int64_t set = 0; set < p.sets; ++set) {
      if (!shortage.none()) continue;
      const int64_t begin = p.offsets[set], n = p.offsets[set + 1] - begin;
      const int64_t blocks = (n + kLanes - 1) / kLanes;
      load_set(p, begin, begin + n, s);
      for (int64_t h = 0; h < p.heads; ++h)
        for (int64_t block = 0; block < blocks; ++block)
          attend<D>(s, {n, C, h * d, d, block, blocks}, &s.most[h * blocks + block],
                    &s.total[h * blocks + block]);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t row = p.order[begin + i];
        from_lanes(s.result, blocks, i, C, 1.0f, out + row * C);
        from_lanes(s.most, blocks, i, p.heads, 1.0f, norms + row * 2 * p.heads);
        from_lanes(s.total, blocks, i, p.heads, 1.0f, norms + (row * 2 + 1) * p.heads);
      }
    }
  }
  shortage.raise();
}

template <int D>
static void backward_sets(const Problem& p, const float* grad_out, const float* norms,
                          float* grad_qkv) {
  const int64_t C = p.channels, d = C / p.heads;
  Shortage shortage;
#pragma omp parallel num_threads(p.team)
  {
    Scratch s;
    shortage.within([&] { s.make_room(p.largest, C, p.heads); });
#pragma omp for schedule(dynamic, 4)
    for (int64_t set = 0; set < p.sets; ++set) {
      if (!shortage.none()) continue;
      const int64_t begin = p.offsets[set], n = p.offsets[set + 1] - begin;
      const int64_t blocks = (n + kLanes - 1) / kLanes;
      load_set(p, begin, begin + n, s);
      float *most = (float*)s.most, *total = (float*)s.total;
      for (int64_t i = 0; i < blocks * kLanes; ++i) {
        const int64_t row = i < n ? p.order[begin + i] : 0;
        if (i < n) memcpy(s.grad + i * C, grad_out + row * C, sizeof(float) * C);
        for (int64_t h = 0; h < p.heads; ++h) {
          most[h * blocks * kLanes + i] = i < n ? norms[row * 2 * p.heads + h] : 0.0f;
          total[h * blocks * kLanes + i] = i < n ? norms[(row * 2 + 1) * p.heads + h] : 1.0f;
        }
      }
      to_lanes(s.grad, n, C, s.cotangent);
      memset(s.grad_k, 0, sizeof(float) * n * C);
      memset(s.grad_v, 0, sizeof(float) * n * C);
      for (int64_t h = 0; h < p.heads; ++h)
        for (int64_t block = 0; block < blocks; ++block)
          attend_backward<D>(s, {n, C, h * d, d, block, blocks}, s.most[h * blocks + block],
                             s.total[h * blocks + block]);
      for (int64_t i = 0; i < n; ++i) {
        float* to = grad_qkv + p.order[begin + i] * 3 * C;
        from_lanes(s.result, blocks, i, C, p.scale, to);
        memcpy(to + C, s.grad_k + i * C, sizeof(float) * C);
        memcpy(to + 2 * C, s.grad_v + i * C, sizeof(float) * C);
      }
    }
  }
  shortage.raise();
}

static void forward(const Problem& p, float* out, float* norms) {
  switch (p.channels / p.heads) {
    case 4: return forward_sets<4>(p, out, norms);
    case 8: return forward_sets<8>(p, out, norms);
    case 16: return forward_sets<16>(p, out, norms);
    case 24: return forward_sets<24>(p, out, norms);
    default: return forward_sets<0>(p, out, norms);
  }
}

static void backward(const Problem& p, const float* grad_out, const float* norms, float* grad_qkv) {
  switch (p.channels / p.heads) {
    case 4: return backward_sets<4>(p, grad_out, norms, grad_qkv);
    case 8: return backward_sets<8>(p, grad_out, norms, grad_qkv);
    case 16: return backward_sets<16>(p, grad_out, norms, grad_qkv);
    case 24: return backward_sets<24>(p, grad_out, norms, grad_qkv);
    default: return backward_sets<0>(p, grad_out, norms, grad_qkv);
  }
}
