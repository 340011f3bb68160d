// Passes over logits; see vocab.h.
#include "vocab.h"

#include <cmath>

#include "simd.h"

#define KVANT_NAME_OF(x) #x
#define KVANT_NAME(x) KVANT_NAME_OF(x)

namespace kvant::KVANT_ISA {
namespace {

constexpr int kVectors = int(kVocabLanes) / kLanes;
constexpr float kNone = -INFINITY;

inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Whether any lane of x is at least as great as that of y.
inline bool any_from(vf x, vf y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_GE_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)y, _CMP_GE_OQ)) != 0;
#else
  const vi m = x >= y;
  return (m[0] | m[1] | m[2] | m[3]) != 0;
#endif
}

// e^x for x <= 0, within 2 units in the last place; 0 below -87, where floats lose their precision.
// Cephes' expf: x = n ln 2 + r, and a polynomial in r. Nothing is fused, so all widths agree.
inline vf exp_negative(vf x) {
  const vi lost = x < splat(-87.0f);
  x = select(lost, splat(0.0f), x);
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves no room for a fraction
  const vf n = (x * splat(1.44269504088896341f) + magic) - magic;
  const vf r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  vf p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * (r * r) + r + splat(1.0f);
  const vi exponent = __builtin_convertvector(n, vi) + 127;
  return select(lost, splat(0.0f), p * (vf)(exponent << 23));
}

bool maxima(const float* x, int64_t n, float* lane_max) {
  vf spoiled = splat(0.0f);  // 0 * x is 0 for finite x and NaN otherwise
  float spoiled_rest = 0.0f;
  for (int64_t start = 0; start < n; start += kVocabChunk, lane_max += kVocabLanes) {
    const int64_t stop = least_of(start + kVocabChunk, n);
    vf most[kVectors];
    for (vf& m : most) m = splat(kNone);
    int64_t i = start;
    for (; i + kVocabLanes <= stop; i += kVocabLanes)
      for (int v = 0; v < kVectors; ++v) {
        const vf a = load(x + i + v * kLanes);
        most[v] = vmax(a, most[v]);
        spoiled += a * splat(0.0f);
      }
    for (int v = 0; v < kVectors; ++v) store(lane_max + v * kLanes, most[v]);
    for (int64_t lane = 0; i < stop; ++i, ++lane) {
      if (x[i] > lane_max[lane]) lane_max[lane] = x[i];
      spoiled_rest += x[i] * 0.0f;
    }
  }
  for (int l = 0; l < kLanes; ++l) spoiled_rest += spoiled[l];
  return spoiled_rest == 0.0f;
}

int64_t gather(const float* x, int64_t n, const float* lane_max, float least, float* values,
               int32_t* positions) {
  int64_t found = 0;
  const vf limit = splat(least);
  const auto take = [&](int64_t i) {
    if (x[i] >= least) {
      values[found] = x[i];
      positions[found++] = int32_t(i);
    }
  };
  for (int64_t start = 0; start < n; start += kVocabChunk, lane_max += kVocabLanes) {
    bool any = false;
    for (int v = 0; v < kVectors; ++v) any |= any_from(load(lane_max + v * kLanes), limit);
    if (!any) continue;
    const int64_t stop = least_of(start + kVocabChunk, n);
    int64_t i = start;
    for (; i + kLanes <= stop; i += kLanes)
      if (any_from(load(x + i), limit))
        for (int l = 0; l < kLanes; ++l) take(i + l);
    for (; i < stop; ++i) take(i);
  }
  return found;
}

void weigh(const float* x, int64_t n, float most, float scale, float* e, double* chunk_sum) {
  const vf top = splat(most), by = splat(scale);
  for (int64_t start = 0; start < n; start += kVocabChunk) {
    const int64_t stop = least_of(start + kVocabChunk, n);
    vf sums[kVectors];
    for (vf& s : sums) s = splat(0.0f);
    int64_t i = start;
    for (; i + kVocabLanes <= stop; i += kVocabLanes)
      for (int v = 0; v < kVectors; ++v) {
        const vf w = exp_negative((load(x + i + v * kLanes) - top) * by);
        store(e + i + v * kLanes, w);
        sums[v] += w;
      }
    float lanes[kVocabLanes];
    for (int v = 0; v < kVectors; ++v) store(lanes + v * kLanes, sums[v]);
    for (int64_t lane = 0; i < stop; ++i, ++lane) {
      e[i] = exp_negative((splat(x[i]) - top) * by)[0];
      lanes[lane] += e[i];
    }
    double sum = 0.0;
    for (const float lane : lanes) sum += double(lane);
    *chunk_sum++ = sum;
  }
}

}  // namespace

extern const VocabKernels kVocab = {maxima, gather, weigh};

}  // namespace kvant::KVANT_ISA
