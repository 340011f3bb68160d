// The scale search of the K-packings with a minimum: x ~ s q + b with q in 0..LEVELS, s >= 0 and
// b <= 0 (Q2_K, Q4_K, Q5_K).
#pragma once

#include <initializer_list>
#include <iterator>

#include "search.h"

namespace kvant::KVANT_ISA {

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
    if constexpr (WEIGHTED)
      for (int t = 0; t < Tiles<N>::kTiles; ++t) drop_losses(x.v[t], w.v[t], t * kLanes, out);
  }

  // Sums over weights of very different importance hide the small ones; sub-blocks that lose more
  // than zeros would, counted one by one, become zeros.
  static void drop_losses(const float (*x)[kLanes], const float (*w)[kLanes], int o, Scales* out) {
    alignas(64) float scales[kLanes], minima[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const Scales& s = out[(o + l) / kSubs];
      scales[l] = s.d * float(s.sub[(o + l) % kSubs]);
      minima[l] = s.dmin * float(s.submin[(o + l) % kSubs]);
    }
    const vf ds = load(scales), m = load(minima), base = -m, inverse = reciprocal_or_zero(ds);
    vf error = splat(0), energy = splat(0);
    for (int i = 0; i < N; ++i) {
      const vf xi = load(x[i]), wi = load(w[i]);
      const vf q = vrint(vclamp((xi - base) * inverse, 0, LEVELS));
      const vf rest = xi - (ds * q - m);
      error += wi * (rest * rest);
      energy += wi * (xi * xi);
    }
    const uint32_t worse = lanes(error > energy);
    for (int l = 0; worse >> l; ++l)
      if (worse >> l & 1) {
        out[(o + l) / kSubs].sub[(o + l) % kSubs] = 0;
        out[(o + l) / kSubs].submin[(o + l) % kSubs] = 0;
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
      const Line c = solve(sums<N, Even<0, LEVELS>, WEIGHTED, true>(x, w, base, inverse), sx, sw);
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
    // Writing zeros gains nothing, and is better than what rounding can make of few outliers.
    vf best_sc = splat(0), best_mc = splat(0), best_gain = splat(0);
    Sums best = {splat(0), splat(0), splat(0)};
    for (float delta : {0.0f, -1.0f, 1.0f}) {
      const vf sc = vclamp(nearest + delta, 0, SCALE_MAX);
      const vf ds = d * sc;
      const vf inverse = reciprocal_or_zero(ds);
      vf mc = first_mc;
      for (int round = 0; round < 2; ++round) {
        const vf base = -(dmin * mc);
        const Sums m = sums<N, Even<0, LEVELS>, WEIGHTED, true>(x, w, base, inverse);
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

// ---- the grid: what a K-packing's file names; fit, encode and decode follow from it ------------

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

}  // namespace kvant::KVANT_ISA
