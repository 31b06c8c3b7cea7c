// The gradient of weights on AMX tiles, in float.
#pragma once
#include "conv_amx_squares.h"

namespace {

constexpr int64_t DEPTH = 4;  // times PAIRS pairs are laid out at a time

// Row i of those listed, zeros where it is none.
template <class Row>
inline __m512i row_or_none(const float* from, int64_t width, const Row* rows, int64_t count, int64_t i,
                           __mmask16 mask) {
  return i < count ? _mm512_maskz_loadu_epi32(mask, from + rows[i] * width) : _mm512_setzero_si512();
}

// 16 channels from c on of up to PAIRS rows of x: a tile of channels by rows, rows i and 16 + i side by side.
inline void lay_out_left(const ConvCall& q, const int32_t* in, int64_t count, int64_t c, uint16_t* tile) {
  const __mmask16 mask = lanes16(q.cin - c);
  alignas(64) __m512 turned[2][16];
  for (int64_t j = 0; j < 2; j++) {
    __m512i rows[16];
    for (int64_t i = 0; i < 16; i++) rows[i] = row_or_none(q.x + c, q.cin, in, count, j * 16 + i, mask);
    transpose(rows, turned[j]);
  }
  for (int64_t i = 0; i < 16; i++) cut<TRUNCATED>(turned[0][i], turned[1][i], tile + i * 32);
}

// 16 channels from d on of rows i and 16 + i, side by side, of dy.
inline void lay_out_right(const ConvCall& q, const float* dy, const uint16_t* out, int64_t count, int64_t d,
                          int64_t begin, int64_t end, uint16_t* tile) {
  const __mmask16 mask = lanes16(q.cout - d);
  for (int64_t i = begin; i < end; i++) {
    const __m512i a = row_or_none(dy + d, q.cout, out, count, i, mask);
    const __m512i b = row_or_none(dy + d, q.cout, out, count, 16 + i, mask);
    cut<ROUNDED>(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), tile + i * 32);
  }
}

// Up to DEPTH * PAIRS pairs, laid out as squares [channels / 32][depth] of x and of dy.
struct Chunk {
  const int32_t* in;
  const uint16_t* out;
  const float* dy;
  int64_t count;
  uint16_t* squares;

  int64_t depth() const { return parts(count, PAIRS); }
};

// The pieces in which a chunk is laid out: half a square of x, or a quarter of one of dy.
struct Pieces {
  const ConvCall& q;
  const Chunk& chunk;
  const int32_t nc, nd, total;
  int32_t done = 0;

  Pieces(const ConvCall& q, const Chunk& chunk)
      : q(q),
        chunk(chunk),
        nc((int32_t)parts(q.cin, 32)),
        nd((int32_t)parts(q.cout, 32)),
        total((int32_t)chunk.depth() * (2 * nc + 4 * nd)) {}

  void next() {
    const int32_t each = 2 * nc + 4 * nd, s = done / each;
    int32_t piece = done++ % each;
    const int64_t depth = chunk.depth(), p = s * PAIRS, count = least(PAIRS, chunk.count - p);
    if (piece < 2 * nc) {
      uint16_t* tile = chunk.squares + (piece / 2 * depth + s) * SQUARE + piece % 2 * TILE;
      if (piece * 16 < q.cin) lay_out_left(q, chunk.in + p, count, piece * 16, tile);
      return;
    }
    piece -= 2 * nc;
    const int32_t half = piece / 2, begin = piece % 2 * 8;
    uint16_t* tile = chunk.squares + ((nc + half / 2) * depth + s) * SQUARE + half % 2 * TILE;
    if (half * 16 < q.cout)
      lay_out_right(q, chunk.dy, chunk.out + p, count, half * 16, begin, begin + 8, tile);
  }
};

