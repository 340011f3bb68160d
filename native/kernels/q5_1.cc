// Q5_1: 5-bit codes with a scale and a minimum per 32 weights. Block of 24 bytes: half d, half m, 4 bytes of fifth bits, 16 bytes of nibbles.
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 24;

void fit(const float* x, const float*, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    float lo, hi;
    range32(x + k * 32, &lo, &hi);
    clear(s + k);
    s[k].d = (hi - lo) / 31.0f;
    s[k].dmin = lo;
  }
}

void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k)
    encode32<31>(x + k * 32, s[k].dmin, inverse_or_zero(s[k].d), 0.5f, codes + k * 32);
}

void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const float d = half_to_float(float_to_half(s[k].d));
    const float m = half_to_float(float_to_half(s[k].dmin));
    for (int i = 0; i < 32; ++i) y[k * 32 + i] = float(codes[k * 32 + i]) * d + m;
  }
}

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    uint8_t* block = out + k * kBytes;
    store_half(block, s[k].d);
    store_half(block + 2, s[k].dmin);
    pack_fifth_bits(codes + k * 32, block + 4);
    pack_nibbles(codes + k * 32, block + 8);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const uint8_t* block = in + k * kBytes;
    clear(s + k);
    s[k].d = load_half(block);
    s[k].dmin = load_half(block + 2);
    unpack_nibbles(block + 8, codes + k * 32);
    add_fifth_bits(block + 4, codes + k * 32);
  }
}

}  // namespace

extern const PackingKernels kQ5_1 = {7, 32, kBytes, fit, encode, decode, layout, unlayout};

}  // namespace kvant::KVANT_ISA
