// What the files of codebook packings share: signs beside the points, and panels.
#pragma once

#include "lattice_feedback.h"
#include "lattice_search.h"
#include "panels.h"

namespace kvant::KVANT_ISA {

// Sign bits of `n` codes, bit i that of code i.
template <class P>
static inline uint32_t signs_of(const uint8_t* codes, int n) {
  uint32_t signs = 0;
  for (int i = 0; i < n; ++i) signs |= uint32_t(codes[i] >> Points<P>::above & 1) << i;
  return signs;
}

// Seven stored signs are eight: the last makes the number of minus signs even.
static inline uint32_t even_signs(uint32_t seven) {
  return seven | uint32_t(__builtin_popcount(seven) & 1) << 7;
}

template <class P>
static inline void put_point(int number, uint8_t* codes) {
  Points<P>::to_codes(points_of(P::table).points[number], codes);
}

template <class P>
static inline int number_of(const uint8_t* codes) {
  uint64_t levels = 0;
  std::memcpy(&levels, codes, P::group);
  levels &= ((1u << Points<P>::bits) - 1) * 0x0101010101010101ull;
  uint8_t bytes[8];
  std::memcpy(bytes, &levels, 8);
  return Points<P>::number(bytes);
}

// An integer scale in bits: 1, 3, 5, ... as 0, 1, 2, ...
static inline uint32_t half_of(int8_t sub) { return uint32_t(sub - 1) >> 1; }
static inline int8_t odd_of(uint32_t k) { return int8_t(2 * k + 1); }

// A panel's codes are the packing's own, and stand for levels plus the largest.
template <class P>
struct LevelBook {
  static constexpr bool kTable = true, kWide = false;
  static constexpr float kUnit = P::unit;
  static constexpr int zero = int(Points<P>::level(P::count - 1, false));
  static constexpr int entry(int code) {
    constexpr int above = Points<P>::above;
    const int i = code & ((1 << above) - 1);
    if (i >= P::count || code >> above > 1) return 0;
    const bool second = code >> above;
    const int level = int(Points<P>::level(i, P::signs == Signs::None && second));
    return zero + (P::signs != Signs::None && second ? -level : level);
  }
  static constexpr uint8_t values[16] = {
      entry(0), entry(1), entry(2),  entry(3),  entry(4),  entry(5),  entry(6),  entry(7),
      entry(8), entry(9), entry(10), entry(11), entry(12), entry(13), entry(14), entry(15)};
  static_assert(2 * zero <= 128);
  static inline vc look(vc codes) { return look_up(codes, values); }
};

// The engine keeps levels, not numbers of points: three bits a weight (four where there are eight
// levels), so that products need no table of points.
template <class P>
using LevelPanel = Format<P::group == 8 ? 2 : 4, P::group == 8 ? 1 : 0, 256, P::sub, LevelBook<P>::zero,
                          SubScales::OddNibbles, false, LevelBook<P>>;

template <class P, int BYTES, Unlayout UNLAYOUT, Unlayout FOR_PANELS = UNLAYOUT>
inline constexpr PackingKernels lattice_kernels(void (*layout)(const uint8_t*, const Scales*, uint8_t*,
                                                               int64_t)) {
  return {P::type, 256, BYTES, Lattice<P>::fit, Lattice<P>::encode, Lattice<P>::decode, layout, UNLAYOUT,
          &panel_kernels<LevelPanel<P>, BYTES, FOR_PANELS>, nullptr, Lattice<P>::encode_weighted,
          Lattice<P>::encode_groups, Lattice<P>::unit, P::group,
          LatticeFeedback<P>::carry, LatticeFeedback<P>::descend};
}

}  // namespace kvant::KVANT_ISA
