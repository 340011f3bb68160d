// Products of quantised panels and tiles, for every packing made of codes and scales.
//
// What they compute is exact in integers within a block: codes times 8-bit activations, times the
// sub-blocks' integer scales; one float product a block follows.
#pragma once

#include "panel_format.h"

namespace kvant::KVANT_ISA {

// Two levels of scales: everything within a block of 256 is integer.
template <class F, class Block, int T, int W>
static inline void product_nested(Block& w, int part, int64_t blocks, const uint8_t* tile,
                                  const ActLayout& l, int t0, float* y, int64_t stride) {
  constexpr int sums_step = F::pairs * W * 2;
  const int8_t* q = (const int8_t*)tile + t0 * 4;
  const float* d = (const float*)(tile + l.d) + t0;
  const int16_t* sums = (const int16_t*)(tile + (F::sub == 32 ? l.sums : l.sums16)) + t0 * 2;
  vf acc[T] = {};
  for (int64_t b = 0; b < blocks; ++b, q += 256 * W, d += W, sums += sums_step) {
    w.enter(b);
    vi total[T] = {};
    for (int j = 0; j < F::subs; ++j) {
      vi part_sum[T] = {};
#pragma GCC unroll 2
      for (int h = 0; h < F::sub / 16; ++h) {
        vc c[4];
        const int quad = j * (F::sub / 16) + h;
        w.quad(quad, part, c);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t)
            part_sum[t] = dot<F::wide>(part_sum[t], c[k], q + ((quad * 4 + k) * W + t) * 4);
      }
      const vi scale = w.scale(j, part);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) total[t] += multiply_low(part_sum[t], scale);
    }
    vi low[T] = {};
    for (int p = 0; p < F::pairs; ++p) {
      const vi pair = w.pair(p, part);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) low[t] = dot_pairs(low[t], pair, sums + (p * W + t) * 2);
    }
    const vf scale = w.d(part);
    if constexpr (F::affine) {
      const vf least = w.dmin(part);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const vf a = splat(d[t]);
        acc[t] = vfma(to_float(total[t]), scale * a, acc[t]);
        acc[t] = vfma(to_float(-low[t]), least * a, acc[t]);
      }
    } else {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
        acc[t] = vfma(to_float(total[t] - low[t] * F::zero), scale * splat(d[t]), acc[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) store(y + t * stride + part * kLanes, acc[t]);
}

// One scale a block of 256.
template <class F, class Block, int T, int W>
static inline void product_flat(Block& w, int part, int64_t blocks, const uint8_t* tile,
                                const ActLayout& l, int t0, float* y, int64_t stride) {
  const int8_t* q = (const int8_t*)tile + t0 * 4;
  const float* d = (const float*)(tile + l.d) + t0;
  const int16_t* sums = (const int16_t*)(tile + l.sums) + t0 * 2;
  vf acc[T] = {};
  for (int64_t b = 0; b < blocks; ++b, q += 256 * W, d += W, sums += 8 * W) {
    w.enter(b);
    vi total[T];
    for (int t = 0; t < T; ++t) {
      int sum = 0;
      for (int p = 0; p < 4; ++p) sum += sums[(p * W + t) * 2] + sums[(p * W + t) * 2 + 1];
      total[t] = splat_int(-F::zero * sum);
    }
    if constexpr (Block::kPacked && F::low == 2 && T <= 2) {
      // With so few tokens a sum would wait for itself and shifting codes would take as long as
      // multiplying them: every step has a sum of its own, two of them of codes where they lie.
      vi step[T][3] = {};
#pragma GCC unroll 4
      for (int h = 0; h < F::quads; ++h) {
        const vc c = w.line(h, part);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
          const int8_t* a = q + (h * 4 * W + t) * 4;
          total[t] = dot<F::wide>(total[t], c & (uint8_t)3, a);
          step[t][0] = dot<F::wide>(step[t][0], c & (uint8_t)12, a + W * 4);
          step[t][1] = dot<F::wide>(step[t][1], c & (uint8_t)48, a + W * 8);
          step[t][2] = dot<F::wide>(step[t][2], field<6, 3>(c), a + W * 12);
        }
      }
      for (int t = 0; t < T; ++t) total[t] += (step[t][0] >> 2) + (step[t][1] >> 4) + step[t][2];
    } else {
#pragma GCC unroll 2
      for (int h = 0; h < F::quads; ++h) {
        vc c[4];
        w.quad(h, part, c);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t)
            total[t] = dot<F::wide>(total[t], c[k], q + ((h * 4 + k) * W + t) * 4);
      }
    }
    const vf scale = w.d(part);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
      acc[t] = vfma(to_float(total[t]), scale * splat(d[t]), acc[t]);
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) store(y + t * stride + part * kLanes, acc[t]);
}

