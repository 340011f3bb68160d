// Levels that are not evenly spaced: a table says what each code stands for. See
// src/kvant/packing/book.py for the same in NumPy.
#pragma once

#include "search_symmetric.h"

namespace kvant::KVANT_ISA {

// ggml's kvalues_iq4nl: closer where normal weights are more frequent.
struct Iq4 {
  static constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
  // Codes by ascending level, and those levels; the last may stand twice.
  static constexpr int8_t kAscending[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
};

// Twice the values of a 4-bit float E2M1, sign in the top bit.
struct Fp4 {
  static constexpr int8_t kLevels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  static constexpr int8_t kAscending[16] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 7};
};

// At which level a candidate of the search puts a block's weight of largest magnitude.
inline constexpr float kIq4Widths[] = {-129, 117, -120, -138, -108, 111, 126, -150, -126, -132, 135, -114};

// table[index] of eight entries, in every lane.
static inline vf lookup8(const float* table, vi index) {
#if defined(__AVX512F__)
  return (vf)_mm512_permutexvar_ps((__m512i)index,
                                   _mm512_castps256_ps512(_mm256_loadu_ps(table)));
#elif defined(__AVX2__)
  return (vf)_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
#else
  vf v;
  for (int l = 0; l < kLanes; ++l) v[l] = table[index[l]];
  return v;
#endif
}

// Level i in ascending order, and the middle between it and the next.
template <class BOOK>
constexpr float level_of(int i) {
  return BOOK::kLevels[int(BOOK::kAscending[i])];
}

template <class BOOK>
constexpr float middle_of(int i) {
  const float a = level_of<BOOK>(i), b = level_of<BOOK>(i + 1);
  return a == b ? __builtin_inff() : (a + b) / 2;
}

// Levels in pairs: the middle between pair j (even) and the next, that within pair j, and its levels.
struct BookTables {
  alignas(32) float between[8], within[8], even[8], odd[8];
};

template <class BOOK>
constexpr BookTables book_tables() {
  BookTables t{};
  for (int j = 0; j < 8; ++j) {
    t.between[j] = middle_of<BOOK>(2 * (j & 6) + 1);
    t.within[j] = middle_of<BOOK>(2 * j);
    t.even[j] = level_of<BOOK>(2 * j);
    t.odd[j] = level_of<BOOK>(2 * j + 1);
  }
  return t;
}

template <class BOOK>
inline constexpr BookTables kBookTables = book_tables<BOOK>();

// The nearest level by bisection: three times between pairs, once within the pair. Halfway between
// two it is the greater.
template <class BOOK>
struct Book {
  static constexpr float kInside = 0;  // levels end by themselves: nothing is cut

  // Pair of levels, and whether it is the second of it.
  static inline vi bisect(vf t, vi* second) {
    constexpr float m3 = middle_of<BOOK>(3), m7 = middle_of<BOOK>(7), m11 = middle_of<BOOK>(11);
    const vi upper = t >= m7;
    const vi quarter = t >= select(upper, splat(m11), splat(m3));
    const vi at = (upper & 4) | (quarter & 2);
    const vi pair = at | ((t >= lookup8(kBookTables<BOOK>.between, at)) & 1);
    *second = t >= lookup8(kBookTables<BOOK>.within, pair);
    return pair;
  }

  template <bool CUT>
  static inline vf nearest(vf t) {
    vi second;
    const vi pair = bisect(t, &second);
    return select(second, lookup8(kBookTables<BOOK>.odd, pair), lookup8(kBookTables<BOOK>.even, pair));
  }

  static inline float value(uint8_t code) { return float(BOOK::kLevels[code]); }

  // Codes of N weights under one scale.
  template <int N>
  static inline void encode(const float* x, float inverse, uint8_t* codes) {
    for (int i = 0; i < N; i += kLanes) {
      vi second;
      const vi pair = bisect(load(x + i) * inverse, &second);
      store_bytes(codes + i, pair * 2 - second);  // a comparison that holds is -1
    }
    for (int i = 0; i < N; ++i) codes[i] = uint8_t(BOOK::kAscending[codes[i]]);
  }
};

// w = (d sub) level, 32 weights a sub-block, sub in -32..31.
template <class BOOK, const auto& WIDTHS>
struct BookGrid {
  using Levels = Book<BOOK>;
  template <bool WEIGHTED>
  using Fit = SymmetricFit<32, Levels, 32, true, 1, WIDTHS, std::size(WIDTHS), WEIGHTED>;

