// Products of quantised panels and tiles, for every packing made of codes and scales.
//
// A packing's file says how many bits its codes have and what scales stand over them (`Panels<...>`)
// and gets kernels for its panels. What they compute is exact in integers within a block: codes times
// 8-bit activations, times the sub-blocks' integer scales; one float product a block follows.
#pragma once

#include "dot.h"
#include "packing.h"

namespace kvant::KVANT_ISA {

// How the sub-blocks' scales lie in a panel. SixBits: 256 values in 192 bytes, scales then minima
// (or sixteen scales plus 32). Nibbles: scale below, minimum above. Bytes: signed.
enum class SubScales { None, SixBits, SixBitsSigned, Nibbles, Bytes };

// LOW bits of each code lie together and HIGH above them (LOW 4 or 2 with HIGH 0, 1 or 2; or 8 and
// 0). ZERO is the code of weight zero; AFFINE packings have minima instead.
template <int LOW, int HIGH, int BLOCK, int SUB, int ZERO, SubScales SCALES, bool AFFINE>
struct Format {
  static constexpr int low = LOW, high = HIGH, block = BLOCK, sub = SUB, zero = ZERO;
  static constexpr SubScales scales = SCALES;
  static constexpr bool affine = AFFINE, wide = LOW == 8;
  static constexpr bool nested = SCALES != SubScales::None;  // two levels of scales
  static constexpr Act act = nested ? Act::Q8_256 : Act::Q8_32;
  static constexpr int steps = BLOCK / 4, quads = BLOCK / 16, subs = BLOCK / SUB;
  static constexpr int head_bytes = AFFINE ? 64 : 32;
  static constexpr int scale_bytes = !nested                                   ? 0
                                     : SCALES == SubScales::SixBits            ? 192
                                     : SCALES == SubScales::SixBitsSigned      ? 192
                                                                               : 256;
  // Codes lie in groups of 16 columns (32 where one high bit each fills a line): the line of high
  // bits, then the low ones. So a panel is one stream, and every line of it begins where memory's do.
  static constexpr int group_quads = HIGH == 1 ? 2 : 1;
  static constexpr int high_group = HIGH ? 64 : 0;
  static constexpr int group_bytes = high_group + group_quads * LOW * 32;
  static constexpr int record_bytes = scale_bytes + quads / group_quads * group_bytes;
  static_assert(record_bytes % 64 == 0);
  // Unpacked: codes, scales as words, pairs of minima (or scales, for the zero point), d, dmin.
  static constexpr int pairs = nested ? subs / 2 : 0;
  static constexpr int u_scales = steps * 64;
  static constexpr int u_pairs = u_scales + (nested ? subs * 64 : 0);
  static constexpr int u_heads = u_pairs + pairs * 64;
  static constexpr int unpacked_bytes = u_heads + 128;

  static int64_t heads_bytes(int64_t blocks) { return (blocks * head_bytes + 63) / 64 * 64; }
};

// ---- reading a block, from a panel or from its unpacked form -------------------------------------

template <class F>
class PackedBlock {
 public:
  PackedBlock(const uint8_t* panel, int64_t blocks)
      : heads_(panel), records_(panel + F::heads_bytes(blocks)) {}

  inline void enter(int64_t b) {
    head_ = heads_ + b * F::head_bytes;
    record_ = records_ + b * F::record_bytes;
    if constexpr (F::scales == SubScales::SixBits || F::scales == SubScales::SixBitsSigned)
      for (int p = 0; p < kParts; ++p) {
        constexpr int w = kLanes * 4;
        const vc a = load_codes(record_ + p * w), b2 = load_codes(record_ + 64 + p * w),
                 c = load_codes(record_ + 128 + p * w);
        put(p * w, field<0, 63>(a));
        put(64 + p * w, field<0, 63>(b2));
        put(128 + p * w, field<0, 63>(c));
        put(192 + p * w, field<6, 3>(a) | field<4, 12>(b2) | field<2, 48>(c));
      }
  }

