// The scale search of the K-packings. See src/kvant/packing/search.py for the same in NumPy, with
// the derivation; the two agree bit for bit (tests/packing/test_native_matches_spec.py).
//
// Every lane of a vector works on a sub-block of its own, so nothing is summed across lanes and
// every sum runs in the order of the weights. That is fast (no horizontal operation anywhere) and
// makes the result independent of the vector's width.
#pragma once

#include <initializer_list>
#include <iterator>

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

// Codes q = rint(clamp((x - base) * inverse, LO, HI)) and their weighted sums.
template <int N, int LO, int HI, bool WEIGHTED, bool NEED_Q>
static inline Sums sums(const float (*x)[kLanes], const float (*w)[kLanes], vf base, vf inverse) {
  Sums s = {splat(0), splat(0), splat(0)};
  for (int i = 0; i < N; ++i) {
    const vf xi = load(x[i]);
    const vf q = vrint(vclamp((xi - base) * inverse, LO, HI));
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
  return (s > kTiny || s < -kTiny) ? 1.0f / s : 0.0f;
}

// How many scales of a block are tried against the exact scales of its sub-blocks.
inline constexpr int kCandidates = 16;

// Of the candidates top / divisors[i] the one whose multiples by LO..HI are nearest to v[0..N), by
// the sum of weight (v - d integer)^2; each lane works on a candidate of its own. The weight is the
// curvature of a sub-block's error, so that this is the error the integers will cause.
template <int N, int LO, int HI>
static inline float choose_scale(const float* v, const float* weight, float top,
                                 const float* divisors) {
  float best_d = 0, best = 0;
  for (int c = 0; c < kCandidates; c += kLanes) {
    const vf d = scales_near(splat(top) / load(divisors + c));
    const vf inverse = reciprocal_or_zero(d);
    vf error = splat(0);
    for (int j = 0; j < N; ++j) {
      const vf rest = v[j] - d * vrint(vclamp(v[j] * inverse, LO, HI));
      error += weight[j] * (rest * rest);
    }
    for (int l = 0; l < kLanes; ++l)
      if ((c == 0 && l == 0) || error[l] < best) {
        best = error[l];
        best_d = d[l];
      }
  }
  return best_d;
}

// ---- x ~ s q + b with q in 0..LEVELS, s >= 0 and b <= 0: Q2_K, Q4_K, Q5_K -----------------------

template <int N, int LEVELS, int SCALE_MAX, int REFITS, const float* WIDTHS, int NWIDTHS,
          bool WEIGHTED>
struct AffineFit {
  static constexpr int kSubs = 256 / N;  // in one block

  struct Line {
    vf s, b, gain, qq;
  };

  // Twice the inner products less the squares: how much of sum(w x^2) the line s q + b explains.
  static vf gain_of(const Sums& m, vf sx, vf sw, vf s, vf b) {
    return s * (2.0f * m.xq - s * m.qq) + b * (2.0f * sx - b * sw) - 2.0f * s * b * m.q;
  }

  // Least squares for the codes behind `m`, with b <= 0.
  static Line solve(const Sums& m, vf sx, vf sw) {
    const vf zero = splat(0);
    const vf det = sw * m.qq - m.q * m.q;
    const vi regular = det > 0.0f;
    const vf inv = 1.0f / select(regular, det, splat(1));
    vf s = (sw * m.xq - sx * m.q) * inv;
    vf b = (m.qq * sx - m.q * m.xq) * inv;
    const vi through_zero = (b > 0.0f) | ~regular;
    const vf s0 = select(m.qq > 0.0f, m.xq / select(m.qq > 0.0f, m.qq, splat(1)), zero);
    s = vmax(select(through_zero, s0, s), zero);
    b = select(through_zero, zero, b);
    return {s, b, gain_of(m, sx, sw, s, b), m.qq};
  }

  // What is known of every sub-block of the two blocks at hand.
  struct State {
    alignas(64) float s[512 / N], m[512 / N];          // the best line s q - m, scales still exact
    alignas(64) float sx[512 / N], sw[512 / N];        // its sums that do not depend on codes
    alignas(64) float d[512 / N], dmin[512 / N];       // its block's scales
    alignas(64) float sc[512 / N], mc[512 / N];        // its integers under them
    alignas(64) float gain[512 / N], q[512 / N], qq[512 / N], xq[512 / N];  // what they give
  };

  static void run(const float* x512, const float* w512, Scales* out) {
    out[0] = out[1] = {};  // what remains where sums overflow and no line is better than none
    Tiles<N> x, w;
    x.load(x512);
    if constexpr (WEIGHTED) w.load(w512);
    State st;
    for (int t = 0; t < Tiles<N>::kTiles; ++t) search(x.v[t], w.v[t], t * kLanes, st);

    float gains[2];
    for (int k = 0; k < 2; ++k) {
      gains[k] = -3.0e38f;
      set_block_scales(st, k, first_scale(st.s + k * kSubs, st.qq + k * kSubs),
                       first_scale(st.m + k * kSubs, st.sw + k * kSubs));
    }
    for (int round = 0;; ++round) {
      for (int t = 0; t < Tiles<N>::kTiles; ++t) settle(x.v[t], w.v[t], t * kLanes, st);
      for (int k = 0; k < 2; ++k) keep_if_better(st, k, gains + k, out + k);
      if (round == REFITS) break;
      for (int k = 0; k < 2; ++k) refit(st, k);
    }
  }

  // The block's scale for the exact scales (or minima) of its sub-blocks: the largest becomes an
  // integer about SCALE_MAX, a little above it or as much below as serves the others.
  static float first_scale(const float* v, const float* weight) {
    constexpr float kMax = SCALE_MAX;
    alignas(64) static constexpr float kDivisors[kCandidates] = {
        kMax - 6.5f, kMax - 6.0f, kMax - 5.5f, kMax - 5.0f, kMax - 4.5f, kMax - 4.0f,
        kMax - 3.5f, kMax - 3.0f, kMax - 2.5f, kMax - 2.0f, kMax - 1.5f, kMax - 1.0f,
        kMax - 0.5f, kMax,        kMax + 0.5f, kMax + 1.0f};
    float top = 0;
    for (int j = 0; j < kSubs; ++j)
      if (v[j] > top) top = v[j];
    return choose_scale<kSubs, 0, SCALE_MAX>(v, weight, top, kDivisors);
  }

  static void set_block_scales(State& st, int k, float d, float dmin) {
    d = round_to_half(d);
    dmin = round_to_half(dmin);
    for (int j = k * kSubs; j < (k + 1) * kSubs; ++j) {
      st.d[j] = d;
      st.dmin[j] = dmin;
    }
  }

  static void keep_if_better(const State& st, int k, float* best, Scales* out) {
    float gain = 0;
    for (int j = k * kSubs; j < (k + 1) * kSubs; ++j) gain += st.gain[j];
    if (!(gain > *best)) return;
    *best = gain;
    out->d = st.d[k * kSubs];
    out->dmin = st.dmin[k * kSubs];
    for (int j = 0; j < 16; ++j) {
      out->sub[j] = j < kSubs ? int8_t(st.sc[k * kSubs + j]) : 0;
      out->submin[j] = j < kSubs ? uint8_t(st.mc[k * kSubs + j]) : 0;
    }
  }

  // Least squares for d and dmin of block k, codes and integers fixed.
  static void refit(State& st, int k) {
    float ss = 0, mm = 0, sm = 0, sx = 0, mx = 0;
    for (int j = k * kSubs; j < (k + 1) * kSubs; ++j) {
      ss += st.sc[j] * st.sc[j] * st.qq[j];
      mm += st.mc[j] * st.mc[j] * st.sw[j];
      sm += st.sc[j] * st.mc[j] * st.q[j];
      sx += st.sc[j] * st.xq[j];
      mx += st.mc[j] * st.sx[j];
    }
    const float det = ss * mm - sm * sm;
    float d = ss > 0.0f ? sx / ss : 0.0f, dmin = 0;
    if (det > 0.0f) {
      d = (sx * mm - sm * mx) / det;
      dmin = (d * sm - mx) / mm;
    }
    if (d > 0.0f && dmin >= 0.0f) set_block_scales(st, k, d, dmin);
  }

  // Best line of each sub-block, scales still exact.
  static void search(const float (*x)[kLanes], const float (*w)[kLanes], int o, State& st) {
    vf lo = splat(0), hi = load(x[0]), sx = splat(0), sw = splat(WEIGHTED ? 0.0f : float(N));
    for (int i = 0; i < N; ++i) {
      const vf xi = load(x[i]);
      lo = vmin(lo, xi);
      hi = vmax(hi, xi);
      if constexpr (WEIGHTED) {
        const vf wi = load(w[i]);
        sx += wi * xi;
        sw += wi;
      } else {
        sx += xi;
      }
    }
    const vf step = reciprocal_or_zero(hi - lo);
    Line best = {splat(0), lo, 2.0f * lo * sx - lo * lo * sw, splat(0)};
    const auto consider = [&](vf base, vf inverse) {
      const Line c = solve(sums<N, 0, LEVELS, WEIGHTED, true>(x, w, base, inverse), sx, sw);
      const vi better = c.gain > best.gain;
      best = {select(better, c.s, best.s), select(better, c.b, best.b),
              select(better, c.gain, best.gain), select(better, c.qq, best.qq)};
    };
    for (int c = 0; c < NWIDTHS; ++c) consider(lo, WIDTHS[c] * step);
    for (int r = 0; r < 2; ++r) consider(best.b, reciprocal_or_zero(best.s));
    store(st.s + o, best.s);
    store(st.m + o, -best.b);
    store(st.qq + o, best.qq);
    store(st.sx + o, sx);
    store(st.sw + o, sw);
  }

  // Integer scale and minimum of each sub-block under the block's d and dmin: the neighbours of
  // the exact scale, each with the minimum that suits it, judged by the error they really give.
  static void settle(const float (*x)[kLanes], const float (*w)[kLanes], int o, State& st) {
    const vf d = load(st.d + o), dmin = load(st.dmin + o), s = load(st.s + o), m0 = load(st.m + o);
    const vf sx = load(st.sx + o), sw = load(st.sw + o);
    const vf inv_d = reciprocal_or_zero(d), inv_dmin = reciprocal_or_zero(dmin);
    const vf inv_sw = reciprocal_or_zero(sw);
    const vf nearest = vrint(vclamp(s * inv_d, 0, SCALE_MAX));
    const vf first_mc = vrint(vclamp(m0 * inv_dmin, 0, SCALE_MAX));
    vf best_sc = nearest, best_mc = first_mc, best_gain = splat(-3.0e38f);
    Sums best = {splat(0), splat(0), splat(0)};
    for (float delta : {0.0f, -1.0f, 1.0f}) {
      const vf sc = vclamp(nearest + delta, 0, SCALE_MAX);
      const vf ds = d * sc;
      const vf inverse = reciprocal_or_zero(ds);
      vf mc = first_mc;
      for (int round = 0; round < 2; ++round) {
        const vf base = -(dmin * mc);
        const Sums m = sums<N, 0, LEVELS, WEIGHTED, true>(x, w, base, inverse);
        const vf gain = gain_of(m, sx, sw, ds, base);
        const vi better = gain > best_gain;
        best_sc = select(better, sc, best_sc);
        best_mc = select(better, mc, best_mc);
        best_gain = select(better, gain, best_gain);
        best = {select(better, m.q, best.q), select(better, m.qq, best.qq),
                select(better, m.xq, best.xq)};
        mc = vrint(vclamp((ds * m.q - sx) * inv_sw * inv_dmin, 0, SCALE_MAX));
      }
    }
    store(st.sc + o, best_sc);
    store(st.mc + o, best_mc);
    store(st.gain + o, best_gain);
    store(st.q + o, best.q);
    store(st.qq + o, best.qq);
    store(st.xq + o, best.xq);
  }
};

// ---- x ~ s q with q in -HALF..HALF-1, s of either sign: Q3_K, Q6_K ------------------------------

template <int N, int HALF, int SCALE_HALF, int REFITS, const float* WIDTHS, int NWIDTHS,
          bool WEIGHTED>
struct SymmetricFit {
  static constexpr int kSubs = 256 / N;

  struct State {
    alignas(64) float s[512 / N], d[512 / N], sc[512 / N], gain[512 / N], qq[512 / N], xq[512 / N];
  };

  static void run(const float* x512, const float* w512, Scales* out) {
    out[0] = out[1] = {};  // what remains where sums overflow and no line is better than none
    Tiles<N> x, w;
    x.load(x512);
    if constexpr (WEIGHTED) w.load(w512);
    State st;
    for (int t = 0; t < Tiles<N>::kTiles; ++t) search(x.v[t], w.v[t], t * kLanes, st);
    float gains[2];
    for (int k = 0; k < 2; ++k) {
      gains[k] = -3.0e38f;
      set_block_scale(st, k, first_scale(st.s + k * kSubs, st.qq + k * kSubs));
    }
    for (int round = 0;; ++round) {
      for (int t = 0; t < Tiles<N>::kTiles; ++t) settle(x.v[t], w.v[t], t * kLanes, st);
      for (int k = 0; k < 2; ++k) keep_if_better(st, k, gains + k, out + k);
      if (round == REFITS) break;
      for (int k = 0; k < 2; ++k) refit(st, k);
    }
  }

  // The block's scale for the exact scales of its sub-blocks: the longest becomes an integer near
  // the one end of the range, which is a step longer, or near the other.
  static float first_scale(const float* v, const float* weight) {
    constexpr float kLow = -SCALE_HALF, kHigh = SCALE_HALF - 1;
    alignas(64) static constexpr float kDivisors[kCandidates] = {
        kLow,     kLow + 1,  kLow + 2,  kLow + 3,  kLow + 4,  kLow + 5,  kLow + 6,  kLow + 7,
        kHigh,    kHigh - 1, kHigh - 2, kHigh - 3, kHigh - 4, kHigh - 5, kHigh - 6, kHigh - 7};
    float top = 0;
    for (int j = 0; j < kSubs; ++j)
      if ((v[j] < 0 ? -v[j] : v[j]) > (top < 0 ? -top : top)) top = v[j];
    return choose_scale<kSubs, -SCALE_HALF, SCALE_HALF - 1>(v, weight, top, kDivisors);
  }

  static void set_block_scale(State& st, int k, float d) {
    d = round_to_half(d);
    for (int j = k * kSubs; j < (k + 1) * kSubs; ++j) st.d[j] = d;
  }

  static void keep_if_better(const State& st, int k, float* best, Scales* out) {
    float gain = 0;
    for (int j = k * kSubs; j < (k + 1) * kSubs; ++j) gain += st.gain[j];
    if (!(gain > *best)) return;
    *best = gain;
    out->d = st.d[k * kSubs];
    out->dmin = 0;
    for (int j = 0; j < 16; ++j) {
      out->sub[j] = j < kSubs ? int8_t(st.sc[k * kSubs + j]) : 0;
      out->submin[j] = 0;
    }
  }

  // Least squares for d of block k, codes and integers fixed.
  static void refit(State& st, int k) {
    float ss = 0, sx = 0;
    for (int j = k * kSubs; j < (k + 1) * kSubs; ++j) {
      ss += st.sc[j] * st.sc[j] * st.qq[j];
      sx += st.sc[j] * st.xq[j];
    }
    if (ss > 0.0f) set_block_scale(st, k, sx / ss);
  }

  static void search(const float (*x)[kLanes], const float (*w)[kLanes], int o, State& st) {
    vf top = splat(0);
    for (int i = 0; i < N; ++i) {
      const vf xi = load(x[i]);
      top = select(vmax(xi, -xi) > vmax(top, -top), xi, top);
    }
    const vf step = reciprocal_or_zero(top);
    vf best_s = splat(0), best_gain = splat(0), best_qq = splat(0);
    const auto consider = [&](vf inverse) {
      const Sums m =
          sums<N, -HALF, HALF - 1, WEIGHTED, false>(x, w, splat(0), inverse);
      const vi some = m.qq > 0.0f;
      const vf s = select(some, m.xq / select(some, m.qq, splat(1)), splat(0));
      const vf gain = s * m.xq;
      const vi better = gain > best_gain;
      best_s = select(better, s, best_s);
      best_gain = select(better, gain, best_gain);
      best_qq = select(better, m.qq, best_qq);
    };
    for (int c = 0; c < NWIDTHS; ++c) consider(WIDTHS[c] * step);
    for (int r = 0; r < 2; ++r) consider(reciprocal_or_zero(best_s));
    store(st.s + o, best_s);
    store(st.qq + o, best_qq);
  }

  static void settle(const float (*x)[kLanes], const float (*w)[kLanes], int o, State& st) {
    const vf d = load(st.d + o), s = load(st.s + o);
    const vf nearest = vrint(vclamp(s * reciprocal_or_zero(d), -SCALE_HALF, SCALE_HALF - 1));
    vf best_sc = nearest, best_gain = splat(-3.0e38f), best_qq = splat(0), best_xq = splat(0);
    for (float delta : {0.0f, -1.0f, 1.0f}) {
      const vf sc = vclamp(nearest + delta, -SCALE_HALF, SCALE_HALF - 1);
      const vf ds = d * sc;
      const Sums m = sums<N, -HALF, HALF - 1, WEIGHTED, false>(x, w, splat(0),
                                                                reciprocal_or_zero(ds));
      const vf gain = ds * (2.0f * m.xq - ds * m.qq);
      const vi better = gain > best_gain;
      best_sc = select(better, sc, best_sc);
      best_gain = select(better, gain, best_gain);
      best_qq = select(better, m.qq, best_qq);
      best_xq = select(better, m.xq, best_xq);
    }
    store(st.sc + o, best_sc);
    store(st.gain + o, best_gain);
    store(st.qq + o, best_qq);
    store(st.xq + o, best_xq);
  }
};

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
    const vf q = vrint(vclamp((load(x + i) - base) * inverse, LO, HI));
    store_bytes(codes + i, vtruncate(q) - LO);
  }
}

