// The scale search of the K-packings without a minimum: x ~ s q with q in -HALF..HALF-1 and s of
// either sign (Q3_K, Q6_K).
#pragma once

#include <initializer_list>
#include <iterator>
#include <type_traits>

#include "plain.h"
#include "search.h"

namespace kvant::KVANT_ISA {

// With SETTLE the best scale is refined by alternation, neighbours of its integer are tried, and
// REFITS times the block's scale is fitted to the integers; without, the nearest integer is taken.
template <int N, class LEVELS, int SCALE_HALF, bool SETTLE, int REFITS, const float* WIDTHS,
          int NWIDTHS, bool WEIGHTED>
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
    if constexpr (!SETTLE) {
      for (int k = 0; k < 2; ++k) take_nearest(st, k, out + k);
      return;
    }
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

  static float size(float x) { return bits_float(float_bits(x) & 0x7fffffffu); }

  // The exact scale of largest magnitude; of two, the first.
  static float longest(const float* v) {
    if constexpr (kSubs < kLanes) {
      const float* most = v;
      for (int j = 1; j < kSubs; ++j)
        if (size(v[j]) > size(*most)) most = v + j;
      return *most;
    }
    vf lo = load(v), hi = lo;
    for (int j = kLanes; j < kSubs; j += kLanes) {
      lo = vmin(lo, load(v + j));
      hi = vmax(hi, load(v + j));
    }
    const float least = vleast(lo), most = vmost(hi);
    if (most != -least) return longer(least, most);
    while (*v != most && *v != least) ++v;
    return *v;
  }

  // The block's scale for the exact scales of its sub-blocks: the longest becomes an integer near
  // the one end of the range, which is a step longer, or near the other.
  static float first_scale(const float* v, const float* weight) {
    constexpr float kLow = -SCALE_HALF, kHigh = SCALE_HALF - 1;
    alignas(64) static constexpr float kDivisors[kCandidates] = {
        kLow,     kLow + 1,  kLow + 2,  kLow + 3,  kLow + 4,  kLow + 5,  kLow + 6,  kLow + 7,
        kHigh,    kHigh - 1, kHigh - 2, kHigh - 3, kHigh - 4, kHigh - 5, kHigh - 6, kHigh - 7};
    return choose_scale<kSubs, -SCALE_HALF, SCALE_HALF - 1>(v, weight, longest(v), kDivisors);
  }

  static void set_block_scale(State& st, int k, float d) {
    d = round_to_half(d);
    for (int j = k * kSubs; j < (k + 1) * kSubs; ++j) st.d[j] = d;
  }

  // The longest exact scale becomes the largest integer that has a negative, the others the integers
  // nearest to them.
  static void take_nearest(const State& st, int k, Scales* out) {
    const float* s = st.s + k * kSubs;
    out->d = scales_near(splat(longest(s)) / float(SCALE_HALF - 1))[0];
    const float inverse = reciprocal_or_zero(out->d);
    for (int j = 0; j < kSubs; j += kLanes) {
      const vf sc = vclamp(load(s + j) * inverse, -SCALE_HALF, SCALE_HALF - 1);
      store_bytes(reinterpret_cast<uint8_t*>(out->sub) + j, vnearest(sc));
    }
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
    vf lo = load(x[0]), hi = lo;
    for (int i = 1; i < N; ++i) {
      lo = vmin(lo, load(x[i]));
      hi = vmax(hi, load(x[i]));
    }
    vf top = select(hi > -lo, hi, lo);
    if (lanes(hi == -lo)) {  // of two the first
      const vf size = vmax(hi, -lo);
      for (int i = N - 1; i >= 0; --i) {
        const vf xi = load(x[i]);
        top = select((xi == size) | (xi == -size), xi, top);
      }
    }
    const vf step = reciprocal_or_zero(top);
    vf best_s = splat(0), best_gain = splat(0), best_qq = splat(0);
    const auto consider = [&](vf inverse, auto cut) {
      constexpr bool kCut = decltype(cut)::value;
      const Sums m = sums<N, LEVELS, WEIGHTED, false, kCut>(x, w, splat(0), inverse);
      const vi some = m.qq > 0.0f;
      const vf s = select(some, m.xq / select(some, m.qq, splat(1)), splat(0));
      const vf gain = s * m.xq;
      const vi better = (gain > best_gain * kMore) & (gain < kHuge);
      best_s = select(better, s, best_s);
      best_gain = select(better, gain, best_gain);
      best_qq = select(better, m.qq, best_qq);
    };
    for (int c = 0; c < NWIDTHS; ++c) {
      // No code is beyond the width, give or take some rounding, so most need no cutting.
      constexpr float kInside = LEVELS::kInside;
      if (WIDTHS[c] > -kInside && WIDTHS[c] < kInside) {
        consider(WIDTHS[c] * step, std::false_type());
      } else {
        consider(WIDTHS[c] * step, std::true_type());
      }
    }
    if constexpr (SETTLE)
      for (int r = 0; r < 2; ++r) consider(reciprocal_or_zero(best_s), std::true_type());
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
      const Sums m = sums<N, LEVELS, WEIGHTED, false>(x, w, splat(0), reciprocal_or_zero(ds));
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

// ---- the grid: what a K-packing's file names; fit, encode and decode follow from it ------------

// w = (d sub) (code - HALF), codes in 0..2 HALF - 1, 16 weights a sub-block.
template <int HALF, int SCALE_HALF, bool SETTLE, int REFITS, const auto& WIDTHS>
struct SymmetricGrid {
  template <bool WEIGHTED>
  using Fit = SymmetricFit<16, Even<-HALF, HALF - 1>, SCALE_HALF, SETTLE, REFITS, WIDTHS,
                           std::size(WIDTHS), WEIGHTED>;

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
