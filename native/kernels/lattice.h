// Codebook packings: what a point of a table is, its nearest points, and the best of them for a group
// of weights. See src/kvant/packing/lattice.py for the same in NumPy, with the derivation; the two
// agree bit for bit.
//
// Lanes hold points that are tried. What a weight's levels cost is a table of few entries, so a
// point's error is looked up, not computed: two weights of three levels share a table of sixteen.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "lattice_points.h"
#include "search.h"

namespace kvant::KVANT_ISA {

enum class Signs { Free, Even, None };
enum class Shifted { Nobody, SubBlocks, Groups };

// Points tried while scales are searched.
inline constexpr int kNear = 16;

// A packing `P` says: table (ggml's type number), group (4 or 8), sub, count, levels[count], unit,
// steps, signs, shifted, near, and its widths; as LatticeGrid's fields.
template <class P>
struct Points {
  static constexpr int bits = P::group == 8 ? 2 : 3;        // of a level in a point, and in a code
  static constexpr int above = bits;                        // the sign's or the shift's bit in a code
  static constexpr int lookup_bits = P::group == 8 ? 4 : 3;  // of a point that one look-up takes
  // Points under one count of signs.
  static constexpr int span = P::signs == Signs::Even && P::group == 4 ? 2 : 1;
  static constexpr int tuples = P::group == 8 ? 6561 : 4096;
  static_assert(P::group == 8 ? P::count == 3 : P::count == 8);

  // A level as it is multiplied; one that no point has is zero.
  static constexpr float level(int i, bool low) {
    if (i >= P::count) return 0.0f;
    return float(P::levels[i]) + (P::shifted == Shifted::Nobody ? 0.0f : low ? -1.0f : 1.0f);
  }

  // Number of the point with these levels, a byte each; 0 where there is none.
  static inline int number(const uint8_t* levels) {
    static const std::vector<uint16_t> numbers = [] {
      std::vector<uint16_t> n(tuples, 0);
      const PointTable t = points_of(P::table);
      for (int k = 0; k < t.count; ++k) {
        uint8_t of[8];
        to_codes(t.points[k], of);
        n[size_t(tuple(of))] = uint16_t(k);
      }
      return n;
    }();
    return numbers[size_t(tuple(levels))];
  }

  static inline void to_codes(uint32_t point, uint8_t* codes) {
#if defined(__BMI2__)
    if constexpr (P::group == 8) {
      const uint64_t c = _pdep_u64(point, 0x0303030303030303ull);
      std::memcpy(codes, &c, 8);
      return;
    }
    const uint32_t c = _pdep_u32(point, 0x07070707u);
    std::memcpy(codes, &c, 4);
#else
    for (int i = 0; i < P::group; ++i) codes[i] = uint8_t(point >> (bits * i) & ((1 << bits) - 1));
#endif
  }

  // Puts bit i of `signs` above the level of code i.
  static inline void add_signs(uint32_t signs, uint8_t* codes, int n) {
#if defined(__BMI2__)
    if (n == 8) {
      uint64_t c;
      std::memcpy(&c, codes, 8);
      c |= _pdep_u64(signs, 0x0101010101010101ull) << above;
      std::memcpy(codes, &c, 8);
      return;
    }
#endif
    for (int i = 0; i < n; ++i) codes[i] |= uint8_t((signs >> i & 1) << above);
  }

  // Which combination of levels (each in a byte) this is: digits of `count`, the first lowest.
  static inline int tuple(const uint8_t* q) {
    if constexpr (P::group == 8) {
      uint64_t v;
      std::memcpy(&v, q, 8);
      v = (v & 0x00ff00ff00ff00ffull) + 3 * (v >> 8 & 0x00ff00ff00ff00ffull);
      v = (v & 0x0000ffff0000ffffull) + 9 * (v >> 16 & 0x0000ffff0000ffffull);
      return int((v & 0xffff) + 81 * (v >> 32 & 0xffff));
    }
    uint32_t v;
    std::memcpy(&v, q, 4);
    v = (v & 0x00ff00ffu) + 8 * (v >> 8 & 0x00ff00ffu);
    return int((v & 0xffff) + 64 * (v >> 16));
  }

