// Ternary grids: every weight is minus, zero or plus the block's scale. See
// src/kvant/packing/ternary.py for the same in NumPy, with the derivation.
#pragma once

#include "plain.h"
#include "search.h"

namespace kvant::KVANT_ISA {

// w = d (code - 1), codes in 0..2. Each lane works on a block of its own.
struct TernaryGrid {
  struct Sorted {
    alignas(64) float size[256][kLanes], weight[256][kLanes];
  };

  template <bool WEIGHTED>
  static inline void exchange(Sorted& v, int a, int b) {
    const vf sa = load(v.size[a]), sb = load(v.size[b]);
    store(v.size[a], vmax(sa, sb));
    store(v.size[b], vmin(sa, sb));
    if constexpr (WEIGHTED) {
      const vi swap = sa < sb;
      const vf wa = load(v.weight[a]), wb = load(v.weight[b]);
      store(v.weight[a], select(swap, wb, wa));
      store(v.weight[b], select(swap, wa, wb));
    }
  }

  // A bitonic network: magnitudes from the greatest down.
  template <bool WEIGHTED>
  static void sort(Sorted& v) {
    for (int size = 2; size <= 256; size *= 2)
      for (int step = size / 2; step; step /= 2)
        for (int i = 0; i < 256; ++i) {
          const int other = i ^ step;
          if (other < i) continue;
          if (i & size)
            exchange<WEIGHTED>(v, other, i);
          else
            exchange<WEIGHTED>(v, i, other);
        }
  }

  template <bool WEIGHTED>
  static void fit_some(const float* x, const float* w, Scales* s, int n) {
    Sorted v;
    for (int i = 0; i < 256; ++i)
      for (int l = 0; l < kLanes; ++l) {
        v.size[i][l] = l < n ? bits_float(float_bits(x[l * 256 + i]) & 0x7fffffffu) : 0.0f;
        if constexpr (WEIGHTED) v.weight[i][l] = l < n ? w[l * 256 + i] : 0.0f;
      }
    sort<WEIGHTED>(v);
    vf p = splat(0), total = splat(0), best = splat(0), scale = splat(0);
    for (int i = 0; i < 256; ++i) {
      const vf size = load(v.size[i]);
      if constexpr (WEIGHTED) {
        p += load(v.weight[i]) * size;
        total += load(v.weight[i]);
      } else {
        p += size;
        total += 1.0f;
      }
      const vi some = total > 0.0f;
      const vf mean = select(some, p / select(some, total, splat(1)), splat(0));
      const vf gain = mean * p;
      const vi better = (gain > best) & (gain < kHuge);
      best = select(better, gain, best);
      scale = select(better, mean, scale);
    }
    scale = vround_to_half(scale);
    for (int l = 0; l < n; ++l) {
      clear(s + l);
      s[l].d = scale[l];
    }
  }

  static void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
    for (int64_t k = 0; k < blocks; k += kLanes) {
      const int n = int(blocks - k < kLanes ? blocks - k : kLanes);
      if (w)
        fit_some<true>(x + k * 256, w + k * 256, s + k, n);
      else
        fit_some<false>(x + k * 256, nullptr, s + k, n);
    }
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      encode_run<256, -1, 1>(x + k * 256, 0.0f, reciprocal_or_zero(s[k].d), codes + k * 256);
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int i = 0; i < 256; ++i) y[k * 256 + i] = float(int(codes[k * 256 + i]) - 1) * s[k].d;
  }
};

}  // namespace kvant::KVANT_ISA
