// IEEE half precision and bfloat16, by bit arithmetic: the same on every machine.
#pragma once

#include <cstdint>
#include <cstring>

namespace kvant {

static inline uint32_t float_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

static inline float bits_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16;
  const uint32_t rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // Subnormal and normal alike: place the bits and multiply by 2^112 to move the exponent.
  const float magnitude = bits_float(rest << 13) * bits_float(0x77800000u);
  return bits_float(sign | float_bits(magnitude));
}

// Round to nearest, ties to even; overflow becomes infinity.
static inline uint16_t float_to_half(float x) {
  const uint32_t u = float_bits(x);
  const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7fffffffu;
  if (a >= 0x7f800000u) return uint16_t(sign | 0x7c00u | (a > 0x7f800000u ? 0x200u : 0));
  if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (a < 0x38800000u) {  // subnormal half: adding 0.5 leaves a multiple of 2^-24 in the mantissa
    const float shifted = bits_float(a) + 0.5f;
    return uint16_t(sign | (float_bits(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (a >> 13) & 1u;
  return uint16_t(sign | ((a + 0xfffu + odd - 0x38000000u) >> 13));
}

static inline float bf16_to_float(uint16_t b) { return bits_float(uint32_t(b) << 16); }

static inline uint16_t float_to_bf16(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 64u);  // keep a NaN a NaN
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

}  // namespace kvant
