// Functions carry their instruction set as an attribute: one file, no flags of its own, and each is
// called only after the processor was asked.
#include "peaks.h"

#include <cstring>

#include "x86.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvant {
namespace {

// Twelve sums hide the latency of multiply-add (four or five cycles, two a cycle) and leave
// registers for the operands, also where there are only sixteen.
constexpr int kSums = 12;

// Says that a value may have changed, at no cost. Without it the compiler sees that all sums are
// alike and keeps one, or that every round does the same and multiplies.
#if defined(__x86_64__)
#define KVANT_KEEP(x) asm volatile("" : "+x"(x))
#else
#define KVANT_KEEP(x) asm volatile("" : "+w"(x))
#endif

uint64_t read_plain(const uint8_t* data, size_t bytes) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i < bytes; i += 64) {
    uint64_t words[8];
    std::memcpy(words, data + i, 64);
    for (int k = 0; k < 8; ++k) sums[k] += words[k];
  }
  uint64_t all = 0;
  for (uint64_t s : sums) all += s;
  return all;
}

typedef float Floats __attribute__((vector_size(16)));
typedef int16_t Shorts __attribute__((vector_size(16)));

uint64_t float_plain(int64_t rounds) {
  Floats sums[kSums] = {};
  Floats a = {1e-9f, 2e-9f, 3e-9f, 4e-9f}, b = {1.0f, 0.5f, 0.25f, 0.125f};
  for (auto& s : sums) KVANT_KEEP(s);
  for (int64_t r = 0; r < rounds; ++r) {
    KVANT_KEEP(a);
    for (auto& s : sums) s = s + a * b;
  }
  Floats all = {};
  for (auto& s : sums) all += s;
  return uint64_t(all[0] + all[1]);
}

// 16-bit products are what plain vector code has for small integers.
uint64_t int8_plain(int64_t rounds) {
  Shorts sums[kSums] = {};
  Shorts a = {1, 2, 3, 4, 5, 6, 7, 8}, b = {1, 1, 2, 2, 3, 3, 1, 1};
  for (auto& s : sums) KVANT_KEEP(s);
  for (int64_t r = 0; r < rounds; ++r) {
    KVANT_KEEP(a);
    for (auto& s : sums) s = s + a * b;
  }
  Shorts all = {};
  for (auto& s : sums) all += s;
  return uint64_t(uint16_t(all[0]));
}

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define VNNI256 __attribute__((target("avx2,avxvnni")))
#define BF16 __attribute__((target("avx512f,avx512bw,avx512bf16")))

// The loop of each: sums in registers, an operand the compiler must take as new for every step, as
// the products of some instructions are a step of their own.
#define KVANT_LOOP(STEP)                                          \
  _Pragma("GCC unroll 12") for (auto& sum : s) KVANT_KEEP(sum);   \
  for (int64_t r = 0; r < rounds; ++r)                            \
    _Pragma("GCC unroll 12") for (int k = 0; k < kSums; ++k) {    \
      KVANT_KEEP(a);                                              \
      s[k] = STEP;                                                \
    }

AVX2 uint64_t low256(__m256i x) { return uint64_t(_mm_cvtsi128_si64(_mm256_castsi256_si128(x))); }
AVX512 uint64_t low512(__m512i x) { return uint64_t(_mm_cvtsi128_si64(_mm512_castsi512_si128(x))); }

AVX2 uint64_t read_avx2(const uint8_t* data, size_t bytes) {
  __m256i s[4] = {};
  for (size_t i = 0; i < bytes; i += 128)
    for (int k = 0; k < 4; ++k)
      s[k] = _mm256_xor_si256(s[k], _mm256_load_si256((const __m256i*)(data + i + 32 * k)));
  return low256(_mm256_xor_si256(_mm256_xor_si256(s[0], s[1]), _mm256_xor_si256(s[2], s[3])));
}

AVX512 uint64_t read_avx512(const uint8_t* data, size_t bytes) {
  __m512i s[4] = {};
  for (size_t i = 0; i < bytes; i += 256)
    for (int k = 0; k < 4; ++k)
      s[k] = _mm512_xor_si512(s[k], _mm512_load_si512(data + i + 64 * k));
  return low512(_mm512_xor_si512(_mm512_xor_si512(s[0], s[1]), _mm512_xor_si512(s[2], s[3])));
}