  static void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
    fit_blocks<Fit>(x, w, s, blocks);
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int j = 0; j < 8; ++j) {
        const int64_t o = k * 256 + j * 32;
        const float scale = s[k].d * float(s[k].sub[j]);
        Levels::template encode<32>(x + o, reciprocal_or_zero(scale), codes + o);
      }
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int j = 0; j < 8; ++j) {
        const int64_t o = k * 256 + j * 32;
        const float scale = s[k].d * float(s[k].sub[j]);
        for (int i = 0; i < 32; ++i) y[o + i] = scale * Levels::value(codes[o + i]);
      }
  }
};

// Drive a fit over any number of blocks of 32, sixteen at a time; the last are filled up with zeros.
template <auto WEIGHTED, auto EQUAL>
static void fit_sixteens(const float* x, const float* w, Scales* s, int64_t blocks) {
  const auto some = [](const float* a, const float* b, Scales* out) {
    b ? WEIGHTED(a, b, out) : EQUAL(a, nullptr, out);
  };
  int64_t k = 0;
  for (; k + 16 <= blocks; k += 16) some(x + k * 32, w ? w + k * 32 : nullptr, s + k);
  if (k == blocks) return;
  float xx[512] = {}, ww[512] = {};
  Scales rest[16];
  std::memcpy(xx, x + k * 32, size_t(blocks - k) * 32 * sizeof(float));
  if (w) std::memcpy(ww, w + k * 32, size_t(blocks - k) * 32 * sizeof(float));
  some(xx, w ? ww : nullptr, rest);
  std::memcpy(s + k, rest, size_t(blocks - k) * sizeof(Scales));
}

// w = d level, one scale for a block of 32.
template <class BOOK, const auto& WIDTHS>
struct FlatBookGrid {
  using Levels = Book<BOOK>;

  // Sixteen blocks, as many as two of 256 have sub-blocks.
  template <bool WEIGHTED>
  static void fit16(const float* x512, const float* w512, Scales* s) {
    using Fit = SymmetricFit<32, Levels, 32, true, 1, WIDTHS, std::size(WIDTHS), WEIGHTED>;
    Tiles<32> x, w;
    x.load(x512);
    if constexpr (WEIGHTED) w.load(w512);
    typename Fit::State st;
    for (int t = 0; t < Tiles<32>::kTiles; ++t) {
      Fit::search(x.v[t], w.v[t], t * kLanes, st);
      settle<WEIGHTED>(x.v[t], w.v[t], st.s + t * kLanes);
    }
    for (int k = 0; k < 16; ++k) {
      clear(s + k);
      s[k].d = st.s[k];
    }
  }

  // Of the half-precision scales beside the exact ones those that serve best, or zero.
  template <bool WEIGHTED>
  static void settle(const float (*x)[kLanes], const float (*w)[kLanes], float* s) {
    vf best_gain = splat(0), best = splat(0);
    const vf exact = load(s), nearest = vround_to_half(exact), upper = scales_near(exact);
    const auto offer = [&](vf d) {
      const Sums m = sums<32, Levels, WEIGHTED, false>(x, w, splat(0), reciprocal_or_zero(d));
      const vf gain = d * (2.0f * m.xq - d * m.qq);
      const vi better = gain > best_gain;
      best_gain = select(better, gain, best_gain);
      best = select(better, d, best);
    };
    offer(nearest);
    if (lanes(nearest != upper)) offer(upper);
    store(s, best);
  }

  static void fit(const float* x, const float* w, Scales* s, int64_t blocks) {
    fit_sixteens<fit16<true>, fit16<false>>(x, w, s, blocks);
  }

  static void encode(const float* x, const Scales* s, uint8_t* codes, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      Levels::template encode<32>(x + k * 32, reciprocal_or_zero(s[k].d), codes + k * 32);
  }

  static void decode(const uint8_t* codes, const Scales* s, float* y, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k)
      for (int i = 0; i < 32; ++i) y[k * 32 + i] = s[k].d * Levels::value(codes[k * 32 + i]);
  }
};

}  // namespace kvant::KVANT_ISA
