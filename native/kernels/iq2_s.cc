// IQ2_S: eight weights a point of 1024, all signs, odd scales of 16 weights in eighths. Block of 82
// bytes: half d, 32 low bytes of numbers, 32 of signs, 8 of the numbers' high pairs, 8 of scales.
#include "lattice_layout.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 82;

struct P {
  static constexpr int type = 22, table = 22, group = 8, sub = 16, count = 3, steps = 15;
  static constexpr int near = 32;
  static constexpr int8_t levels[] = {8, 25, 43};
  static constexpr float unit = 0.125f;
  static constexpr Signs signs = Signs::Free;
  static constexpr Shifted shifted = Shifted::Nobody;
  static constexpr float widths[] = {0.029f, 0.034f, 0.039f, 0.045f, 0.052f, 0.06f};
  static constexpr int width_count = 6;
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, out += kBytes) {
    std::memset(out + 66, 0, 8);
    store_half(out, s[k].d);
    for (int g = 0; g < 32; ++g) {
      const int number = number_of<P>(codes + 8 * g);
      out[2 + g] = uint8_t(number);
      out[34 + g] = uint8_t(signs_of<P>(codes + 8 * g, 8));
      out[66 + g / 4] |= uint8_t(number >> 8 << 2 * (g % 4));
    }
    for (int j = 0; j < 8; ++j)
      out[74 + j] = uint8_t(half_of(s[k].sub[2 * j]) | half_of(s[k].sub[2 * j + 1]) << 4);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, in += kBytes) {
    clear(s + k);
    s[k].d = load_half(in);
    for (int g = 0; g < 32; ++g) {
      put_point<P>(in[2 + g] | (in[66 + g / 4] >> 2 * (g % 4) & 3) << 8, codes + 8 * g);
      Points<P>::add_signs(in[34 + g], codes + 8 * g, 8);
    }
    for (int j = 0; j < 16; ++j) s[k].sub[j] = odd_of(in[74 + j / 2] >> j % 2 * 4 & 15);
  }
}

}  // namespace

extern const PackingKernels kIQ2_S = lattice_kernels<P, kBytes, unlayout>(layout);

}  // namespace kvant::KVANT_ISA
