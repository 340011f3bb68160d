// Dot products with rows in lanes: four columns of every row in one register.
#pragma once

#include "panel.h"
#include "vmath.h"

namespace kvant::KVANT_ISA {

// A panel's sixteen rows take this many registers.
inline constexpr int kParts = kPanelRows / kLanes;

typedef uint8_t vc __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vc16 __attribute__((vector_size(kLanes * 4)));

static inline vc load_codes(const uint8_t* p) {
  vc v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline vi load_words(const void* p) {
  vi v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline vi splat_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
#if defined(__AVX512F__)
  return (vi)_mm512_set1_epi32(word);
#elif defined(__AVX2__)
  return (vi)_mm256_set1_epi32(word);
#else
  return (vi){} + word;
#endif
}

static inline vi splat_int(int32_t x) { return (vi){} + x; }

static inline vf to_float(vi x) { return __builtin_convertvector(x, vf); }

static inline vi multiply_low(vi a, vi b) {
#if defined(__AVX512F__)
  return (vi)_mm512_mullo_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vi)_mm256_mullo_epi32((__m256i)a, (__m256i)b);
#else
  return a * b;
#endif
}

// acc + the sum over four columns of code times activation, in every row. WIDE codes use all eight
// bits; others stay below 64, so pairs of products fit 16 bits.
template <bool WIDE>
static inline vi dot(vi acc, vc codes, const int8_t* four) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, (__m512i)splat_word(four));
#elif defined(__AVX512F__)
  const __m512i a = (__m512i)splat_word(four), ones = _mm512_set1_epi16(1);
  if constexpr (WIDE) {
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i low = _mm512_and_si512((__m512i)codes, mask);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16((__m512i)codes, 4), mask);
    const __m512i l = _mm512_madd_epi16(_mm512_maddubs_epi16(low, a), ones);
    const __m512i h = _mm512_madd_epi16(_mm512_maddubs_epi16(high, a), _mm512_set1_epi16(16));
    return acc + (vi)_mm512_add_epi32(l, h);
  }
  return acc + (vi)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)codes, a), ones);
#elif defined(__AVX2__)
  const __m256i a = (__m256i)splat_word(four), ones = _mm256_set1_epi16(1);
  if constexpr (WIDE) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256((__m256i)codes, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16((__m256i)codes, 4), mask);
    const __m256i l = _mm256_madd_epi16(_mm256_maddubs_epi16(low, a), ones);
    const __m256i h = _mm256_madd_epi16(_mm256_maddubs_epi16(high, a), _mm256_set1_epi16(16));
    return acc + (vi)_mm256_add_epi32(l, h);
  }
  return acc + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)codes, a), ones);
#else
  for (int l = 0; l < kLanes; ++l)
    acc[l] += int(codes[4 * l]) * four[0] + int(codes[4 * l + 1]) * four[1] +
              int(codes[4 * l + 2]) * four[2] + int(codes[4 * l + 3]) * four[3];
  return acc;
#endif
}

// acc + the dot product of two 16-bit numbers a row with the pair at `two`.
static inline vi dot_pairs(vi acc, vi pairs, const int16_t* two) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)pairs, (__m512i)splat_word(two));
#elif defined(__AVX512F__)
  return acc + (vi)_mm512_madd_epi16((__m512i)pairs, (__m512i)splat_word(two));
#elif defined(__AVX2__)
  return acc + (vi)_mm256_madd_epi16((__m256i)pairs, (__m256i)splat_word(two));
#else
  for (int l = 0; l < kLanes; ++l)
    acc[l] += int(int16_t(pairs[l] & 0xffff)) * two[0] + (pairs[l] >> 16) * two[1];
  return acc;
#endif
}

// Bytes to words, one a row.
static inline vi widen(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  vi v;
  for (int l = 0; l < kLanes; ++l) v[l] = p[l];
  return v;
#endif
}

static inline vi widen_signed(const uint8_t* p) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  vi v;
  for (int l = 0; l < kLanes; ++l) v[l] = int8_t(p[l]);
  return v;
#endif
}

// Adds `value` to every code whose bit is set; bit i of the register's bits belongs to byte i.
template <int VALUE>
static inline vc add_bits(vc codes, const uint8_t* bits) {
#if defined(__AVX512F__)
  uint64_t mask;
  std::memcpy(&mask, bits, 8);
  return (vc)_mm512_mask_add_epi8((__m512i)codes, mask, (__m512i)codes, _mm512_set1_epi8(VALUE));
#elif defined(__AVX2__)
  uint32_t mask;
  std::memcpy(&mask, bits, 4);
  const __m256i spread = _mm256_shuffle_epi8(
      _mm256_set1_epi32(int(mask)),
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3,
                       3, 3, 3, 3, 3, 3));
  const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201ull));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
  return codes | (vc)_mm256_and_si256(set, _mm256_set1_epi8(VALUE));
#else
  for (int i = 0; i < kLanes * 4; ++i)
    codes[i] |= uint8_t((bits[i / 8] >> (i % 8) & 1) * VALUE);
  return codes;
#endif
}

// Each byte shifted right, then masked.
template <int SHIFT, int MASK>
static inline vc field(vc x) {
  if constexpr (SHIFT == 0) return x & (uint8_t)MASK;
  return (vc)((vc16)x >> SHIFT) & (uint8_t)MASK;
}

template <int SHIFT, int MASK>
static inline vc field_up(vc x) {
  return (vc)((vc16)x << SHIFT) & (uint8_t)MASK;
}

// Codes 0 to 15 become bytes of a book.
static inline vc look_up(vc codes, const uint8_t* book) {
#if defined(__AVX512F__)
  const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)book));
  return (vc)_mm512_shuffle_epi8(all, (__m512i)codes);
#elif defined(__AVX2__)
  const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)book));
  return (vc)_mm256_shuffle_epi8(all, (__m256i)codes);
#else
  for (int i = 0; i < kLanes * 4; ++i) codes[i] = book[codes[i] & 15];
  return codes;
#endif
}

}  // namespace kvant::KVANT_ISA
