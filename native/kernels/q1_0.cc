// Q1_0: signs, with one scale per 128 weights. Block of 18 bytes: half d, 128 bits.
#include "panels.h"
#include "plain.h"
#include "search.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBlock = 128, kBytes = 18;

// w = d (2 code - 1): the mean magnitude is the best scale, each lane has a block of its own.
struct Grid {
  template <bool WEIGHTED>
  static void fit_some(const float* x, const float* w, Scales* s, int n) {
    vf total = splat(0), weight = splat(0);
    for (int i = 0; i < kBlock; ++i) {
      vf size = splat(0), wi = splat(0);
      for (int l = 0; l < n; ++l) {
        size[l] = bits_float(float_bits(x[l * kBlock + i]) & 0x7fffffffu);
        if constexpr (WEIGHTED) wi[l] = w[l * kBlock + i];
      }
      total += WEIGHTED ? wi * size : size;
      weight += WEIGHTED ? wi : splat(1);
    }
    const vi some = weight > 0.0f;
    const vf mean = total / select(some, weight, splat(1));
    const vf d = vround_to_half(select(some & (mean < splat(__builtin_inff())), mean, splat(0)));
    for (int l = 0; l < n; ++l) {
      clear(s + l);
      s[l].d = d[l];
    }
  }

  static void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
    for (int64_t k = 0; k < blocks; k += kLanes) {
      const int n = int(blocks - k < kLanes ? blocks - k : kLanes);
      if (w)
        fit_some<true>(x + k * kBlock, w + k * kBlock, s + k, n);
      else
        fit_some<false>(x + k * kBlock, nullptr, s + k, n);
    }
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k) {
      const bool up = s[k].d >= 0;
      for (int i = 0; i < kBlock; ++i) codes[k * kBlock + i] = (x[k * kBlock + i] >= 0) == up;
    }
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int i = 0; i < kBlock; ++i)
        y[k * kBlock + i] = float(2 * int(codes[k * kBlock + i]) - 1) * s[k].d;
  }
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, out += kBytes) {
    store_half(out, s[k].d);
    for (int i = 0; i < kBlock / 8; ++i) {
      uint8_t bits = 0;
      for (int b = 0; b < 8; ++b) bits |= uint8_t(codes[k * kBlock + 8 * i + b] << b);
      out[2 + i] = bits;
    }
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, in += kBytes) {
    clear(s + k);
    s[k].d = load_half(in);
    for (int i = 0; i < kBlock; ++i) codes[k * kBlock + i] = in[2 + i / 8] >> (i % 8) & 1;
  }
}

// As blocks of 32 with the levels 0 and 2 around 1: what the engine multiplies.
constexpr int kParts32 = kBlock / 32;

void unlayout32(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; k += kParts32, in += kBytes) {
    Scales whole;
    unlayout(in, codes + k * 32, &whole, 1);
    for (int i = 0; i < kBlock; ++i) codes[k * 32 + i] = uint8_t(codes[k * 32 + i] * 2);
    for (int p = 0; p < kParts32; ++p) s[k + p] = whole;
  }
}

using Panel = Format<2, 0, 32, 32, 1, SubScales::None, false>;

}  // namespace

extern const PackingKernels kQ1_0 = {41, kBlock, kBytes, Grid::fit, Grid::encode,
                                     Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout32, false, kParts32>};

}  // namespace kvant::KVANT_ISA
