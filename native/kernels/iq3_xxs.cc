// IQ3_XXS: four weights a point of 256, an even number of minus signs in eight, odd scales of 32
// weights in quarters. Block of 98 bytes: half d, 64 numbers, 8 words of four times seven signs and,
// on top, a scale.
#include "lattice_layout.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 98;

struct P {
  static constexpr int type = 18, table = 18, group = 4, sub = 32, count = 8, steps = 15;
  static constexpr int near = 16;
  static constexpr int8_t levels[] = {4, 12, 20, 28, 36, 44, 52, 62};
  static constexpr float unit = 0.25f;
  static constexpr Signs signs = Signs::Even;
  static constexpr Shifted shifted = Shifted::Nobody;
  static constexpr float widths[] = {0.0235f, 0.0285f, 0.034f, 0.041f, 0.0495f, 0.062f};
  static constexpr int width_count = 6;
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, out += kBytes) {
    store_half(out, s[k].d);
    for (int j = 0; j < 8; ++j) {
      const uint8_t* c = codes + 32 * j;
      for (int g = 0; g < 8; ++g) out[2 + 8 * j + g] = uint8_t(number_of<P>(c + 4 * g));
      uint32_t word = half_of(s[k].sub[j]) << 28;
      for (int i = 0; i < 4; ++i) word |= (signs_of<P>(c + 8 * i, 8) & 127) << 7 * i;
      std::memcpy(out + 66 + 4 * j, &word, 4);
    }
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, in += kBytes) {
    clear(s + k);
    s[k].d = load_half(in);
    for (int j = 0; j < 8; ++j) {
      uint8_t* c = codes + 32 * j;
      for (int g = 0; g < 8; ++g) put_point<P>(in[2 + 8 * j + g], c + 4 * g);
      uint32_t word;
      std::memcpy(&word, in + 66 + 4 * j, 4);
      for (int i = 0; i < 4; ++i) Points<P>::add_signs(even_signs(word >> 7 * i & 127), c + 8 * i, 8);
      s[k].sub[j] = odd_of(word >> 28);
    }
  }
}

}  // namespace

extern const PackingKernels kIQ3_XXS = lattice_kernels<P, kBytes, unlayout>(layout);

}  // namespace kvant::KVANT_ISA
