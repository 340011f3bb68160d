// MXFP4: 4-bit floats with one power of two per 32 weights. Block of 17 bytes: exponent, 16 bytes of
// nibbles. The scale 2^(exponent - 128) is for levels that are twice the floats' values.
#include "book.h"
#include "panels.h"
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 17;

// Of a few powers of two the one that leaves least error, for sixteen blocks.
struct Grid : FlatBookGrid<Fp4, kIq4Widths> {
  template <bool WEIGHTED>
  static void settle(const float (*x)[kLanes], const float (*w)[kLanes], float* d) {
    vf top = splat(0);
    for (int i = 0; i < 32; ++i) top = vmax(top, vmax(load(x[i]), -load(x[i])));
    const vi first = ((vi)top >> 23) - 2;  // the largest weight at a level of 8 to 16
    vf best_gain = splat(-1), best = splat(0);
    for (int delta : {0, 1, -1, -2}) {
      const vi e = first + delta;
      const vf power = power_of(e < 0 ? (vi){} : e);
      const Sums m = sums<32, Levels, WEIGHTED, false>(x, w, splat(0), reciprocal_or_zero(power));
      const vf gain = power * (2.0f * m.xq - power * m.qq);
      const vi better = gain > best_gain;
      best_gain = select(better, gain, best_gain);
      best = select(better, power, best);
    }
    store(d, best);
  }

  template <bool WEIGHTED>
  static void fit16(const float* x512, const float* w512, Scales* s) {
    Tiles<32> x, w;
    x.load(x512);
    if constexpr (WEIGHTED) w.load(w512);
    alignas(64) float d[16];
    for (int t = 0; t < Tiles<32>::kTiles; ++t)
      settle<WEIGHTED>(x.v[t], w.v[t], d + t * kLanes);
    for (int k = 0; k < 16; ++k) {
      clear(s + k);
      s[k].d = d[k];
    }
  }

  static void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
    fit_sixteens<fit16<true>, fit16<false>>(x, w, s, blocks);
  }
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    out[k * kBytes] = exponent_of(s[k].d);
    pack_nibbles(codes + k * 32, out + k * kBytes + 1);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    clear(s + k);
    s[k].d = power_of(splat_int(in[k * kBytes]))[0];
    unpack_nibbles(in + k * kBytes + 1, codes + k * 32);
  }
}

struct LevelBits : LevelBytes<Fp4, 12> {
  static constexpr bool kExponents = true;
};

using Panel = Format<4, 0, 32, 32, 12, SubScales::None, false, LevelBits>;

}  // namespace

extern const PackingKernels kMXFP4 = {39, 32, kBytes, Grid::fit, Grid::encode,
                                      Grid::decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout>, Fp4::kLevels};

}  // namespace kvant::KVANT_ISA
