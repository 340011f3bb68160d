// Fused multiply-add, half precision and elementary functions on simd.h's vectors.
//
// Unlike the packings' kernels, those of the engine fuse multiply and add where the machine can:
// nothing is promised across instruction sets.
#pragma once

#include "half.h"
#include "simd.h"

namespace kvant::KVANT_ISA {

// a * b + c, rounded once where the machine has such an instruction.
static inline vf vfma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(KVANT_NEON)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// 0, 1, 2, ... along the lanes.
static inline vi vcount() {
  vi v;
  for (int l = 0; l < kLanes; ++l) v[l] = l;
  return v;
}

static inline vf vload_some(const float* p, int64_t n) {
  float t[kLanes] = {};
  std::memcpy(t, p, size_t(n) * 4);
  return load(t);
}

static inline void vstore_some(float* p, vf v, int64_t n) { std::memcpy(p, &v, size_t(n) * 4); }

static inline vf vload_f16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(KVANT_NEON)
  return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  vf v;
  for (int l = 0; l < kLanes; ++l) v[l] = half_to_float(p[l]);
  return v;
#endif
}

static inline vf vspread_f16(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_set1_epi16(short(*p)));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm_set1_epi16(short(*p)));
#elif defined(KVANT_NEON)
  return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(*p)));
#else
  return splat(half_to_float(*p));
#endif
}

static inline void vstore_f16(uint16_t* p, vf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(KVANT_NEON)
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
  for (int l = 0; l < kLanes; ++l) p[l] = float_to_half(v[l]);
#endif
}

static inline vf vload_i8(const int8_t* p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
  return (vf)_mm512_cvtepi32_ps(wide);
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
  return (vf)_mm256_cvtepi32_ps(wide);
#elif defined(KVANT_NEON)
  int32_t four;
  std::memcpy(&four, p, 4);
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
#else
  vf v;
  for (int l = 0; l < kLanes; ++l) v[l] = float(p[l]);
  return v;
#endif
}

// Lanes added in a fixed order: halves onto halves.
static inline float vtotal(vf x) {
  float t[kLanes];
  store(t, x);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) t[l] += t[l + half];
  return t[0];
}

// x * 2^n for whole n in [-127, 127]; at -127 the result is zero.
static inline vf vscale(vf x, vf n) {
  const vi bits = (vtruncate(n) + 127) << 23;
  return x * (vf)bits;
}

// 2^x for x <= 127, within an ulp; below 2^-126.5 zero, so 2^-inf is. NaN stays NaN: the order of
// vmax's arguments sees to it. Coefficients: Moshier, Cephes, exp2f.
static inline vf vexp2(vf x) {
  x = vmax(splat(-127.0f), x);
  const vf n = vrint(x);
  const vf r = x - n;
  vf p = splat(1.535336188319500e-4f);
  p = vfma(p, r, splat(1.339887440266574e-3f));
  p = vfma(p, r, splat(9.618437357674640e-3f));
  p = vfma(p, r, splat(5.550332471162809e-2f));
  p = vfma(p, r, splat(2.402264791363012e-1f));
  p = vfma(p, r, splat(6.931472028550421e-1f));
  return vscale(vfma(p, r, splat(1.0f)), n);
}

// e^x, within two ulp; from 88 on it stays at e^88, below -87.6 it is zero. Cephes, expf.
static inline vf vexp(vf x) {
  x = vmin(splat(88.0f), vmax(splat(-88.02969f), x));  // -88.03 is -127 ln 2
  const vf n = vrint(x * splat(1.44269504f));
  vf r = vfma(n, splat(-0.693359375f), x);
  r = vfma(n, splat(2.12194440e-4f), r);
  vf p = splat(1.9875691500e-4f);
  p = vfma(p, r, splat(1.3981999507e-3f));
  p = vfma(p, r, splat(8.3334519073e-3f));
  p = vfma(p, r, splat(4.1665795894e-2f));
  p = vfma(p, r, splat(1.6666665459e-1f));
  p = vfma(p, r, splat(5.0000001201e-1f));
  return vscale(vfma(p, r * r, r) + 1.0f, n);
}

// Cephes, tanhf: a polynomial near zero, where the formula by exponentials would cancel.
static inline vf vtanh(vf x) {
  const vf size = (vf)((vi)x & 0x7fffffff);
  const vi sign = (vi)x & (vi)splat(-0.0f);
  const vf z = x * x;
  vf p = splat(-5.70498872745e-3f);
  p = vfma(p, z, splat(2.06390887954e-2f));
  p = vfma(p, z, splat(-5.37397155531e-2f));
  p = vfma(p, z, splat(1.33314422036e-1f));
  p = vfma(p, z, splat(-3.33332819422e-1f));
  const vf small = vfma(p * z, x, x);
  const vf large = 1.0f - 2.0f / (vexp(size + size) + 1.0f);
  return select(size < 0.625f, small, (vf)((vi)large | sign));
}

}  // namespace kvant::KVANT_ISA