// One scale a block of 32.
template <class F, class Block, int T, int W>
static inline void product_plain(Block& w, int part, int64_t blocks, const uint8_t* tile,
                                 const ActLayout& l, int t0, float* y, int64_t stride) {
  const int8_t* q = (const int8_t*)tile + t0 * 4;
  const float* d = (const float*)(tile + l.d) + t0;
  const int32_t* sums = (const int32_t*)(tile + l.sums) + t0;
  vf acc[T] = {};
  for (int64_t b = 0; b < blocks; ++b, q += 32 * W, d += W, sums += W) {
    w.enter(b);
    vi total[T];
    for (int t = 0; t < T; ++t) total[t] = splat_int(F::affine ? 0 : -F::zero * sums[t]);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      vc c[4];
      w.quad(h, part, c);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t)
          total[t] = dot<F::wide>(total[t], c[k], q + ((h * 4 + k) * W + t) * 4);
    }
    const vf scale = w.d(part);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
      acc[t] = vfma(to_float(total[t]), scale * splat(d[t]), acc[t]);
    if constexpr (F::affine) {
      const vf least = w.dmin(part);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
        acc[t] = vfma(least, splat(d[t] * float(sums[t])), acc[t]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) store(y + t * stride + part * kLanes, acc[t]);
}

// A scale for either half of a block of 32. Sums of half a tile's block are nowhere: what the levels'
// zero adds is summed beside the product.
template <class F, class Block, int T, int W>
static inline void product_halves(Block& w, int part, int64_t blocks, const uint8_t* tile,
                                  const ActLayout& l, int t0, float* y, int64_t stride) {
  const int8_t* q = (const int8_t*)tile + t0 * 4;
  const float* d = (const float*)(tile + l.d) + t0;
  const vc zero = (vc){} + uint8_t(F::zero);
  vf acc[T] = {};
  for (int64_t b = 0; b < blocks; ++b, q += 32 * W, d += W) {
    w.enter(b);
    const vf scales[2] = {w.d(part), w.dmin(part)};
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      vc c[4];
      w.quad(h, part, c);
      for (int t = 0; t < T; ++t) {
        vi total = {}, none = {};
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          const int8_t* a = q + ((h * 4 + k) * W + t) * 4;
          total = dot<F::wide>(total, c[k], a);
          none = dot<F::wide>(none, zero, a);
        }
        acc[t] = vfma(to_float(total - none), scales[h] * splat(d[t]), acc[t]);
      }
    }
  }
  for (int t = 0; t < T; ++t) store(y + t * stride + part * kLanes, acc[t]);
}

// Tokens that fit the registers at once: an accumulator or three each.
inline constexpr int kTokens = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 2;

template <class F>
struct Panels {
  static int64_t panel_bytes(int64_t columns) {
    const int64_t blocks = columns / F::block;
    return F::heads_bytes(blocks) + blocks * F::record_bytes;
  }

  static int64_t unpacked_bytes(int64_t columns) { return columns / F::block * F::unpacked_bytes; }

