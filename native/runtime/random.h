// Random numbers that depend on a seed and a position alone: Philox-4x32 with ten rounds, from
// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//
// A request's n-th token is drawn with the n-th number of its seed, whatever else runs beside it and
// whether or not the request was interrupted and taken up again; there is no state to lose.
#pragma once

#include <cstdint>

namespace kvant {

// A number in [0, 1), a multiple of 2^-53.
inline double uniform(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ key[0], uint32_t(b),
                              uint32_t(a >> 32) ^ c[3] ^ key[1], uint32_t(a)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t(c[1]) << 32 | c[0]) >> 11;
  return double(bits) * 0x1p-53;
}

}  // namespace kvant
