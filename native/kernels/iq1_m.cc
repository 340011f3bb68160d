// IQ1_M: eight weights a point of 2048 of levels -1, 0, 1, shifted by an eighth up or down, an odd
// scale for 16 weights. Block of 56 bytes: 32 low bytes of numbers, 16 bytes of twice three high bits
// and a shift, 4 words of 16 bits: four scales of three bits and four bits of the half d.
#include "lattice_layout.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 56;

struct P {
  static constexpr int type = 29, table = 19, group = 8, sub = 16, count = 3, steps = 7;
  static constexpr int near = 32;
  static constexpr int8_t levels[] = {-8, 0, 8};
  static constexpr float unit = 0.125f;
  static constexpr Signs signs = Signs::None;
  static constexpr Shifted shifted = Shifted::Groups;
  static constexpr float widths[] = {0.08f, 0.095f, 0.11f, 0.125f, 0.14f, 0.155f, 0.175f, 0.20f};
  static constexpr int width_count = 8;
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, out += kBytes) {
    std::memset(out + 32, 0, 16);
    for (int g = 0; g < 32; ++g) {
      const uint8_t* c = codes + 8 * g;
      const int number = number_of<P>(c);
      out[g] = uint8_t(number);
      out[32 + g / 2] |= uint8_t((number >> 8 | (c[0] >> Points<P>::above & 1) << 3) << g % 2 * 4);
    }
    uint8_t half[2];
    store_half(half, s[k].d);
    const uint32_t d = uint32_t(half[0] | half[1] << 8);
    for (int i = 0; i < 4; ++i) {
      uint32_t word = (d >> 4 * i & 15) << 12;
      for (int j = 0; j < 4; ++j) word |= (half_of(s[k].sub[4 * i + j]) & 7) << 3 * j;
      const uint16_t stored = uint16_t(word);
      std::memcpy(out + 48 + 2 * i, &stored, 2);
    }
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, in += kBytes) {
    clear(s + k);
    for (int g = 0; g < 32; ++g) {
      const int high = in[32 + g / 2] >> g % 2 * 4;
      put_point<P>(in[g] | (high & 7) << 8, codes + 8 * g);
      Points<P>::add_signs(high & 8 ? 255 : 0, codes + 8 * g, 8);
    }
    uint32_t d = 0;
    for (int i = 0; i < 4; ++i) {
      uint16_t word;
      std::memcpy(&word, in + 48 + 2 * i, 2);
      d |= uint32_t(word >> 12) << 4 * i;
      for (int j = 0; j < 4; ++j) s[k].sub[4 * i + j] = odd_of(word >> 3 * j & 7);
    }
    const uint8_t half[2] = {uint8_t(d), uint8_t(d >> 8)};
    s[k].d = load_half(half);
  }
}

}  // namespace

extern const PackingKernels kIQ1_M = lattice_kernels<P, kBytes, unlayout>(layout);

}  // namespace kvant::KVANT_ISA
