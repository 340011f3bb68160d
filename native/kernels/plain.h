// What the 32-weight packings share: one scale (and perhaps one minimum) a block, by the plain
// formulas of ggml's reference quantisers, to the bit.
#pragma once

#include "half.h"
#include "packing.h"
#include "simd.h"

namespace kvant::KVANT_ISA {

// Least and most of 32 weights. Where that is a zero it is the block's first zero, as a scan finds
// it: the sign of a minimum is written to the file.
static inline void range32(const float* x, float* lo, float* hi) {
  vf least = load(x), most = load(x);
  for (int i = kLanes; i < 32; i += kLanes) {
    least = vmin(least, load(x + i));
    most = vmax(most, load(x + i));
  }
  *lo = vleast(least);
  *hi = vmost(most);
  if (*lo != 0.0f && *hi != 0.0f) return;
  int i = 0;
  while (x[i] != 0.0f) ++i;
  if (*lo == 0.0f) *lo = x[i];
  if (*hi == 0.0f) *hi = x[i];
}

// Of the least and the most the longer. Without a branch: which one that is is a coin toss that no
// processor can foresee.
static inline float longer(float lo, float hi) {
  const uint32_t upper = 0u - uint32_t(hi > -lo);
  return bits_float((float_bits(hi) & upper) | (float_bits(lo) & ~upper));
}

// The value of largest magnitude with its sign; of two equal ones, the first; zero is positive.
static inline float signed_max32(const float* x) {
  float lo, hi;
  range32(x, &lo, &hi);
  if (hi == -lo) {
    if (hi == 0.0f) return 0.0f;
    int i = 0;
    while (x[i] != hi && x[i] != lo) ++i;
    return x[i];
  }
  return longer(lo, hi);
}

static inline float inverse_or_zero(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

// Whether a block has codes at all. The reciprocal overflows for a scale so small that the file
// holds it as zero: every code decodes alike then, and zeros are what ggml writes on x86.
static inline bool encodable(float inverse) {
  return (float_bits(inverse) & 0x7fffffffu) < 0x7f800000u;
}

// codes = trunc((x - base) * inverse + offset), cut to 0..TOP before it becomes an integer: under
// scales that are not the block's own it may be larger than any integer.
template <int TOP>
static inline void encode32(const float* x, float base, float inverse, float offset,
                            uint8_t* codes) {
  if (!encodable(inverse)) {
    std::memset(codes, 0, 32);
    return;
  }
  for (int i = 0; i < 32; i += kLanes)
    store_bytes(codes + i, vtruncate(vclamp((load(x + i) - base) * inverse + offset, 0, TOP)));
}

static inline void store_half(uint8_t* out, float x) {
#if defined(__F16C__)
  const uint16_t h = uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint16_t h = float_to_half(x);
#endif
  std::memcpy(out, &h, 2);
}

static inline float load_half(const uint8_t* in) {
  uint16_t h;
  std::memcpy(&h, in, 2);
  return half_to_float(h);
}

// Low nibbles hold the first half of the block, high nibbles the second.
static inline void pack_nibbles(const uint8_t* __restrict codes, uint8_t* __restrict out) {
  for (int i = 0; i < 16; ++i) out[i] = uint8_t((codes[i] & 15) | (codes[i + 16] << 4));
}

static inline void unpack_nibbles(const uint8_t* in, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = in[i] & 15;
    codes[i + 16] = in[i] >> 4;
  }
}

// The fifth bits of 32 codes, code i at bit i.
static inline void pack_fifth_bits(const uint8_t* codes, uint8_t* out) {
  uint32_t bits = 0;
#if defined(__AVX2__)
  // Bit 4 moved to bit 7 of each byte, where the instruction gathers it.
  const __m256i c = _mm256_loadu_si256((const __m256i*)codes);
  bits = uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(c, 3)));
#else
  for (int i = 0; i < 32; ++i) bits |= uint32_t(codes[i] >> 4 & 1) << i;
#endif
  std::memcpy(out, &bits, 4);
}

static inline void add_fifth_bits(const uint8_t* in, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, in, 4);
  for (int i = 0; i < 32; ++i) codes[i] |= uint8_t((bits >> i & 1) << 4);
}

static inline void clear(Scales* s) { std::memset(s, 0, sizeof *s); }

// ---- the grids: what a packing's file names; fit, encode and decode follow from it --------------

// w = d (code - HALF), codes in 0..2 HALF - 1. The value of largest magnitude becomes code 0.
template <int HALF>
struct PlainSymmetricGrid {
  static void fit(const float* x, const float*, Scales* s, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k) {
      clear(s + k);
      s[k].d = signed_max32(x + k * 32) / float(-HALF);
    }
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      encode32<2 * HALF - 1>(x + k * 32, 0.0f, inverse_or_zero(s[k].d), float(HALF) + 0.5f,
                             codes + k * 32);
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k) {
      const float d = half_to_float(float_to_half(s[k].d));
      for (int i = 0; i < 32; ++i) y[k * 32 + i] = float(int(codes[k * 32 + i]) - HALF) * d;
    }
  }
};

// w = d code + m, codes in 0..LEVELS; `dmin` is the minimum itself.
template <int LEVELS>
struct PlainAffineGrid {
  static void fit(const float* x, const float*, Scales* s, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k) {
      float lo, hi;
      range32(x + k * 32, &lo, &hi);
      clear(s + k);
      s[k].d = (hi - lo) / float(LEVELS);
      s[k].dmin = lo;
    }
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      encode32<LEVELS>(x + k * 32, s[k].dmin, inverse_or_zero(s[k].d), 0.5f, codes + k * 32);
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k) {
      const float d = half_to_float(float_to_half(s[k].d));
      const float m = half_to_float(float_to_half(s[k].dmin));
      for (int i = 0; i < 32; ++i) y[k * 32 + i] = float(codes[k * 32 + i]) * d + m;
    }
  }
};

}  // namespace kvant::KVANT_ISA
