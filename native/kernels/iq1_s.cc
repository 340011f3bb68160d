// IQ1_S: eight weights a point of 2048 of levels -1, 0, 1, an odd scale and a shift by an eighth up or
// down for 32 weights. Block of 50 bytes: half d, 32 low bytes of numbers, 8 words of 16 bits: four
// times three high bits, three of scale, one of shift.
#include "lattice_layout.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 50;

struct P {
  static constexpr int type = 19, table = 19, group = 8, sub = 32, count = 3, steps = 7;
  static constexpr int near = 32;
  static constexpr int8_t levels[] = {-8, 0, 8};
  static constexpr float unit = 0.125f;
  static constexpr Signs signs = Signs::None;
  static constexpr Shifted shifted = Shifted::SubBlocks;
  static constexpr float widths[] = {0.08f, 0.095f, 0.11f, 0.125f, 0.14f, 0.155f, 0.175f, 0.20f};
  static constexpr int width_count = 8;
};

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, out += kBytes) {
    store_half(out, s[k].d);
    for (int j = 0; j < 8; ++j) {
      uint32_t word = half_of(s[k].sub[j]) << 12 | uint32_t(s[k].submin[j] != 0) << 15;
      for (int g = 0; g < 4; ++g) {
        const int number = number_of<P>(codes + 32 * j + 8 * g);
        out[2 + 4 * j + g] = uint8_t(number);
        word |= uint32_t(number >> 8) << 3 * g;
      }
      const uint16_t stored = uint16_t(word);
      std::memcpy(out + 34 + 2 * j, &stored, 2);
    }
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k, codes += 256, in += kBytes) {
    clear(s + k);
    s[k].d = load_half(in);
    for (int j = 0; j < 8; ++j) {
      uint16_t word;
      std::memcpy(&word, in + 34 + 2 * j, 2);
      for (int g = 0; g < 4; ++g)
        put_point<P>(in[2 + 4 * j + g] | (word >> 3 * g & 7) << 8, codes + 32 * j + 8 * g);
      s[k].sub[j] = odd_of(word >> 12 & 7);
      s[k].submin[j] = uint8_t(word >> 15);
    }
  }
}

// A panel has no shifts: they become part of the codes.
void unlayout_shifted(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  unlayout(in, codes, s, blocks);
  for (int64_t k = 0; k < blocks; ++k)
    for (int i = 0; i < 256; ++i) codes[k * 256 + i] |= uint8_t(s[k].submin[i / 32] << Points<P>::above);
}

}  // namespace

extern const PackingKernels kIQ1_S = lattice_kernels<P, kBytes, unlayout, unlayout_shifted>(layout);

}  // namespace kvant::KVANT_ISA
