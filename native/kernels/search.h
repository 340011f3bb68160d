// What the scale searches of the K-packings share (search_affine.h, search_symmetric.h). See
// src/kvant/packing/search.py for the same in NumPy, with the derivation; the two agree bit for bit
// (tests/packing/test_native_matches_spec.py).
//
// Every lane of a vector works on a sub-block of its own, so nothing is summed across lanes and
// every sum runs in the order of the weights. That is fast (no horizontal operation anywhere) and
// makes the result independent of the vector's width.
#pragma once

#include "half.h"
#include "packing.h"
#include "simd.h"

namespace kvant::KVANT_ISA {

// Largest magnitude half precision holds; a scale beyond it is cut rather than made infinite.
static inline float round_to_half(float x) {
  if (x > 65504.0f) x = 65504.0f;
  if (x < -65504.0f) x = -65504.0f;
  return half_to_float(float_to_half(x));
}

// The same for a vector.
static inline vf vround_to_half(vf x) {
  x = vclamp(x, -65504.0f, 65504.0f);
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(KVANT_NEON)
  return (vf)vcvt_f32_f16(vcvt_f16_f32((float32x4_t)x));
#else
  for (int l = 0; l < kLanes; ++l) x[l] = half_to_float(float_to_half(x[l]));
  return x;
#endif
}

// Half-precision scales to try: the nearest ones, but below 128 steps of a subnormal half never the
// smaller neighbour. Rounded down there, a scale cuts the largest integer (up to 128) short by more
// than rounding does, or vanishes; rounded up, it only leaves the integers smaller.
static inline vf scales_near(vf x) {
  const vf h = vround_to_half(x);
  const vf size = vmax(h, -h);
  const vi falls_short = (size < 0x1p-17f) & (size < vmax(x, -x));
  return select(falls_short, select(x < 0.0f, h - 0x1p-24f, h + 0x1p-24f), h);
}

// Two blocks of 256 weights, transposed: tile t holds kLanes sub-blocks, element i of each side by
// side.
template <int N>
struct Tiles {
  static constexpr int kSubs = 512 / N;
  static constexpr int kTiles = kSubs / kLanes;
  alignas(64) float v[kTiles][N][kLanes];

  void load(const float* x) {
    for (int t = 0; t < kTiles; ++t)
      for (int i = 0; i < N; ++i)
        for (int l = 0; l < kLanes; ++l) v[t][i][l] = x[(t * kLanes + l) * N + i];
  }
};

struct Sums {
  vf q, qq, xq;
};

// Levels that are the integers LO..HI. Where it is known that nothing lies outside, CUT need not be.
template <int LO, int HI>
struct Even {
  static constexpr float kInside = HI + 0.49f;  // no code of a smaller width is beyond the ends

  template <bool CUT>
  static inline vf nearest(vf t) {
    return vrint(CUT ? vclamp(t, LO, HI) : t);
  }
};

// Levels nearest to (x - base) * inverse, and their weighted sums.
template <int N, class LEVELS, bool WEIGHTED, bool NEED_Q, bool CUT = true>
static inline Sums sums(const float (*x)[kLanes], const float (*w)[kLanes], vf base, vf inverse) {
  Sums s = {splat(0), splat(0), splat(0)};
  for (int i = 0; i < N; ++i) {
    const vf xi = load(x[i]);
    const vf q = LEVELS::template nearest<CUT>((xi - base) * inverse);
    if constexpr (WEIGHTED) {
      const vf wq = load(w[i]) * q;
      if constexpr (NEED_Q) s.q += wq;
      s.qq += wq * q;
      s.xq += wq * xi;
    } else {
      if constexpr (NEED_Q) s.q += q;
      s.qq += q * q;
      s.xq += q * xi;
    }
  }
  return s;
}

// Below this a scale is zero in half precision, and its reciprocal would overflow.
inline constexpr float kTiny = 1e-30f;

static inline vf reciprocal_or_zero(vf s) {
  const vi usable = vmax(s, -s) > kTiny;
  return select(usable, 1.0f / select(usable, s, splat(1)), splat(0));
}

static inline float reciprocal_or_zero(float s) {
  // By magnitude first: the sign is a coin toss that no processor can foresee.
  return bits_float(float_bits(s) & 0x7fffffffu) > kTiny ? 1.0f / s : 0.0f;
}

// How many scales of a block are tried against the exact scales of its sub-blocks.
inline constexpr int kCandidates = 16;

// Larger than any sum of squares that is of use; beyond it single precision overflows.
inline constexpr float kHuge = 3.0e38f;

// What a candidate has to gain over those before it, so that where several are exact (weights of two
// or three levels) rounding does not choose a different one in every sub-block.
inline constexpr float kMore = 1.000001f;

// Of the candidates top / divisors[i] the one whose multiples by LO..HI are nearest to v[0..N), by
// the sum of weight (v - d integer)^2; of equals the first. Each lane works on a candidate of its
// own. The weight is the curvature of a sub-block's error, so that this is the error the integers
// will cause.
template <int N, int LO, int HI>
static inline float choose_scale(const float* v, const float* weight, float top,
                                 const float* divisors) {
  alignas(64) float d[kCandidates], error[kCandidates];
  vf least = splat(kHuge);
  for (int c = 0; c < kCandidates; c += kLanes) {
    const vf scale = scales_near(splat(top) / load(divisors + c));
    const vf inverse = reciprocal_or_zero(scale);
    vf e = splat(0);
    for (int j = 0; j < N; ++j) {
      const vf rest = v[j] - scale * vrint(vclamp(v[j] * inverse, LO, HI));
      e += weight[j] * (rest * rest);
    }
    e = select(e < kHuge, e, splat(kHuge));  // also where it is not a number
    least = vmin(least, e);
    store(d + c, scale);
    store(error + c, e);
  }
  const vf lowest = splat(vleast(least));
  for (int c = 0;; c += kLanes)
    if (const uint32_t found = lanes(load(error + c) == lowest)) return d[c + __builtin_ctz(found)];
}

// Drive a fit over any number of blocks, two at a time; an odd last block is paired with zeros.
template <template <bool> class Fit>
static void fit_blocks(const float* x, const float* w, Scales* scales, int64_t blocks) {
  int64_t k = 0;
  for (; k + 2 <= blocks; k += 2) {
    if (w) {
      Fit<true>::run(x + k * 256, w + k * 256, scales + k);
    } else {
      Fit<false>::run(x + k * 256, nullptr, scales + k);
    }
  }
  if (k < blocks) {
    float xx[512] = {}, ww[512] = {};
    Scales two[2];
    std::memcpy(xx, x + k * 256, 256 * sizeof(float));
    if (w) {
      std::memcpy(ww, w + k * 256, 256 * sizeof(float));
      Fit<true>::run(xx, ww, two);
    } else {
      Fit<false>::run(xx, nullptr, two);
    }
    scales[k] = two[0];
  }
}

// Codes of N weights under one scale: rint(clamp((x - base) * inverse, LO, HI)) - LO.
template <int N, int LO, int HI>
static inline void encode_run(const float* x, float base, float inverse, uint8_t* codes) {
  for (int i = 0; i < N; i += kLanes) {
    store_bytes(codes + i, vnearest(vclamp((load(x + i) - base) * inverse, LO, HI)) - LO);
  }
}

}  // namespace kvant::KVANT_ISA
