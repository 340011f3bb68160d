// IQ2_XXS: eight weights a point of 256, an even number of minus signs in them, odd scales of 32
// weights in eighths. Block of 66 bytes: half d, then for 32 weights four numbers and a word of four
// times seven signs and, on top, a scale.
#include "lattice_layout.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 66;

struct P {
  static constexpr int type = 16, table = 16, group = 8, sub = 32, count = 3, steps = 15;
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
    for (int j = 0; j < 8; ++j) {
      const uint8_t* c = codes + 32 * j;
      for (int g = 0; g < 4; ++g) out[2 + 8 * j + g] = uint8_t(number_of<P>(c + 8 * g));
      uint32_t word = half_of(s[k].sub[j]) << 28;
      for (int i = 0; i < 4; ++i) word |= (signs_of<P>(c + 8 * i, 8) & 127) << 7 * i;
      std::memcpy(out + 6 + 8 * j, &word, 4);
    }
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, in += kBytes) {
    clear(s + k);
    s[k].d = load_half(in);
    for (int j = 0; j < 8; ++j) {
      uint8_t* c = codes + 32 * j;
      for (int g = 0; g < 4; ++g) put_point<P>(in[2 + 8 * j + g], c + 8 * g);
      uint32_t word;
      std::memcpy(&word, in + 6 + 8 * j, 4);
      for (int i = 0; i < 4; ++i) Points<P>::add_signs(even_signs(word >> 7 * i & 127), c + 8 * i, 8);
      s[k].sub[j] = odd_of(word >> 28);
    }
  }
}

}  // namespace

extern const PackingKernels kIQ2_XXS = lattice_kernels<P, kBytes, unlayout>(layout);

}  // namespace kvant::KVANT_ISA