  template <class Block, int T, int W>
  static void product(const uint8_t* from, int64_t columns, const uint8_t* tile, int t0, float* y,
                      int64_t stride) {
    const int64_t blocks = columns / F::block;
    const ActLayout l = act_layout(F::act, columns, W);
    for (int part = 0; part < kParts; ++part) {
      Block w(from, blocks);
      if constexpr (F::nested)
        product_nested<F, Block, T, W>(w, part, blocks, tile, l, t0, y, stride);
      else if constexpr (F::block == 256)
        product_flat<F, Block, T, W>(w, part, blocks, tile, l, t0, y, stride);
      else if constexpr (F::halves)
        product_halves<F, Block, T, W>(w, part, blocks, tile, l, t0, y, stride);
      else
        product_plain<F, Block, T, W>(w, part, blocks, tile, l, t0, y, stride);
    }
  }

  // Tokens beyond the last are zeros in the tile; their results go to a place of their own.
  template <class Block, int W>
  static void tokens_of(const uint8_t* from, int64_t columns, const uint8_t* tile, int tokens,
                        float* y, int64_t stride) {
    constexpr int T = W < kTokens ? W : kTokens;
    for (int t = 0; t < tokens; t += T) {
      if (tokens - t >= T) {
        product<Block, T, W>(from, columns, tile, t, y + t * stride, stride);
        continue;
      }
      alignas(64) float spare[T * kPanelRows];
      product<Block, T, W>(from, columns, tile, t, spare, kPanelRows);
      for (int i = 0; t + i < tokens; ++i)
        std::memcpy(y + (t + i) * stride, spare + i * kPanelRows, kPanelRows * 4);
    }
  }

  static void multiply(const uint8_t* panel, int64_t columns, const uint8_t* tile, int width,
                       int tokens, float* y, int64_t stride) {
    using Block = PackedBlock<F>;
    switch (width) {
      case 1: return tokens_of<Block, 1>(panel, columns, tile, tokens, y, stride);
      case 2: return tokens_of<Block, 2>(panel, columns, tile, tokens, y, stride);
      case 4: return tokens_of<Block, 4>(panel, columns, tile, tokens, y, stride);
      default: return tokens_of<Block, kTile>(panel, columns, tile, tokens, y, stride);
    }
  }

  static void multiply_unpacked(const uint8_t* unpacked, int64_t columns, const uint8_t* tile, int,
                                int tokens, float* y, int64_t stride) {
    tokens_of<UnpackedBlock<F>, kTile>(unpacked, columns, tile, tokens, y, stride);
  }

  static void unpack(const uint8_t* panel, int64_t columns, uint8_t* out) {
    const int64_t blocks = columns / F::block;
    PackedBlock<F> w(panel, blocks);
    for (int64_t b = 0; b < blocks; ++b, out += F::unpacked_bytes) {
      w.enter(b);
      for (int part = 0; part < kParts; ++part) {
        const int at = part * kLanes * 4;
        for (int q = 0; q < F::quads; ++q) {
          vc c[4];
          w.quad(q, part, c);
          for (int k = 0; k < 4; ++k) std::memcpy(out + (4 * q + k) * 64 + at, &c[k], sizeof c[k]);
        }
        if constexpr (F::nested) {
          for (int j = 0; j < F::subs; ++j) {
            const vi s = w.scale(j, part);
            std::memcpy(out + F::u_scales + j * 64 + at, &s, sizeof s);
          }
          for (int p = 0; p < F::pairs; ++p) {
            const vi s = w.pair(p, part);
            std::memcpy(out + F::u_pairs + p * 64 + at, &s, sizeof s);
          }
        }
        store((float*)(out + F::u_heads + at), w.d(part));
        if constexpr (F::two_heads) store((float*)(out + F::u_heads + 64 + at), w.dmin(part));
      }
    }
  }
};

}  // namespace kvant::KVANT_ISA
