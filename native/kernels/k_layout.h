// Bit layouts shared by K-packings.
#pragma once

#include "plain.h"

namespace kvant::KVANT_ISA {

// Eight 6-bit scales and eight 6-bit minima in 12 bytes (Q4_K, Q5_K): bytes 0..3 hold scales 0..3
// and, in their top two bits, the high bits of scales 4..7; bytes 4..7 the same of the minima;
// bytes 8..11 the low nibbles of scales 4..7 and, above them, of minima 4..7.
static inline void pack_scales_and_minima(const Scales& s, uint8_t* out) {
  for (int j = 0; j < 4; ++j) {
    const uint8_t lo_s = uint8_t(s.sub[j]), hi_s = uint8_t(s.sub[j + 4]);
    const uint8_t lo_m = s.submin[j], hi_m = s.submin[j + 4];
    out[j] = uint8_t(lo_s | (hi_s >> 4) << 6);
    out[j + 4] = uint8_t(lo_m | (hi_m >> 4) << 6);
    out[j + 8] = uint8_t((hi_s & 15) | (hi_m & 15) << 4);
  }
}

static inline void unpack_scales_and_minima(const uint8_t* in, Scales* s) {
  for (int j = 0; j < 4; ++j) {
    s->sub[j] = int8_t(in[j] & 63);
    s->submin[j] = in[j + 4] & 63;
    s->sub[j + 4] = int8_t((in[j + 8] & 15) | (in[j] >> 6) << 4);
    s->submin[j + 4] = uint8_t((in[j + 8] >> 4) | (in[j + 4] >> 6) << 4);
  }
}

// 256 low nibbles in 128 bytes: each run of 64 codes fills 32 bytes, its first half below.
static inline void pack_nibble_runs(const uint8_t* codes, uint8_t* out) {
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 32; ++i)
      out[r * 32 + i] =
          uint8_t((codes[r * 64 + i] & 15) | (codes[r * 64 + 32 + i] & 15) << 4);
}

static inline void unpack_nibble_runs(const uint8_t* in, uint8_t* codes) {
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 32; ++i) {
      codes[r * 64 + i] = in[r * 32 + i] & 15;
      codes[r * 64 + 32 + i] = in[r * 32 + i] >> 4;
    }
}

// 256 two-bit codes in 64 bytes: each run of 128 codes fills 32 bytes, quarter q at bits 2q.
static inline void pack_pair_runs(const uint8_t* codes, uint8_t* out) {
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < 32; ++i) {
      const uint8_t* c = codes + r * 128 + i;
      out[r * 32 + i] = uint8_t((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
    }
}

static inline void unpack_pair_runs(const uint8_t* in, uint8_t* codes) {
  for (int r = 0; r < 2; ++r)
    for (int q = 0; q < 4; ++q)
      for (int i = 0; i < 32; ++i)
        codes[r * 128 + q * 32 + i] = uint8_t(in[r * 32 + i] >> (2 * q) & 3);
}

// One bit of each of 256 codes in 32 bytes: bit r of byte i belongs to code 32 r + i.
static inline void pack_bit_planes(const uint8_t* codes, int shift, uint8_t* out) {
  for (int i = 0; i < 32; ++i) {
    uint8_t b = 0;
    for (int r = 0; r < 8; ++r) b |= uint8_t((codes[r * 32 + i] >> shift & 1) << r);
    out[i] = b;
  }
}

static inline void add_bit_planes(const uint8_t* in, int shift, uint8_t* codes) {
  for (int r = 0; r < 8; ++r)
    for (int i = 0; i < 32; ++i) codes[r * 32 + i] |= uint8_t((in[i] >> r & 1) << shift);
}

}  // namespace kvant::KVANT_ISA