AVX2 uint64_t float_avx2(int64_t rounds) {
  __m256 s[kSums] = {}, a = _mm256_set1_ps(1e-9f), b = _mm256_set1_ps(0.5f);
  KVANT_LOOP(_mm256_fmadd_ps(a, b, s[k]))
  for (int k = 1; k < kSums; ++k) s[0] = _mm256_add_ps(s[0], s[k]);
  return low256(_mm256_castps_si256(s[0]));
}

AVX512 uint64_t float_avx512(int64_t rounds) {
  __m512 s[kSums] = {}, a = _mm512_set1_ps(1e-9f), b = _mm512_set1_ps(0.5f);
  KVANT_LOOP(_mm512_fmadd_ps(a, b, s[k]))
  for (int k = 1; k < kSums; ++k) s[0] = _mm512_add_ps(s[0], s[k]);
  return low512(_mm512_castps_si512(s[0]));
}

AVX2 uint64_t int8_avx2(int64_t rounds) {
  __m256i s[kSums] = {}, a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
  const __m256i ones = _mm256_set1_epi16(1);
  KVANT_LOOP(_mm256_add_epi32(s[k], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones)))
  for (int k = 1; k < kSums; ++k) s[0] = _mm256_add_epi32(s[0], s[k]);
  return low256(s[0]);
}

AVX512 uint64_t int8_avx512(int64_t rounds) {
  __m512i s[kSums] = {}, a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
  const __m512i ones = _mm512_set1_epi16(1);
  KVANT_LOOP(_mm512_add_epi32(s[k], _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones)))
  for (int k = 1; k < kSums; ++k) s[0] = _mm512_add_epi32(s[0], s[k]);
  return low512(s[0]);
}

VNNI uint64_t int8_vnni(int64_t rounds) {
  __m512i s[kSums] = {}, a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
  KVANT_LOOP(_mm512_dpbusd_epi32(s[k], a, b))
  for (int k = 1; k < kSums; ++k) s[0] = _mm512_add_epi32(s[0], s[k]);
  return low512(s[0]);
}

VNNI256 uint64_t int8_vnni256(int64_t rounds) {
  __m256i s[kSums] = {}, a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
  KVANT_LOOP(_mm256_dpbusd_avx_epi32(s[k], a, b))
  for (int k = 1; k < kSums; ++k) s[0] = _mm256_add_epi32(s[0], s[k]);
  return low256(s[0]);
}

BF16 uint64_t bf16_avx512(int64_t rounds) {
  __m512 s[kSums] = {}, a = _mm512_castsi512_ps(_mm512_set1_epi16(0x3080));
  const __m512i b = _mm512_set1_epi16(0x3f00);  // 0.5
  KVANT_LOOP(_mm512_dpbf16_ps(s[k], (__m512bh)a, (__m512bh)b))
  for (int k = 1; k < kSums; ++k) s[0] = _mm512_add_ps(s[0], s[k]);
  return low512(_mm512_castps_si512(s[0]));
}

bool has_avx512() { return x86().avx512f && x86().avx512bw; }

#endif

}  // namespace

Peak best_peak(Arithmetic kind) {
  constexpr double kOps = 2.0 * kSums;
  switch (kind) {
    case Arithmetic::kInt8:
#if defined(__x86_64__)
      if (has_avx512() && x86().avx512vnni) return {int8_vnni, 64 * kOps};
      if (x86().avx2 && x86().avxvnni) return {int8_vnni256, 32 * kOps};
      if (has_avx512()) return {int8_avx512, 64 * kOps};
      if (x86().avx2) return {int8_avx2, 32 * kOps};
#endif
      return {int8_plain, 8 * kOps};
    case Arithmetic::kBf16:
#if defined(__x86_64__)
      if (has_avx512() && x86().avx512bf16) return {bf16_avx512, 32 * kOps};
#endif
      return {nullptr, 0};
    case Arithmetic::kFloat:
#if defined(__x86_64__)
      if (has_avx512()) return {float_avx512, 16 * kOps};
      if (x86().avx2 && x86().fma)
        return {float_avx2, 8 * kOps};
#endif
      return {float_plain, 4 * kOps};
  }
  return {nullptr, 0};
}

uint64_t (*best_reader())(const uint8_t* data, size_t bytes) {
#if defined(__x86_64__)
  if (has_avx512()) return read_avx512;
  if (x86().avx2) return read_avx2;
#endif
  return read_plain;
}

}  // namespace kvant
