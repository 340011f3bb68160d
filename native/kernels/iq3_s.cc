// IQ3_S: four weights a point of 512, all signs, odd scales of 32 weights. Block of 110 bytes: half d,
// 64 low bytes of numbers, 8 bytes of their ninth bits, 32 of signs, 4 of scales.
#include "lattice_layout.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 110;

struct P {
  static constexpr int type = 21, table = 21, group = 4, sub = 32, count = 8, steps = 15;
  static constexpr int near = 16;
  static constexpr int8_t levels[] = {1, 3, 5, 7, 9, 11, 13, 15};
  static constexpr float unit = 1.0f;
  static constexpr Signs signs = Signs::Free;
  static constexpr Shifted shifted = Shifted::Nobody;
  static constexpr float widths[] = {0.095f, 0.115f, 0.138f, 0.165f, 0.2f, 0.25f};
  static constexpr int width_count = 6;
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, out += kBytes) {
    std::memset(out + 66, 0, 8);
    store_half(out, s[k].d);
    for (int g = 0; g < 64; ++g) {
      const int number = number_of<P>(codes + 4 * g);
      out[2 + g] = uint8_t(number);
      out[66 + g / 8] |= uint8_t(number >> 8 << g % 8);
    }
    for (int i = 0; i < 32; ++i) out[74 + i] = uint8_t(signs_of<P>(codes + 8 * i, 8));
    for (int j = 0; j < 4; ++j)
      out[106 + j] = uint8_t(half_of(s[k].sub[2 * j]) | half_of(s[k].sub[2 * j + 1]) << 4);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, in += kBytes) {
    clear(s + k);
    s[k].d = load_half(in);
    for (int g = 0; g < 64; ++g)
      put_point<P>(in[2 + g] | (in[66 + g / 8] >> g % 8 & 1) << 8, codes + 4 * g);
    for (int i = 0; i < 32; ++i) Points<P>::add_signs(in[74 + i], codes + 8 * i, 8);
    for (int j = 0; j < 8; ++j) s[k].sub[j] = odd_of(in[106 + j / 2] >> j % 2 * 4 & 15);
  }
}

}  // namespace

extern const PackingKernels kIQ3_S = lattice_kernels<P, kBytes, unlayout>(layout);

}  // namespace kvant::KVANT_ISA