  // For each combination the `P::near` points at the least distance, nearest first; of equals the
  // lower number first. Distances are whole numbers.
  static const uint16_t* near_points(int tuple) {
    static const std::vector<uint16_t> lists = find_near();
    return lists.data() + int64_t(tuple) * P::near;
  }

  static std::vector<uint16_t> find_near() {
    const PointTable t = points_of(P::table);
    std::vector<uint16_t> lists(size_t(tuples) * P::near);
    std::vector<int> levels(size_t(t.count) * P::group);
    for (int k = 0; k < t.count; ++k)
      for (int i = 0; i < P::group; ++i)
        levels[size_t(i * t.count + k)] = P::levels[t.points[k] >> (bits * i) & ((1 << bits) - 1)];
    std::vector<int> distance(size_t(t.count));
    std::vector<uint64_t> order(size_t(t.count));
    for (int n = 0; n < tuples; ++n) {
      std::fill(distance.begin(), distance.end(), 0);
      for (int i = 0, rest = n; i < P::group; ++i, rest /= P::count) {
        const int level = P::levels[rest % P::count];
        const int* of = levels.data() + i * t.count;
        for (int k = 0; k < t.count; ++k) distance[size_t(k)] += (level - of[k]) * (level - of[k]);
      }
      for (int k = 0; k < t.count; ++k) order[size_t(k)] = uint64_t(distance[size_t(k)]) << 16 | unsigned(k);
      std::nth_element(order.begin(), order.begin() + P::near, order.end());
      std::sort(order.begin(), order.begin() + P::near);
      for (int k = 0; k < P::near; ++k)
        lists[size_t(n) * P::near + size_t(k)] = t.points[order[size_t(k)] & 0xffff];
    }
    return lists;
  }
};

// ---- tables of sixteen floats, looked into by the low four bits of a lane -------------------------

inline constexpr int kTableParts = 16 / kLanes;

struct Table {
  vf part[kTableParts];
};

static inline vf look(const Table& t, vi at) {
#if defined(__AVX512F__)
  return (vf)_mm512_permutexvar_ps((__m512i)at, (__m512)t.part[0]);
#elif defined(__AVX2__)
  const __m256 low = _mm256_permutevar8x32_ps((__m256)t.part[0], (__m256i)at);
  const __m256 high = _mm256_permutevar8x32_ps((__m256)t.part[1], (__m256i)at);
  return (vf)_mm256_blendv_ps(low, high, (__m256)_mm256_slli_epi32((__m256i)at, 28));
#else
  float entries[16];
  std::memcpy(entries, t.part, sizeof entries);
  vf v;
  for (int l = 0; l < kLanes; ++l) v[l] = entries[at[l] & 15];
  return v;
#endif
}

static inline vi widen_points(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  vi v;
  for (int l = 0; l < kLanes; ++l) v[l] = p[l];
  return v;
#endif
}

// The levels times a scale, laid out as tables are: of the first weight of an entry and, where an
// entry stands for two, of the second. `turn`: the same times four scales, for signs that turn.
template <class P>
struct Scaled {
  Table first, second, turn_first, turn_second;

  Scaled(float s, bool low) {
    constexpr bool pairs = P::group == 8;
    alignas(64) static constexpr Entries kHigh = entries(false), kLow = entries(true);
    const Entries& e = low ? kLow : kHigh;
    for (int k = 0; k < kTableParts; ++k) {
      const vf one = load(e.first + k * kLanes), two = load(e.second + k * kLanes);
      first.part[k] = splat(s) * one;
      if constexpr (pairs) second.part[k] = splat(s) * two;
      if constexpr (P::signs == Signs::Even) {
        turn_first.part[k] = splat(4.0f * s) * one;
        if constexpr (pairs) turn_second.part[k] = splat(4.0f * s) * two;
      }
    }
  }

