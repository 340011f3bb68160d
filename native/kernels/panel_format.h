// Panels of codes and scales: how their bits lie, and reading a block of them.
//
// A packing is described by how many bits its codes have and what scales stand over them. A block is
// read as a panel has it, or from its unpacked form, through the same four questions: codes of
// sixteen columns, scale of a sub-block, pair of minima, scale of the block.
#pragma once

#include <array>

#include "dot.h"

namespace kvant::KVANT_ISA {

// How the sub-blocks' scales lie in a panel. SixBits: 256 values in 192 bytes, scales then minima
// (or sixteen scales plus 32). EightSixBits: 128 values, eight scales plus 32; low nibbles in 64
// bytes, the rest in 32 that lie with the block's scale. Nibbles: scale below, minimum above. Bytes:
// signed. OddNibbles: odd scales 1 to 31 in four bits, two to a byte.
enum class SubScales { None, SixBits, SixBitsSigned, EightSixBits, Nibbles, Bytes, OddNibbles };

// What codes stand for where it is not what they are: bytes, not negative, ZERO being weight zero.
// WIDE ones need all eight bits, others stay at 128 or below (ZERO too). The block's scale is `kUnit`
// times the file's.
struct AsTheyAre {
  static constexpr bool kTable = false, kWide = false;
  static constexpr float kUnit = 1.0f;
};

template <class BOOK, int ZERO>
struct LevelBytes {
  static constexpr bool kTable = true;
  static constexpr float kUnit = 1.0f;
  alignas(16) static constexpr auto kBytes = [] {
    std::array<uint8_t, 16> bytes{};
    for (int i = 0; i < 16; ++i) bytes[size_t(i)] = uint8_t(BOOK::kLevels[i] + ZERO);
    return bytes;
  }();
  static constexpr bool kWide = [] {
    bool wide = false;
    for (int i = 0; i < 16; ++i) wide |= BOOK::kLevels[i] + ZERO >= 64;
    return wide;
  }();

  static inline vc look(vc codes) { return look_up(codes, kBytes.data()); }
};

// 2^(e - 128), exact down to the least.
static inline vf power_of(vi e) {
  const vi small = splat_int(0x00200000) << (e & 1), least = e < splat_int(2);
  return (vf)((least & small) | (~least & ((e - 1) << 23)));
}

static inline uint8_t exponent_of(float d) {
  const uint32_t bits = float_bits(d);
  return bits < 0x00800000u ? bits >= 0x00400000u : uint8_t((bits >> 23) + 1);
}

// LOW bits of each code lie together and HIGH above them (LOW 4 or 2 with HIGH 0, 1 or 2; or 8 and
// 0). ZERO is the code of weight zero; AFFINE packings have minima instead.
template <int LOW, int HIGH, int BLOCK, int SUB, int ZERO, SubScales SCALES, bool AFFINE,
          class LEVELS = AsTheyAre>
struct Format {
  using levels = LEVELS;
  static constexpr int low = LOW, high = HIGH, block = BLOCK, sub = SUB, zero = ZERO;
  static constexpr SubScales scales = SCALES;
  static constexpr bool affine = AFFINE, wide = LOW == 8 || LEVELS::kWide;
  static constexpr bool nested = SCALES != SubScales::None;  // two levels of scales
  static constexpr Act act = BLOCK == 256 ? Act::Q8_256 : Act::Q8_32;
  // Blocks' scales are powers of two, a byte each.
  static constexpr bool exponents = requires { requires LEVELS::kExponents; };
  // A scale for either half of a block, the second where minima lie otherwise.
  static constexpr bool halves = requires { requires LEVELS::kHalves; };
  static constexpr bool two_heads = AFFINE || halves;
  static constexpr int steps = BLOCK / 4, quads = BLOCK / 16, subs = BLOCK / SUB;
  static constexpr int head_bytes = exponents ? 16 : two_heads || SCALES == SubScales::EightSixBits ? 64 : 32;
  static constexpr int scale_bytes = !nested                                   ? 0
                                     : SCALES == SubScales::SixBits            ? 192
                                     : SCALES == SubScales::SixBitsSigned      ? 192
                                     : SCALES == SubScales::OddNibbles         ? subs * 8
                                     : SCALES == SubScales::EightSixBits       ? 64
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
  static constexpr bool kPacked = true;

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
    if constexpr (F::scales == SubScales::EightSixBits) {
      typedef uint8_t half_line __attribute__((vector_size(32)));
      half_line high, low[2];
      std::memcpy(low, record_, 64);
      std::memcpy(&high, head_ + 32, 32);
      const half_line scales[4] = {(low[0] & 15) | (high << 4 & 48), (low[1] & 15) | (high << 2 & 48),
                                   (low[0] >> 4) | (high & 48), (low[1] >> 4) | (high >> 2 & 48)};
      std::memcpy(values_, scales, 128);
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
    if constexpr (F::levels::kTable)
      for (int k = 0; k < 4; ++k) out[k] = F::levels::look(out[k]);
  }

  // Sixteen columns of two-bit codes as they lie: step k in bits 2 k and above.
  inline vc line(int q, int part) const {
    const uint8_t* at = record_ + F::scale_bytes + q * F::group_bytes;
    if (part == 0) {
      __builtin_prefetch(at + 640, 0, 3);
      __builtin_prefetch(at + 4096, 0, 2);
    }
    return load_codes(at + part * kLanes * 4);
  }

  inline vi scale(int j, int part) const {
    const int at = j * 16 + part * kLanes;
    if constexpr (F::scales == SubScales::SixBits) return widen(values_ + at);
    if constexpr (F::scales == SubScales::SixBitsSigned || F::scales == SubScales::EightSixBits)
      return widen(values_ + at) - 32;
    if constexpr (F::scales == SubScales::Nibbles) return widen(record_ + at) & 15;
    if constexpr (F::scales == SubScales::OddNibbles) {
      const vi k = widen(record_ + j / 2 * 16 + part * kLanes) >> (j % 2 * 4) & 15;
      return k + k + 1;
    }
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

  inline vf d(int part) const {
    if constexpr (F::exponents) return power_of(widen(head_ + part * kLanes));
    const vf d = vload_f16((const uint16_t*)head_ + part * kLanes);
    return F::levels::kUnit == 1.0f ? d : d * F::levels::kUnit;
  }
  inline vf dmin(int part) const { return vload_f16((const uint16_t*)head_ + 16 + part * kLanes); }

 private:
  inline void put(int at, vc v) { std::memcpy(values_ + at, &v, sizeof v); }

  const uint8_t *heads_, *records_, *head_ = nullptr, *record_ = nullptr;
  alignas(64) uint8_t values_[256];
};

template <class F>
class UnpackedBlock {
 public:
  static constexpr bool kPacked = false;

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

}  // namespace kvant::KVANT_ISA