// ---- the grids: what a K-packing's file names; fit, encode and decode follow from it ------------

// w = (d sub) q - dmin submin, q in 0..LEVELS, N weights a sub-block.
template <int N, int LEVELS, int SCALE_MAX, int REFITS, const auto& WIDTHS>
struct AffineGrid {
  template <bool WEIGHTED>
  using Fit = AffineFit<N, LEVELS, SCALE_MAX, REFITS, WIDTHS, std::size(WIDTHS), WEIGHTED>;

  static void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
    fit_blocks<Fit>(x, w, s, blocks);
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int j = 0; j < 256 / N; ++j) {
        const int64_t o = k * 256 + j * N;
        const float scale = s[k].d * float(s[k].sub[j]);
        const float base = -(s[k].dmin * float(s[k].submin[j]));
        encode_run<N, 0, LEVELS>(x + o, base, reciprocal_or_zero(scale), codes + o);
      }
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int j = 0; j < 256 / N; ++j) {
        const int64_t o = k * 256 + j * N;
        const float scale = s[k].d * float(s[k].sub[j]);
        const float minimum = s[k].dmin * float(s[k].submin[j]);
        for (int i = 0; i < N; ++i) y[o + i] = scale * float(codes[o + i]) - minimum;
      }
  }
};

// w = (d sub) (code - HALF), codes in 0..2 HALF - 1, 16 weights a sub-block.
template <int HALF, int SCALE_HALF, int REFITS, const auto& WIDTHS>
struct SymmetricGrid {
  template <bool WEIGHTED>
  using Fit = SymmetricFit<16, HALF, SCALE_HALF, REFITS, WIDTHS, std::size(WIDTHS), WEIGHTED>;

  static void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
    fit_blocks<Fit>(x, w, s, blocks);
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int j = 0; j < 16; ++j) {
        const int64_t o = k * 256 + j * 16;
        const float scale = s[k].d * float(s[k].sub[j]);
        encode_run<16, -HALF, HALF - 1>(x + o, 0.0f, reciprocal_or_zero(scale), codes + o);
      }
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int j = 0; j < 16; ++j) {
        const int64_t o = k * 256 + j * 16;
        const float scale = s[k].d * float(s[k].sub[j]);
        for (int i = 0; i < 16; ++i) y[o + i] = scale * float(int(codes[o + i]) - HALF);
      }
  }
};

}  // namespace kvant::KVANT_ISA