 private:
  struct alignas(64) Entries {
    float first[16], second[16];
  };
  static constexpr Entries entries(bool low) {
    Entries e{};
    for (int i = 0; i < 16; ++i) {
      e.first[i] = Points<P>::level(P::group == 8 ? i & 3 : i & 7, low);
      e.second[i] = Points<P>::level(i >> 2, low);
    }
    return e;
  }
};

// A group of weights: magnitudes where signs are stored, importance, their product.
struct Group {
  const float *a, *w, *u;
};

struct Found {
  float error;
  uint32_t point;
};

// Of the NEAR first points of a list the one of least error; of equals the first. With `odd` a sign
// has to be turned, the one where that costs least.
template <class P, int NEAR>
static inline Found nearest(const Group& g, bool odd, const Scaled<P>& s, const uint16_t* list) {
  constexpr bool pairs = P::group == 8;
  constexpr int B = Points<P>::lookup_bits;
  Table cost[4], turn[4];
  for (int t = 0; t < 4; ++t)
    for (int k = 0; k < kTableParts; ++k) {
      const int i = pairs ? 2 * t : t;
      const vf r = splat(g.a[i]) - s.first.part[k];
      vf c = (r * r) * splat(g.w[i]);
      if constexpr (pairs) {
        const vf r2 = splat(g.a[i + 1]) - s.second.part[k];
        c = c + (r2 * r2) * splat(g.w[i + 1]);
      }
      cost[t].part[k] = c;
    }
  if (P::signs == Signs::Even && odd)
    for (int t = 0; t < 4; ++t)
      for (int k = 0; k < kTableParts; ++k) {
        const int i = pairs ? 2 * t : t;
        vf c = splat(g.u[i]) * s.turn_first.part[k];
        if constexpr (pairs) c = vmin(c, splat(g.u[i + 1]) * s.turn_second.part[k]);
        turn[t].part[k] = c;
      }
  vf errors[NEAR / kLanes], least = splat(kHuge);
  for (int k = 0; k < NEAR / kLanes; ++k) {
    const vi p = widen_points(list + k * kLanes);
    vf e = (look(cost[0], p) + look(cost[1], p >> B)) + (look(cost[2], p >> 2 * B) + look(cost[3], p >> 3 * B));
    if (P::signs == Signs::Even && odd)
      e = e + vmin(vmin(look(turn[0], p), look(turn[1], p >> B)),
                   vmin(look(turn[2], p >> 2 * B), look(turn[3], p >> 3 * B)));
    errors[k] = e;
    least = vmin(least, e);
  }
  const float best = vleast(least);
  for (int k = 0; k < NEAR / kLanes; ++k)
    if (const uint32_t found = lanes(errors[k] == splat(best)))
      return {best, list[k * kLanes + __builtin_ctz(found)]};
  return {kHuge, list[0]};  // all beyond what single precision holds
}

// Two groups under one count of signs: a sign is turned in the one or in the other.
struct Pair {
  Found one, two;
  bool first;
};

template <class P, int NEAR>
static inline Pair best_pair(const Group& a, const Group& b, bool odd, const Scaled<P>& s,
                             const uint16_t* near_a, const uint16_t* near_b) {
  const Found one = nearest<P, NEAR>(a, false, s, near_a), two = nearest<P, NEAR>(b, false, s, near_b);
  if (!odd) return {one, two, true};
  const Found one_odd = nearest<P, NEAR>(a, true, s, near_a), two_odd = nearest<P, NEAR>(b, true, s, near_b);
  if (one_odd.error + two.error <= one.error + two_odd.error) return {one_odd, two, true};
  return {one, two_odd, false};
}

// Levels nearest to N weights, each by itself, a byte each.
template <class P, int N>
static inline void round_levels(const float* a, float inverse, bool low, uint8_t* q) {
  constexpr float span = Points<P>::level(P::count - 1, false) - Points<P>::level(0, false);
  constexpr float per_step = 1.0f / float(span / float(P::count - 1));
  for (int i = 0; i < N; i += kLanes) {
    const vf t = (load(a + i) * splat(inverse) - splat(Points<P>::level(0, low))) * splat(per_step);
    store_bytes(q + i, vnearest(vclamp(t, 0, P::count - 1)));
  }
}

}  // namespace kvant::KVANT_ISA
