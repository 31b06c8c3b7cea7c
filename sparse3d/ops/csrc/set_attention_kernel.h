// Attention inside sets, for one instruction set: included by set_attention.cpp once per level, inside
// a namespace of its own. Sixteen queries are worked on at once, one per vector lane.

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(64), aligned(64)));
typedef int32_t IntLanes __attribute__((vector_size(64), aligned(64)));

static inline __attribute__((always_inline)) Lanes spread(float x) {
  return x - (Lanes){};  // broadcast
}

// exp of x <= 88, relative error below 2e-7; smaller than exp(-87) is rounded up to that.
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

// What one thread keeps for the set it works on. Rows of a set lie as in memory [n, C]; the lanes of
// queries lie transposed: [C][blocks * kLanes].
struct Scratch {
  std::vector<float> memory;
  float *q, *k, *v, *grad, *grad_k, *grad_v;
  Lanes *query, *cotangent, *result, *weights, *slopes, *norm;

  Scratch(int64_t rows, int64_t channels, int64_t heads) {
    const int64_t padded = (rows + kLanes - 1) / kLanes * kLanes, flat = padded * channels;
    memory.resize(9 * flat + (2 * rows + heads * padded / kLanes) * kLanes + 8 * kLanes);
    float* next = memory.data();
    next += (64 - (uintptr_t)next % 64) % 64 / sizeof(float);
    auto take = [&](int64_t count) {
      float* here = next;
      next += (count + kLanes - 1) / kLanes * kLanes;
      return here;
    };
    q = take(flat), k = take(flat), v = take(flat), grad = take(flat);
    grad_k = take(flat), grad_v = take(flat);
    query = (Lanes*)take(flat), cotangent = (Lanes*)take(flat), result = (Lanes*)take(flat);
    weights = (Lanes*)take(rows * kLanes), slopes = (Lanes*)take(rows * kLanes);
    norm = (Lanes*)take(heads * padded);
  }
};

// rows[i][c] <-> lanes[c][i / 16][i % 16]; lanes beyond the rows are zero.
static void to_lanes(const float* rows, int64_t n, int64_t channels, Lanes* lanes) {
  const int64_t blocks = (n + kLanes - 1) / kLanes;
  float* out = (float*)lanes;
  for (int64_t i = 0; i < blocks * kLanes; ++i)
    for (int64_t c = 0; c < channels; ++c)
      out[c * blocks * kLanes + i] = i < n ? rows[i * channels + c] : 0.0f;
}

static void load_set(const Problem& p, int64_t begin, int64_t end, Scratch& s) {
  const int64_t C = p.channels;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = p.order[i];
    const float* from = p.qkv + row * 3 * C;
    const float* place = p.position + p.position_index[row] * 2 * C;
    float *q = s.q + (i - begin) * C, *k = s.k + (i - begin) * C, *v = s.v + (i - begin) * C;
    for (int64_t c = 0; c < C; ++c) {
      q[c] = (from[c] + place[c]) * p.scale;
      k[c] = from[C + c] + place[C + c];
      v[c] = from[2 * C + c];
    }
  }
  to_lanes(s.q, end - begin, C, s.query);
}

// One head (channels at `c0`), one block of queries: softmax(q k) v.
template <int D>
static void attend(const Scratch& s, int64_t n, int64_t C, int64_t c0, int64_t d_given, int64_t block,
                   int64_t blocks, Lanes* norm) {
  const int64_t d = D ? D : d_given;
  constexpr int kMost = D ? D : kMostPerHead;
  Lanes q[kMost], sum[kMost];
  for (int64_t e = 0; e < d; ++e) q[e] = s.query[(c0 + e) * blocks + block], sum[e] = (Lanes){};
  Lanes most = spread(-INFINITY);
  for (int64_t j = 0; j < n; ++j) {
    const float* k = s.k + j * C + c0;
    Lanes score = q[0] * k[0];
    for (int64_t e = 1; e < d; ++e) score += q[e] * k[e];
    s.weights[j] = score;
    most = score > most ? score : most;
  }
  Lanes total = (Lanes){};
  for (int64_t j = 0; j < n; ++j) {
    const float* v = s.v + j * C + c0;
    const Lanes w = exponential(s.weights[j] - most);
    total += w;
    for (int64_t e = 0; e < d; ++e) sum[e] += w * v[e];
  }
  for (int64_t e = 0; e < d; ++e) s.result[(c0 + e) * blocks + block] = sum[e] / total;
  for (int lane = 0; lane < kLanes; ++lane) (*norm)[lane] = most[lane] + logf(total[lane]);
}

