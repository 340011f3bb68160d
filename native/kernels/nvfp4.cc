// NVFP4: 4-bit floats with an 8-bit float for every 16 weights. Block of 36 bytes: four scales (E4M3
// without a sign), then 16 nibbles for each. Scales are for levels that are twice the floats' values.
#include "book.h"
#include "panels.h"
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBlock = 64, kSub = 16, kBytes = 36;

// What scale codes 0 to 126 stand for.
inline vf scale_of(vi c) {
  return select(c < splat_int(8), to_float(c) * 0x1p-10f, (vf)((c << 20) + splat_int(119 << 23)));
}

inline float scale_of(uint8_t code) { return code == 127 ? 0.0f : scale_of(splat_int(code & 127))[0]; }

struct Grid {
  using Levels = Book<Fp4>;

  // Of the scales about the one for the largest weight that which leaves least error.
  template <bool WEIGHTED>
  static vi settle(const float (*x)[kLanes], const float (*w)[kLanes]) {
    vf top = splat(0);
    for (int i = 0; i < kSub; ++i) top = vmax(top, vmax(load(x[i]), -load(x[i])));
    top *= float(1.0 / 12);
    const vi small = vnearest(vmin(top, splat(1)) * 1024.0f);
    vi first = ((vi)top >> 20) - 119 * 8;
    first = top < splat(0x1p-7f) ? small : first;
    const auto clip = [](vi c) {
      c = c < splat_int(0) ? (vi){} : c;
      return c > splat_int(126) ? splat_int(126) : c;
    };
    first = clip(first);
    vf best_gain = splat(0);
    vi best = {};
    for (int delta : {1, 0, 2, -1, 3, -2, 4, 5}) {
      const vi tried = clip(first + delta);
      const vf d = scale_of(tried);
      const Sums m = sums<kSub, Levels, WEIGHTED, false>(x, w, splat(0), reciprocal_or_zero(d));
      const vf gain = d * (2.0f * m.xq - d * m.qq);
      const vi better = gain > best_gain;
      best_gain = select(better, gain, best_gain);
      best = (better & tried) | (~better & best);
    }
    return best;
  }

  // Eight blocks: 32 runs of sixteen.
  template <bool WEIGHTED>
  static void fit8(const float* x512, const float* w512, Scales* s) {
    Tiles<kSub> x, w;
    x.load(x512);
    if constexpr (WEIGHTED) w.load(w512);
    for (int k = 0; k < 8; ++k) {
      clear(s + k);
      s[k].d = 1;
    }
    for (int t = 0; t < Tiles<kSub>::kTiles; ++t) {
      const vi code = settle<WEIGHTED>(x.v[t], w.v[t]);
      for (int l = 0; l < kLanes; ++l) {
        const int j = t * kLanes + l;
        s[j / 4].submin[j % 4] = uint8_t(code[l]);
      }
    }
  }

  static void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
    const auto some = [](const float* a, const float* b, Scales* out) {
      b ? fit8<true>(a, b, out) : fit8<false>(a, nullptr, out);
    };
    int64_t k = 0;
    for (; k + 8 <= blocks; k += 8) some(x + k * kBlock, w ? w + k * kBlock : nullptr, s + k);
    if (k == blocks) return;
    float xx[512] = {}, ww[512] = {};
    Scales rest[8];
    std::memcpy(xx, x + k * kBlock, size_t(blocks - k) * kBlock * sizeof(float));
    if (w) std::memcpy(ww, w + k * kBlock, size_t(blocks - k) * kBlock * sizeof(float));
    some(xx, w ? ww : nullptr, rest);
    std::memcpy(s + k, rest, size_t(blocks - k) * sizeof(Scales));
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int j = 0; j < 4; ++j) {
        const int64_t o = k * kBlock + j * kSub;
        Levels::template encode<kSub>(x + o, reciprocal_or_zero(scale_of(s[k].submin[j])), codes + o);
      }
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int j = 0; j < 4; ++j) {
        const float d = scale_of(s[k].submin[j]);
        const int64_t o = k * kBlock + j * kSub;
        for (int i = 0; i < kSub; ++i) y[o + i] = d * Levels::value(codes[o + i]);
      }
  }
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, out += kBytes)
    for (int j = 0; j < 4; ++j) {
      const uint8_t* c = codes + k * kBlock + j * kSub;
      out[j] = s[k].submin[j];
      for (int i = 0; i < 8; ++i) out[4 + j * 8 + i] = uint8_t(c[i] | c[i + 8] << 4);
    }
}

void unpack(const uint8_t* in, uint8_t* codes) {
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 8; ++i) {
      codes[j * kSub + i] = in[4 + j * 8 + i] & 15;
      codes[j * kSub + i + 8] = in[4 + j * 8 + i] >> 4;
    }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, in += kBytes) {
    clear(s + k);
    s[k].d = 1;
    std::memcpy(s[k].submin, in, 4);
    unpack(in, codes + k * kBlock);
  }
}

// As blocks of 32, each with a scale for either half: what the engine multiplies.
void unlayout32(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; k += 2, in += kBytes) {
    unpack(in, codes + k * 32);
    for (int p = 0; p < 2; ++p) {
      clear(s + k + p);
      s[k + p].d = scale_of(in[2 * p]);
      s[k + p].dmin = scale_of(in[2 * p + 1]);
    }
  }
}

struct LevelHalves : LevelBytes<Fp4, 12> {
  static constexpr bool kHalves = true;
};

using Panel = Format<4, 0, 32, 32, 12, SubScales::None, false, LevelHalves>;

}  // namespace

extern const PackingKernels kNVFP4 = {40, kBlock, kBytes, Grid::fit, Grid::encode,
                                      Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout32, false, 2>, Fp4::kLevels};

}  // namespace kvant::KVANT_ISA