  // Sixteen columns: four steps. Lines ahead are asked for: with one token memory is what everything
  // waits for, and the processor's own prefetching leaves a third of it unused. Where to and how far
  // was measured (Zen 4): into the first level ten lines ahead, into the second some tens, and
  // packings with one level of scales want the latter.
  inline void quad(int q, int part, vc* out) const {
    constexpr int w = kLanes * 4;
    constexpr int near = F::low == 8 ? 0 : 640;
    constexpr int far = F::low == 8 ? 2048 : F::nested ? 0 : 4096;
    const uint8_t* group = record_ + F::scale_bytes + q / F::group_quads * F::group_bytes;
    const uint8_t* high = group + q % F::group_quads * 32;
    const uint8_t* low = group + F::high_group + q % F::group_quads * F::low * 32 + part * w;
    if (part == 0) {
      for (int line = 0; line < F::low * 32; line += 64) {
        if (near) __builtin_prefetch(low + line + near, 0, 3);
        if (far) __builtin_prefetch(low + line + far, 0, 2);
      }
      if (F::high && q % F::group_quads == 0) __builtin_prefetch(group + near, 0, 3);
    }
    if constexpr (F::low == 8) {
      for (int k = 0; k < 4; ++k) out[k] = load_codes(low + k * 64);
    } else if constexpr (F::low == 4) {
      const vc a = load_codes(low), b = load_codes(low + 64);
      out[0] = field<0, 15>(a);
      out[1] = field<4, 15>(a);
      out[2] = field<0, 15>(b);
      out[3] = field<4, 15>(b);
    } else {
      const vc a = load_codes(low);
      out[0] = field<0, 3>(a);
      out[1] = field<2, 3>(a);
      out[2] = field<4, 3>(a);
      out[3] = field<6, 3>(a);
    }
    if constexpr (F::high == 1)
      for (int k = 0; k < 4; ++k)
        out[k] = add_bits<1 << F::low>(out[k], high + k * 8 + part * (kLanes / 2));
    if constexpr (F::high == 2) {
      const vc h = load_codes(high + part * w);
      out[0] |= field_up<4, 48>(h);
      out[1] |= field_up<2, 48>(h);
      out[2] |= field<0, 48>(h);
      out[3] |= field<2, 48>(h);
    }
  }

  inline vi scale(int j, int part) const {
    const int at = j * 16 + part * kLanes;
    if constexpr (F::scales == SubScales::SixBits) return widen(values_ + at);
    if constexpr (F::scales == SubScales::SixBitsSigned) return widen(values_ + at) - 32;
    if constexpr (F::scales == SubScales::Nibbles) return widen(record_ + at) & 15;
    return widen_signed(record_ + at);
  }

  inline vi pair(int p, int part) const {
    vi a, b;
    const int at = 2 * p * 16 + part * kLanes;
    if constexpr (F::scales == SubScales::SixBits) {
      a = widen(values_ + 128 + at);
      b = widen(values_ + 128 + at + 16);
    } else if constexpr (F::scales == SubScales::Nibbles) {
      a = widen(record_ + at) >> 4;
      b = widen(record_ + at + 16) >> 4;
    } else {
      a = scale(2 * p, part) & 0xffff;
      b = scale(2 * p + 1, part);
    }
    return a | b << 16;
  }

  inline vf d(int part) const { return vload_f16((const uint16_t*)head_ + part * kLanes); }
  inline vf dmin(int part) const { return vload_f16((const uint16_t*)head_ + 16 + part * kLanes); }

 private:
  inline void put(int at, vc v) { std::memcpy(values_ + at, &v, sizeof v); }

