// Q8_0: signed 8-bit codes with one scale per 32 weights. Block of 34 bytes: half d, 32 codes.
#include "panels.h"
#include "plain.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kBytes = 34;

void fit(const float* x, const float*, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    float lo, hi;
    range32(x + k * 32, &lo, &hi);
    clear(s + k);
    const float down = 0.0f - lo;  // not -lo: no negative zero
    s[k].d = (hi > down ? hi : down) / 127.0f;
  }
}

// Codes are stored as the byte of the signed value. Rounds half away from zero, like roundf: the
// truncated part plus one where at least a half was cut, both of which are exact.
void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const float inverse = inverse_or_zero(s[k].d);
    if (!encodable(inverse)) {
      std::memset(codes + k * 32, 0, 32);
      continue;
    }
    for (int i = 0; i < 32; i += kLanes) {
      const vf t = vclamp(load(x + k * 32 + i) * inverse, -127, 127);
      const vi whole = vtruncate(t);
      const vf rest = t - __builtin_convertvector(whole, vf);
      // A comparison that holds is -1 in each lane.
      store_bytes(codes + k * 32 + i, whole - (rest >= 0.5f) + (rest <= -0.5f));
    }
  }
}

void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    const float d = half_to_float(float_to_half(s[k].d));
    for (int i = 0; i < 32; ++i) y[k * 32 + i] = float(int8_t(codes[k * 32 + i])) * d;
  }
}

void layout(const uint8_t* codes, const Scales* s, uint8_t* out, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    store_half(out + k * kBytes, s[k].d);
    std::memcpy(out + k * kBytes + 2, codes + k * 32, 32);
  }
}

void unlayout(const uint8_t* in, uint8_t* codes, Scales* s, int64_t blocks) {
  for (int64_t k = 0; k < blocks; ++k) {
    clear(s + k);
    s[k].d = load_half(in + k * kBytes);
    std::memcpy(codes + k * 32, in + k * kBytes + 2, 32);
  }
}

using Panel = Format<8, 0, 32, 32, 128, SubScales::None, false>;

}  // namespace

extern const PackingKernels kQ8_0 = {8, 32, kBytes, fit, encode, decode, layout, unlayout,
    &panel_kernels<Panel, kBytes, unlayout, true>};

}  // namespace kvant::KVANT_ISA
