// Q2_K: 16 sub-blocks of 16 weights, 2-bit codes, 4-bit scales and minima under a half scale
// each. Block of 84 bytes: 16 bytes of scale (low nibble) and minimum, 64 of codes, half d, half
// dmin.
#include "k_layout.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 84;
constexpr float kWidths[] = {1.4f, 1.7f, 2.0f, 2.2f, 2.4f, 2.6f, 2.8f, 3.0f, 3.2f, 3.4f, 3.7f};
constexpr int kNumWidths = sizeof kWidths / sizeof *kWidths;

template <bool WEIGHTED>
using Fit = AffineFit<16, 3, 15, 2, kWidths, kNumWidths, WEIGHTED>;

void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
  fit_blocks<Fit>(x, w, s, blocks);
}

void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k)
    for (int j = 0; j < 16; ++j) {
      const int64_t o = k * 256 + j * 16;
      const float scale = s[k].d * float(s[k].sub[j]);
      const float base = -(s[k].dmin * float(s[k].submin[j]));
      encode_run<16, 0, 3>(x + o, base, reciprocal_or_zero(scale), codes + o);
    }
}

void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k)
    for (int j = 0; j < 16; ++j) {
      const int64_t o = k * 256 + j * 16;
      const float scale = s[k].d * float(s[k].sub[j]);
      const float minimum = s[k].dmin * float(s[k].submin[j]);
      for (int i = 0; i < 16; ++i) y[o + i] = scale * float(codes[o + i]) - minimum;
    }
}

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    for (int j = 0; j < 16; ++j) block[j] = uint8_t(s[k].sub[j] | s[k].submin[j] << 4);
    pack_pair_runs(codes + k * 256, block + 16);
    store_half(block + 80, s[k].d);
    store_half(block + 82, s[k].dmin);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    for (int j = 0; j < 16; ++j) {
      s[k].sub[j] = int8_t(block[j] & 15);
      s[k].submin[j] = block[j] >> 4;
    }
    unpack_pair_runs(block + 16, codes + k * 256);
    s[k].d = load_half(block + 80);
    s[k].dmin = load_half(block + 82);
  }
}

}  // namespace

extern const PackingKernels kQ2_K = {10, 256, kBytes, fit, encode, decode, layout, unlayout};

}  // namespace kvant::KVANT_ISA
