// A vector of floats as wide as the instruction set this file is compiled for.
//
// Kernels are written once against this and compiled once per instruction set (see CMakeLists.txt).
// Lanes never mix in a reduction, and multiply and add are never fused (-ffp-contract=off), so a
// kernel gives the same bits at every width, and the same as the NumPy specification.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(KVANT_NEON)  // the scalar set of an ARM machine does without
#include <arm_neon.h>
#endif

namespace kvant::KVANT_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef uint8_t vb __attribute__((vector_size(kLanes)));

static inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

static inline vf splat(float x) {
#if defined(__AVX512F__)
  return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (vf)_mm256_set1_ps(x);
#elif defined(KVANT_NEON)
  return (vf)vdupq_n_f32(x);
#else
  vf v = {};
  for (int l = 0; l < kLanes; ++l) v[l] = x;
  return v;
#endif
}

static inline vf select(vi mask, vf a, vf b) { return mask ? a : b; }

// One bit a lane of a comparison's result.
static inline uint32_t lanes(vi mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)mask));
#elif defined(KVANT_NEON)
  const uint32x4_t place = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32((uint32x4_t)mask, place));
#else
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) bits |= uint32_t(mask[l] & 1) << l;
  return bits;
#endif
}

static inline vf vmin(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

static inline vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// Round to the nearest integer, ties to even. Arguments here are at most 255 in magnitude.
static inline vf vrint(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(KVANT_NEON)
  return (vf)vrndnq_f32((float32x4_t)x);
#else
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves no room for a fraction
  return (x + magic) - magic;
#endif
}

// Least and greatest lane.
static inline float vleast(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_ps((__m512)x);
#else
  float least = x[0];
  for (int l = 1; l < kLanes; ++l)
    if (x[l] < least) least = x[l];
  return least;
#endif
}

static inline float vmost(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float most = x[0];
  for (int l = 1; l < kLanes; ++l)
    if (x[l] > most) most = x[l];
  return most;
#endif
}

// The integer part, towards zero; arguments here are far below 2^31.
static inline vi vtruncate(vf x) { return __builtin_convertvector(x, vi); }

// The nearest integer, ties to even; as vrint.
static inline vi vnearest(vf x) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(KVANT_NEON)
  return (vi)vcvtnq_s32_f32((float32x4_t)x);
#else
  return vtruncate(vrint(x));
#endif
}

// The low bytes of kLanes integers.
static inline void store_bytes(uint8_t* p, vi x) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)x));
#else
  const vb bytes = __builtin_convertvector(x, vb);
  std::memcpy(p, &bytes, kLanes);
#endif
}

static inline vf vclamp(vf x, float lo, float hi) { return vmin(vmax(x, splat(lo)), splat(hi)); }

}  // namespace kvant::KVANT_ISA
