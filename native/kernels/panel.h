// Matrices as the engine multiplies them: panels of sixteen rows, and tiles of eight tokens.
//
// A panel holds sixteen rows of a weight with their columns interleaved, so that one register holds
// the same four columns of every row and a row never has to be summed across lanes. It has exactly
// the bits of the file's packing, in another order. A tile holds the inputs of eight tokens, rounded
// to what the packing multiplies (8-bit blocks, or floats), interleaved in the same way.
//
// One order of reduction: a result is the sum over blocks, first to last, of an exact integer sum
// times its scales (over columns, first to last, for floats). It depends on the row and the token
// alone: not on how many tokens there are, in which tile they lie, or which thread works on them.
#pragma once

#include <cstdint>

namespace kvant {

inline constexpr int kPanelRows = 16;
inline constexpr int kTile = 8;

// What a packing multiplies with. Q8_32 and Q8_256 are signed bytes with a float scale for 32 or 256
// columns, rounded to nearest with the largest magnitude at 127.
enum class Act : int { Q8_32 = 0, Q8_256 = 1, F32 = 2, BF16 = 3 };
inline constexpr int kActs = 4;

// Where things lie in a tile of `columns` columns. Bytes come in steps of four columns:
// q[columns / 4][width][4]; scales d[blocks][width]. `sums` is int32[columns / 32][width] for Q8_32;
// for Q8_256 int16 pairs [columns / 64][width][2] of sums over 32 columns, and `sums16` the same
// [columns / 32][width][2] of sums over 16. Floats: f32[columns][width], or pairs of bf16
// [columns / 2][width][2]. A tile that holds fewer than eight tokens is as narrow as it can be (1, 2
// or 4): one token's inputs then stay in first-level cache while the weights stream by.
struct ActLayout {
  int64_t q, d, sums, sums16, bytes;
};

inline int tile_width(int64_t tokens) {
  return tokens <= 1 ? 1 : tokens <= 2 ? 2 : tokens <= 4 ? 4 : kTile;
}

inline ActLayout act_layout(Act act, int64_t columns, int width = kTile) {
  const auto up = [](int64_t n) { return (n + 63) / 64 * 64; };
  ActLayout l{};
  switch (act) {
    case Act::Q8_32:
      l.d = up(columns * width);
      l.sums = l.d + up(columns / 32 * width * 4);
      l.bytes = l.sums + up(columns / 32 * width * 4);
      break;
    case Act::Q8_256:
      l.d = up(columns * width);
      l.sums = l.d + up(columns / 256 * width * 4);
      l.sums16 = l.sums + up(columns / 64 * width * 4);
      l.bytes = l.sums16 + up(columns / 32 * width * 4);
      break;
    case Act::F32: l.bytes = up(columns * width * 4); break;
    case Act::BF16: l.bytes = up((columns + 1) / 2 * width * 4); break;
  }
  return l;
}

// One packing's kernels. Sizes are multiples of 64 bytes, and so must addresses be.
struct PanelKernels {
  Act act;
  int64_t (*panel_bytes)(int64_t columns);
  int64_t (*unpacked_bytes)(int64_t columns);
  // `rows[r]` is a row as the file has it; rows from `n` on become zeros.
  void (*interleave)(const uint8_t* const* rows, int n, int64_t columns, uint8_t* panel);
  // Codes as bytes and scales as words, for use with many tiles.
  void (*unpack)(const uint8_t* panel, int64_t columns, uint8_t* unpacked);
  // y[t * stride + r] of `tokens` tokens of a tile of `width` and the sixteen rows.
  void (*multiply)(const uint8_t* panel, int64_t columns, const uint8_t* tile, int width, int tokens,
                   float* y, int64_t stride);
  void (*multiply_unpacked)(const uint8_t* unpacked, int64_t columns, const uint8_t* tile, int width,
                            int tokens, float* y, int64_t stride);
};

// Rounds `tokens` rows of floats into a tile of `width`; tokens it lacks become zeros. `rows[t]` are
// the inputs.
using PrepareTile = void (*)(Act act, const float* const* rows, int tokens, int width,
                             int64_t columns, uint8_t* tile);

}  // namespace kvant