// The same block backwards: adds to grad_k and grad_v, writes the gradient of the scaled queries.
template <int D>
static void attend_backward(const Scratch& s, int64_t n, int64_t C, int64_t c0, int64_t d_given,
                            int64_t block, int64_t blocks, const Lanes* norm) {
  const int64_t d = D ? D : d_given;
  constexpr int kMost = D ? D : kMostPerHead;
  Lanes q[kMost], g[kMost], sum[kMost];
  for (int64_t e = 0; e < d; ++e) {
    q[e] = s.query[(c0 + e) * blocks + block];
    g[e] = s.cotangent[(c0 + e) * blocks + block];
    sum[e] = (Lanes){};
  }
  Lanes mean = (Lanes){};
  for (int64_t j = 0; j < n; ++j) {
    const float *k = s.k + j * C + c0, *v = s.v + j * C + c0;
    Lanes score = q[0] * k[0], slope = g[0] * v[0];
    for (int64_t e = 1; e < d; ++e) score += q[e] * k[e], slope += g[e] * v[e];
    const Lanes w = exponential(score - *norm);
    s.weights[j] = w;
    s.slopes[j] = slope;
    mean += w * slope;
  }
  const int64_t first = block * kLanes, here = n - first < kLanes ? n - first : kLanes;
  for (int64_t j = 0; j < n; ++j) {
    const float* k = s.k + j * C + c0;
    const Lanes slope = s.weights[j] * (s.slopes[j] - mean);
    for (int64_t e = 0; e < d; ++e) sum[e] += slope * k[e];
    float *grad_k = s.grad_k + j * C + c0, *grad_v = s.grad_v + j * C + c0;
    float to_k[kMost] = {}, to_v[kMost] = {};
    for (int64_t i = 0; i < here; ++i) {
      const float *query = s.q + (first + i) * C + c0, *grad = s.grad + (first + i) * C + c0;
      const float a = slope[i], b = s.weights[j][i];
      for (int64_t e = 0; e < d; ++e) to_k[e] += a * query[e], to_v[e] += b * grad[e];
    }
    for (int64_t e = 0; e < d; ++e) grad_k[e] += to_k[e], grad_v[e] += to_v[e];
  }
  for (int64_t e = 0; e < d; ++e) s.result[(c0 + e) * blocks + block] = sum[e];
}

template <int D>
static void forward_sets(const Problem& p, float* out, float* norms) {
  const int64_t C = p.channels, d = C / p.heads;
#pragma omp parallel num_threads(p.team)
  {
    Scratch s(p.largest, C, p.heads);
#pragma omp for schedule(dynamic, 1)
    for (int64_t set = 0; set < p.sets; ++set) {
      const int64_t begin = p.offsets[set], n = p.offsets[set + 1] - begin;
      const int64_t blocks = (n + kLanes - 1) / kLanes;
      load_set(p, begin, begin + n, s);
      for (int64_t h = 0; h < p.heads; ++h)
        for (int64_t block = 0; block < blocks; ++block)
          attend<D>(s, n, C, h * d, d, block, blocks, &s.norm[h * blocks + block]);
      const float *result = (const float*)s.result, *norm = (const float*)s.norm;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t row = p.order[begin + i];
        for (int64_t c = 0; c < C; ++c) out[row * C + c] = result[c * blocks * kLanes + i];
        for (int64_t h = 0; h < p.heads; ++h)
          norms[row * p.heads + h] = norm[h * blocks * kLanes + i];
      }
    }
  }
}

template <int D>
static void backward_sets(const Problem& p, const float* grad_out, const float* norms,
                          float* grad_qkv) {
  const int64_t C = p.channels, d = C / p.heads;
#pragma omp parallel num_threads(p.team)
  {
    Scratch s(p.largest, C, p.heads);
#pragma omp for schedule(dynamic, 1)
    for (int64_t set = 0; set < p.sets; ++set) {
      const int64_t begin = p.offsets[set], n = p.offsets[set + 1] - begin;
      const int64_t blocks = (n + kLanes - 1) / kLanes;
      load_set(p, begin, begin + n, s);
      float* norm = (float*)s.norm;
      for (int64_t i = 0; i < blocks * kLanes; ++i) {
        const int64_t row = i < n ? p.order[begin + i] : 0;
        if (i < n) memcpy(s.grad + i * C, grad_out + row * C, sizeof(float) * C);
        for (int64_t h = 0; h < p.heads; ++h)
          norm[h * blocks * kLanes + i] = i < n ? norms[row * p.heads + h] : 0.0f;
      }
      to_lanes(s.grad, n, C, s.cotangent);
      memset(s.grad_k, 0, sizeof(float) * n * C);
      memset(s.grad_v, 0, sizeof(float) * n * C);
      for (int64_t h = 0; h < p.heads; ++h)
        for (int64_t block = 0; block < blocks; ++block)
          attend_backward<D>(s, n, C, h * d, d, block, blocks, &s.norm[h * blocks + block]);
      const float* result = (const float*)s.result;
      for (int64_t i = 0; i < n; ++i) {
        float* to = grad_qkv + p.order[begin + i] * 3 * C;
        for (int64_t c = 0; c < C; ++c) to[c] = result[c * blocks * kLanes + i] * p.scale;
        memcpy(to + C, s.grad_k + i * C, sizeof(float) * C);
        memcpy(to + 2 * C, s.grad_v + i * C, sizeof(float) * C);
      }
    }
  }
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
