// One instruction set's kernels, gathered, and the conversions between float widths.
#include <cstring>

#include "half.h"
#include "packing.h"
#include "simd.h"

#define KVANT_NAME_OF(x) #x
#define KVANT_NAME(x) KVANT_NAME_OF(x)

namespace kvant::KVANT_ISA {

const PanelKernels* float_panels(int type);
void prepare_tile(Act act, const float* const* rows, int tokens, int width, int64_t columns,
                  uint8_t* tile);
extern const PackingKernels kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K;
extern const PackingKernels kIQ1_S, kIQ1_M, kIQ2_XXS, kIQ2_XS, kIQ2_S, kIQ3_XXS, kIQ3_S;
extern const PackingKernels kIQ4_NL, kIQ4_XS, kMXFP4, kNVFP4, kTQ1_0, kTQ2_0, kQ1_0;
int score_row(const float* const* logits, int models, int64_t vocab, int32_t target,
              ScoreSums* sums, double* nll, double* kld, uint8_t* same);

extern const RowKernels kRows;
extern const VocabKernels kVocab;
extern const FeedbackKernels kFeedback;
extern const GroupKernels kGroups;

namespace {

const PackingKernels* const kPackings[] = {&kQ4_0, &kQ4_1, &kQ5_0, &kQ5_1, &kQ8_0, &kQ2_K,
                                           &kQ3_K, &kQ4_K, &kQ5_K, &kQ6_K,
                                           &kIQ1_S, &kIQ1_M, &kIQ2_XXS, &kIQ2_XS, &kIQ2_S,
                                           &kIQ3_XXS, &kIQ3_S, &kIQ4_NL, &kIQ4_XS,
                                           &kMXFP4, &kNVFP4, &kTQ1_0, &kTQ2_0, &kQ1_0, nullptr};

// Integers compare as magnitudes do once the sign is off, with infinity and NaN above all others.
// Almost every run is fine, so it is checked as a whole, and searched only where it is not.
int64_t first_beyond(const float* x, int64_t n, float limit) {
  const uint32_t top = float_bits(limit);
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) bad |= uint32_t((float_bits(x[i]) & 0x7fffffffu) > top);
  if (!bad) return -1;
  int64_t i = 0;
  while ((float_bits(x[i]) & 0x7fffffffu) <= top) ++i;
  return i;
}

bool bf16_beyond(const uint8_t* in, int64_t n, float limit) {
  // Its lower half is zeros, so it is beyond exactly where its bits are beyond the limit's upper half.
  const uint16_t top = uint16_t(float_bits(limit) >> 16);
  uint16_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint16_t b;
    std::memcpy(&b, in + 2 * i, 2);
    bad |= uint16_t(uint16_t(b & 0x7fffu) > top);
  }
  return bad != 0;
}

void from_f16(const uint8_t* in, float* out, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(in + 2 * i))));
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(in + 2 * i))));
#elif defined(KVANT_NEON)
  for (; i + 4 <= n; i += 4)
    vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(in + 2 * i))));
#endif
  for (; i < n; ++i) {
    uint16_t h;
    std::memcpy(&h, in + 2 * i, 2);
    out[i] = half_to_float(h);
  }
}

void from_bf16(const uint8_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t b;
    std::memcpy(&b, in + 2 * i, 2);
    out[i] = bf16_to_float(b);
  }
}

void to_f16(const float* in, uint8_t* out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i*)(out + 2 * i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(KVANT_NEON)
  for (; i + 4 <= n; i += 4)
    vst1_u8(out + 2 * i, vreinterpret_u8_f16(vcvt_f16_f32(vld1q_f32(in + i))));
#endif
  for (; i < n; ++i) {
    const uint16_t h = float_to_half(in[i]);
    std::memcpy(out + 2 * i, &h, 2);
  }
}

void to_bf16(const float* in, uint8_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t b = float_to_bf16(in[i]);
    std::memcpy(out + 2 * i, &b, 2);
  }
}

}  // namespace

extern const Isa kIsa = {KVANT_NAME(KVANT_ISA), kPackings, from_f16, from_bf16,
                         to_f16, to_bf16, first_beyond, bf16_beyond, float_panels, prepare_tile,
                         &kRows, score_row, &kVocab, &kFeedback, &kGroups};

}  // namespace kvant::KVANT_ISA
