// IQ2_XS: eight weights a point of 512, an even number of minus signs in them, odd scales of 16
// weights in eighths. Block of 74 bytes: half d, 32 times nine bits of number and seven of signs, 8
// bytes of scales.
#include "lattice_layout.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 74;

struct P {
  static constexpr int type = 17, table = 17, group = 8, sub = 16, count = 3, steps = 15;
  static constexpr int near = 32;
  static constexpr int8_t levels[] = {8, 25, 43};
  static constexpr float unit = 0.125f;
  static constexpr Signs signs = Signs::Even;
  static constexpr Shifted shifted = Shifted::Nobody;
  static constexpr float widths[] = {0.029f, 0.034f, 0.039f, 0.045f, 0.052f, 0.06f};
  static constexpr int width_count = 6;
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, out += kBytes) {
    store_half(out, s[k].d);
    for (int g = 0; g < 32; ++g) {
      const uint8_t* c = codes + 8 * g;
      const uint16_t both = uint16_t(uint32_t(number_of<P>(c)) | (signs_of<P>(c, 8) & 127) << 9);
      std::memcpy(out + 2 + 2 * g, &both, 2);
    }
    for (int j = 0; j < 8; ++j)
      out[66 + j] = uint8_t(half_of(s[k].sub[2 * j]) | half_of(s[k].sub[2 * j + 1]) << 4);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, in += kBytes) {
    clear(s + k);
    s[k].d = load_half(in);
    for (int g = 0; g < 32; ++g) {
      uint16_t both;
      std::memcpy(&both, in + 2 + 2 * g, 2);
      put_point<P>(both & 511, codes + 8 * g);
      Points<P>::add_signs(even_signs(both >> 9), codes + 8 * g, 8);
    }
    for (int j = 0; j < 16; ++j) s[k].sub[j] = odd_of(in[66 + j / 2] >> j % 2 * 4 & 15);
  }
}

}  // namespace

extern const PackingKernels kIQ2_XS = lattice_kernels<P, kBytes, unlayout>(layout);

}  // namespace kvant::KVANT_ISA