const uint16_t EACH[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                           16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

// to [32, 32] of rows so wide += a times b over the squares of `depth`.
template <class Meanwhile>
inline void multiply_whole(const uint16_t* a, const uint16_t* b, int64_t depth, float* to, int64_t width,
                           const Meanwhile& meanwhile) {
  const int64_t bytes = width * sizeof(float);
  _tile_loadd(0, to, bytes);
  _tile_loadd(1, to + 16, bytes);
  _tile_loadd(2, to + 16 * width, bytes);
  _tile_loadd(3, to + 16 * width + 16, bytes);
  for (int64_t s = 0; s < depth; s++) multiply<true, true>(a + s * SQUARE, b + s * SQUARE, false, meanwhile);
  _tile_stored(0, to, bytes);
  _tile_stored(1, to + 16, bytes);
  _tile_stored(2, to + 16 * width, bytes);
  _tile_stored(3, to + 16 * width + 16, bytes);
}

// The same where fewer than 32 rows or columns of `to` exist.
template <class Meanwhile>
inline void multiply_rest(const uint16_t* a, const uint16_t* b, int64_t depth, float* to, int64_t width, int64_t rows,
                          int64_t columns, float* corner, const Meanwhile& meanwhile) {
  clear();
  for (int64_t s = 0; s < depth; s++) {
    const uint16_t *left = a + s * SQUARE, *right = b + s * SQUARE;
    if (columns > 16 && rows > 16)
      multiply<true, true>(left, right, false, meanwhile);
    else if (columns > 16)
      multiply<true, false>(left, right, false, meanwhile);
    else if (rows > 16)
      multiply<false, true>(left, right, false, meanwhile);
    else
      multiply<false, false>(left, right, false, meanwhile);
  }
  keep<true, true>(corner);
  add({corner, EACH, least(32, rows), width, columns, to}, 0, 32);
}

// Adds x^T dy of a chunk that is laid out to sum [cin, cout], and lays out the next meanwhile.
void gradient_chunk(const ConvCall& q, const Chunk& chunk, Pieces& next, float* sum, float* corner) {
  const int64_t nc = parts(q.cin, 32), nd = parts(q.cout, 32), depth = chunk.depth();
  const int64_t slots = nc * nd * depth * 6;
  int64_t due = 0;
  const auto lay_out = [&](int64_t, int64_t) {
    for (due += next.total; due >= slots; due -= slots) next.next();
  };
  for (int64_t c = 0; c < nc; c++)
    for (int64_t d = 0; d < nd; d++) {
      const int64_t rows = q.cin - c * 32, columns = q.cout - d * 32;
      float* to = sum + c * 32 * q.cout + d * 32;
      const uint16_t *a = chunk.squares + c * depth * SQUARE, *b = chunk.squares + (nc + d) * depth * SQUARE;
      if (rows >= 32 && columns >= 32)
        multiply_whole(a, b, depth, to, q.cout, lay_out);
      else
        multiply_rest(a, b, depth, to, q.cout, rows, columns, corner, lay_out);
    }
}

void gradient(const ConvCall& q, int64_t b, int64_t k, float* sum) {
  const int64_t* range = q.pairs.starts + q.list(b, k);
  if (range[0] == range[1]) return;
  const int64_t squares = (parts(q.cin, 32) + parts(q.cout, 32)) * DEPTH * SQUARE;  // of a chunk
  float* memory = scratch(1024 + squares);
  uint16_t* place = (uint16_t*)(memory + 1024);
  const float* dy = q.dy + b * q.pairs.block * q.cout;
  const auto chunk_at = [&](int64_t p, uint16_t* to) {
    return Chunk{q.pairs.in + p, q.pairs.out + p, dy, p < range[1] ? least(DEPTH * PAIRS, range[1] - p) : 0, to};
  };
  begin_tiles();
  Chunk chunk = chunk_at(range[0], place);
  for (Pieces first(q, chunk); first.done < first.total;) first.next();
  for (int64_t p = range[0]; p < range[1]; p += DEPTH * PAIRS) {
    const Chunk next = chunk_at(p + DEPTH * PAIRS, chunk.squares == place ? place + squares : place);
    Pieces pieces(q, next);
    gradient_chunk(q, chunk, pieces, sum, memory);
    chunk = next;
  }
  end_tiles();
}

}  // namespace