  const uint8_t *heads_, *records_, *head_ = nullptr, *record_ = nullptr;
  alignas(64) uint8_t values_[256];
};

template <class F>
class UnpackedBlock {
 public:
  UnpackedBlock(const uint8_t* unpacked, int64_t) : all_(unpacked) {}
  inline void enter(int64_t b) { at_ = all_ + b * F::unpacked_bytes; }
  inline void quad(int q, int part, vc* out) const {
    for (int k = 0; k < 4; ++k) out[k] = load_codes(at_ + (4 * q + k) * 64 + part * kLanes * 4);
  }
  inline vi scale(int j, int part) const {
    return load_words(at_ + F::u_scales + j * 64 + part * kLanes * 4);
  }
  inline vi pair(int p, int part) const {
    return load_words(at_ + F::u_pairs + p * 64 + part * kLanes * 4);
  }
  inline vf d(int part) const {
    return load((const float*)(at_ + F::u_heads + part * kLanes * 4));
  }
  inline vf dmin(int part) const {
    return load((const float*)(at_ + F::u_heads + 64 + part * kLanes * 4));
  }

 private:
  const uint8_t *all_, *at_ = nullptr;
};

// ---- the product ---------------------------------------------------------------------------------

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
        if constexpr (F::affine) store((float*)(out + F::u_heads + 64 + at), w.dmin(part));
      }
    }
  }
};

// ---- from the file's layout to panels ------------------------------------------------------------

using Unlayout = void (*)(const uint8_t* in, uint8_t* codes, Scales* scales, int64_t blocks);

static inline void put_half(uint8_t* out, float x) {
  const uint16_t h = float_to_half(x);
  std::memcpy(out, &h, 2);
}

// One bit of each of 256 codes, bit i of the result that of code i.
template <int SHIFT>
static inline void put_bits(const uint8_t* codes, uint8_t* out) {
#if defined(__AVX2__)
  for (int i = 0; i < 256; i += 32) {
    const __m256i c = _mm256_loadu_si256((const __m256i*)(codes + i));
    const uint32_t bits = uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(c, 7 - SHIFT)));
    std::memcpy(out + i / 8, &bits, 4);
  }
#else
  for (int i = 0; i < 32; ++i) {
    uint8_t bits = 0;
    for (int k = 0; k < 8; ++k) bits |= uint8_t((codes[8 * i + k] >> SHIFT & 1) << k);
    out[i] = bits;
  }
#endif
}

template <class F>
static inline void put_scales(const Scales* s, uint8_t* out) {
  uint8_t v[256];
  if constexpr (F::scales == SubScales::Bytes || F::scales == SubScales::Nibbles) {
    for (int j = 0; j < 16; ++j)
      for (int r = 0; r < 16; ++r)
        out[j * 16 + r] = F::scales == SubScales::Bytes
                              ? uint8_t(s[r].sub[j])
                              : uint8_t(uint8_t(s[r].sub[j]) | s[r].submin[j] << 4);
    return;
  }
  if constexpr (F::scales == SubScales::SixBits)
    for (int j = 0; j < 8; ++j)
      for (int r = 0; r < 16; ++r) {
        v[j * 16 + r] = uint8_t(s[r].sub[j]);
        v[128 + j * 16 + r] = s[r].submin[j];
      }
  else
    for (int j = 0; j < 16; ++j)
      for (int r = 0; r < 16; ++r) v[j * 16 + r] = uint8_t(s[r].sub[j] + 32);
  for (int i = 0; i < 64; ++i) {
    const uint8_t top = v[192 + i];
    out[i] = uint8_t(v[i] | (top & 3) << 6);
    out[64 + i] = uint8_t(v[64 + i] | (top >> 2 & 3) << 6);
    out[128 + i] = uint8_t(v[128 + i] | (top >> 4 & 3) << 6);
  }
}

