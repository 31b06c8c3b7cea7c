// bfloat16 convolution kernels on AMX tiles, summed in float.
#include "conv_bf16.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <string.h>

#include "conv_amx.h"
#include "conv_bf16_rows.h"

namespace {

// ------------------------------------------------------------------------- forward, gradient of x

int64_t packed_size(int64_t cin, int64_t cout) { return parts(cin, 32) * parts(cout, 32) * 2 * TILE; }

// [cout / 32][cin / 32][2 tiles of 16 outputs], two input channels side by side, zeros past the ends.
void pack(const Bf16Call& q, const uint16_t* w, bool transposed, int64_t k, uint16_t* to) {
  const int64_t w_in = transposed ? 1 : q.cout, w_out = transposed ? q.cin : 1;
  const uint16_t* wk = w + k * q.cin * q.cout;
  memset(to, 0, sizeof(uint16_t) * q.w_offset);
  for (int64_t d = 0; d < q.cout; d += 32)
    for (int64_t c = 0; c < q.cin; c += 32)
      for (int64_t half = d; half < d + 32; half += 16, to += TILE) {
        const int64_t columns = least(16, q.cout - half), rows = least(32, q.cin - c);
        const uint16_t* from = wk + c * w_in + half * w_out;
        for (int64_t i = 0; i < rows; i++)
          for (int64_t j = 0; j < columns; j++) to[i / 2 * 32 + j * 2 + i % 2] = from[i * w_in + j * w_out];
      }
}

alignas(64) const uint16_t NOTHING[32] = {0};

// The input rows of a step, as A tiles [cin / 32][GROUP rows][32 channels].
inline void gather(const Bf16Call& q, const ConvTiles& t, int64_t step, uint16_t* panel) {
  const int32_t* in = t.in + step * GROUP;
  const int64_t begin = t.offset[step] & 1 ? 0 : 16, end = t.offset[step] & 2 ? GROUP : 16;
  int64_t c = 0;
  for (; c + 32 <= q.cin; c += 32, panel += 2 * TILE)
    for (int64_t j = begin; j < end; j++) {
      const uint16_t* from = in[j] < 0 ? NOTHING : q.x + in[j] * q.cin + c;
      _mm512_store_si512(panel + j * 32, _mm512_loadu_si512(from));
    }
  if (c == q.cin) return;
  const __mmask32 rest = lanes32(q.cin - c);
  for (int64_t j = begin; j < end; j++) {
    const uint16_t* from = in[j] < 0 ? NOTHING : q.x + in[j] * q.cin + c;
    _mm512_store_si512(panel + j * 32, _mm512_maskz_loadu_epi16(rest, from));
  }
}

// Tiles 0 to 3 += one step: up to 32 rows of the panel times 32 (or, not WIDE, 16) outputs of w.
template <bool WIDE>
inline void multiply(int32_t halves, int64_t nc, const uint16_t* panel, const uint16_t* w) {
  for (int64_t c = 0; c < nc; c++, panel += 2 * TILE, w += 2 * TILE) {
    _tile_loadd(6, w, 64);
    if (WIDE) _tile_loadd(7, w + TILE, 64);
    if (halves & 1) {
      _tile_loadd(4, panel, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (WIDE) _tile_dpbf16ps(1, 4, 7);
    }
    if (halves & 2) {
      _tile_loadd(5, panel + TILE, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (WIDE) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// corner [GROUP, 32] = sum over the group's steps of their rows times 32 outputs of the weights.
// In the first of these passes rows are gathered one step ahead.
template <bool WIDE>
inline void sum_steps(const Bf16Call& q, const ConvTiles& t, int64_t g, int64_t pass, uint16_t* panel,
                      float* corner) {
  const int64_t nc = parts(q.cin, 32), first = t.steps[g], last = t.steps[g + 1];
  _tile_zero(0);
  _tile_zero(2);
  if (WIDE) _tile_zero(1);
  if (WIDE) _tile_zero(3);
  if (!pass && first < last) gather(q, t, first, panel);
  for (int64_t s = first; s < last; s++, panel += nc * 2 * TILE) {
    if (!pass && s + 1 < last) gather(q, t, s + 1, panel + nc * 2 * TILE);
    const uint16_t* w = q.w + (t.offset[s] >> 2) * q.w_offset + pass * nc * 2 * TILE;
    multiply<WIDE>(t.offset[s] & 3, nc, panel, w);
  }
  _tile_stored(0, corner, 128);
  _tile_stored(2, corner + 16 * 32, 128);
  if (WIDE) _tile_stored(1, corner + 16, 128);
  if (WIDE) _tile_stored(3, corner + 16 * 32 + 16, 128);
}

enum Keeping { FINAL, FIRST, MORE };  // a corner is the result, or begins or adds to a sum

inline void keep(const Bf16Call& q, const uint16_t* out, const float* corner, int64_t first_row,
                 int64_t c, Keeping how, float* sums, int64_t width) {
  const int64_t vectors = least(2, parts(q.cout - c, 16));
  for (int64_t j = 0; j < GROUP && out[j] != NO_ROW; j++)
    for (int64_t v = 0; v < vectors; v++) {
      const __m512 value = _mm512_load_ps(corner + j * 32 + v * 16);
      float* sum = sums + out[j] * width + c + v * 16;
      if (how == FINAL)
        write(q, value, first_row + out[j], c + v * 16);
      else
        _mm512_store_ps(sum, how == FIRST ? value : _mm512_add_ps(_mm512_load_ps(sum), value));
    }
}

void forward(const Bf16Call& q, int64_t b, Scratch& scratch) {
  const ConvTiles& t = *q.tiles;
  const int64_t first_row = b * t.block, rows = least(t.block, q.n_out - first_row);
  const int64_t nc = parts(q.cin, 32), width = parts(q.cout, 32) * 32;
  const int64_t initial = t.blocks[b] + parts(rows, GROUP);  // these groups hold each row once
  const bool single = initial == t.blocks[b + 1];
  const int64_t panel_size = q.offsets * nc * 2 * TILE * sizeof(uint16_t);
  char* memory = scratch.get(4096 + panel_size + (single ? 0 : rows * width * sizeof(float)));
  float* corner = (float*)memory;
  uint16_t* panel = (uint16_t*)(memory + 4096);
  float* sums = (float*)(memory + 4096 + panel_size);
  for (int64_t g = t.blocks[b]; g < t.blocks[b + 1]; g++) {
    const Keeping how = single ? FINAL : g < initial ? FIRST : MORE;
    for (int64_t c = 0; c < q.cout; c += 32) {
      if (q.cout - c > 16)
        sum_steps<true>(q, t, g, c / 32, panel, corner);
      else
        sum_steps<false>(q, t, g, c / 32, panel, corner);
      keep(q, t.out + g * GROUP, corner, first_row, c, how, sums, width);
    }
  }
  if (single) return;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < q.cout; c += 16)
      write(q, _mm512_load_ps(sums + r * width + c), first_row + r, c);
}

// ------------------------------------------------------------------------------- gradient of w

constexpr int64_t CHUNK = 256;  // pairs that are laid out at a time

int64_t sum_size(int64_t cin, int64_t cout) { return parts(cin, 32) * parts(cout, 32) * 4 * 256; }

// 32 channels from c on of 32 rows (`count` of which exist) as two tiles, `apart` elements from each
// other: pairs of rows side by side, or (TURNED) channels by rows.
template <bool TURNED, class Row>
inline void lay_out(const uint16_t* from, int64_t width, const Row* rows, int64_t count, int64_t c,
                    uint16_t* to, int64_t apart) {
  const __mmask32 mask = lanes32(width - c);
  __m512i low[16], high[16];
  for (int64_t r = 0; r < 16; r++) {
    const uint16_t* a = from + (2 * r < count ? rows[2 * r] : 0) * width + c;
    const uint16_t* b = from + (2 * r + 1 < count ? rows[2 * r + 1] : 0) * width + c;
    interleave(_mm512_maskz_loadu_epi16(2 * r < count ? mask : 0, a),
               _mm512_maskz_loadu_epi16(2 * r + 1 < count ? mask : 0, b), &low[r], &high[r]);
  }
  if (TURNED) {
    transpose(low, to);
    transpose(high, to + apart);
    return;
  }
  for (int64_t r = 0; r < 16; r++) {
    _mm512_store_si512(to + r * 32, low[r]);
    _mm512_store_si512(to + apart + r * 32, high[r]);
  }
}

// Adds x^T dy of up to CHUNK pairs to the tiles of `sum`, [cin / 32][cout / 32][2][2].
void gradient_chunk(const Bf16Call& q, const int32_t* in, const uint16_t* out, int64_t n,
                    const uint16_t* dy, float* sum, uint16_t* memory) {
  const int64_t nc = parts(q.cin, 32), nd = parts(q.cout, 32), depth = parts(n, 32);
  uint16_t *a = memory, *b = memory + nc * 2 * depth * TILE;
  for (int64_t s = 0; s < depth; s++) {
    const int64_t count = least(32, n - s * 32);
    for (int64_t c = 0; c < nc; c++)
      lay_out<true>(q.x, q.cin, in + s * 32, count, c * 32, a + (c * depth + s) * 2 * TILE, TILE);
    for (int64_t d = 0; d < nd; d++)
      lay_out<false>(dy, q.cout, out + s * 32, count, d * 32, b + (d * depth + s) * 2 * TILE, TILE);
  }
  for (int64_t c = 0; c < nc; c++)
    for (int64_t d = 0; d < nd; d++, sum += 4 * 256) {
      _tile_loadd(0, sum, 64);
      _tile_loadd(1, sum + 256, 64);
      _tile_loadd(2, sum + 512, 64);
      _tile_loadd(3, sum + 768, 64);
      for (int64_t s = 0; s < depth; s++) {
        const uint16_t *x = a + (c * depth + s) * 2 * TILE, *y = b + (d * depth + s) * 2 * TILE;
        _tile_loadd(4, x, 64);
        _tile_loadd(6, y, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, y + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, sum, 64);
      _tile_stored(1, sum + 256, 64);
      _tile_stored(2, sum + 512, 64);
      _tile_stored(3, sum + 768, 64);
    }
}

void gradient(const Bf16Call& q, int64_t b, int64_t k, float* sum, Scratch& scratch) {
  const ConvPairs& pairs = *q.pairs;
  const int64_t list = q.list(b, k);
  const int64_t wide = parts(q.cin, 32) + parts(q.cout, 32);
  uint16_t* memory = (uint16_t*)scratch.get(wide * 32 * CHUNK * sizeof(uint16_t));
  const int64_t end = pairs.starts[list + 1];
  for (int64_t p = pairs.starts[list]; p < end; p += CHUNK)
    gradient_chunk(q, pairs.in + p, pairs.out + p, least(CHUNK, end - p),
                   q.dy + b * pairs.block * q.cout, sum, memory);
}

void unpack(const Bf16Call& q, const float* sum, float* dw) {
  const int64_t nd = parts(q.cout, 32);
  for (int64_t i = 0; i < q.cin; i++)
    for (int64_t j = 0; j < q.cout; j++) {
      const int64_t tile = (i / 32 * nd + j / 32) * 4 + i / 16 % 2 * 2 + j / 16 % 2;
      dw[i * q.cout + j] = sum[tile * 256 + i % 16 * 16 + j % 16];
    }
}

}  // namespace

const Bf16Kernels conv_amx = {tiles_available, begin_tiles, end_tiles, packed_size, pack,
                              forward,         sum_size,    gradient,  unpack};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
static bool available() { return false; }
const Bf16Kernels conv_amx = {available};
#endif