// `steps` [F::steps][64]: codes of sixteen rows, four columns together.
template <class F>
static inline void put_codes(const uint8_t* steps, uint8_t* out) {
  for (int q = 0; q < F::quads; ++q, steps += 256) {
    uint8_t* group = out + q / F::group_quads * F::group_bytes;
    uint8_t* high = group + q % F::group_quads * 32;
    uint8_t* low = group + F::high_group + q % F::group_quads * F::low * 32;
    if constexpr (F::low == 8) std::memcpy(low, steps, 256);
    if constexpr (F::low == 4)
      for (int g = 0; g < 2; ++g)
        for (int i = 0; i < 64; ++i)
          low[g * 64 + i] = uint8_t((steps[g * 128 + i] & 15) | steps[g * 128 + 64 + i] << 4);
    if constexpr (F::low == 2)
      for (int i = 0; i < 64; ++i)
        low[i] = uint8_t((steps[i] & 3) | (steps[64 + i] & 3) << 2 | (steps[128 + i] & 3) << 4 |
                         (steps[192 + i] & 3) << 6);
    if constexpr (F::high == 1) put_bits<F::low>(steps, high);
    if constexpr (F::high == 2)
      for (int i = 0; i < 64; ++i)
        high[i] = uint8_t((steps[i] >> 4 & 3) | (steps[64 + i] >> 4 & 3) << 2 |
                          (steps[128 + i] >> 4 & 3) << 4 | (steps[192 + i] >> 4 & 3) << 6);
  }
}

// Codes of sixteen rows, 256 apart, to steps of four columns. A signed code's sign bit is turned over.
template <int STEPS, bool SIGNED>
static inline void transpose(const uint8_t* codes, uint8_t* steps) {
  constexpr uint32_t flip = SIGNED ? 0x80808080u : 0;
  for (int s0 = 0; s0 < STEPS; s0 += 8)
    for (int r = 0; r < kPanelRows; ++r) {
      uint32_t words[8];
      std::memcpy(words, codes + r * 256 + s0 * 4, 32);
      for (int s = 0; s < 8; ++s) {
        const uint32_t word = words[s] ^ flip;
        std::memcpy(steps + (s0 + s) * 64 + r * 4, &word, 4);
      }
    }
}

// SIGNED: the file's codes are signed bytes; they become codes with their zero at 128.
template <class F, int BLOCK_BYTES, Unlayout UNLAYOUT, bool SIGNED = false>
static void interleave(const uint8_t* const* rows, int n, int64_t columns, uint8_t* panel) {
  constexpr int kRun = 256 / F::block;  // blocks of a row taken at a time
  const int64_t blocks = columns / F::block;
  uint8_t* record = panel + F::heads_bytes(blocks);
  alignas(64) uint8_t codes[kPanelRows][256];
  alignas(64) uint8_t steps[F::steps * 64];
  Scales scales[kPanelRows][kRun];
  if (n < kPanelRows) {
    std::memset(codes, 0, sizeof codes);
    std::memset(scales, 0, sizeof scales);
    std::memset(panel, 0, size_t(F::heads_bytes(blocks)));
  }
  for (int64_t b0 = 0; b0 < blocks; b0 += kRun) {
    const int run = int(blocks - b0 < kRun ? blocks - b0 : kRun);
    for (int r = 0; r < n; ++r) UNLAYOUT(rows[r] + b0 * BLOCK_BYTES, codes[r], scales[r], run);
    for (int b = 0; b < run; ++b, record += F::record_bytes) {
      transpose<F::steps, SIGNED>(codes[0] + b * F::block, steps);
      uint8_t* head = panel + (b0 + b) * F::head_bytes;
      for (int r = 0; r < n; ++r) {
        put_half(head + 2 * r, scales[r][b].d);
        if constexpr (F::affine) put_half(head + 32 + 2 * r, scales[r][b].dmin);
      }
      if constexpr (F::nested) put_scales<F>(scales[0], record);
      put_codes<F>(steps, record + F::scale_bytes);
    }
  }
}

template <class F, int BLOCK_BYTES, Unlayout UNLAYOUT, bool SIGNED = false>
inline constexpr PanelKernels panel_kernels = {
    F::act,
    Panels<F>::panel_bytes,
    Panels<F>::unpacked_bytes,
    interleave<F, BLOCK_BYTES, UNLAYOUT, SIGNED>,
    Panels<F>::unpack,
    Panels<F>::multiply,
    Panels<F>::multiply_unpacked,
};

}  // namespace kvant::KVANT_ISA
