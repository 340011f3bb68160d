// Error feedback and coordinate descent inside one block: see feedback.h. The columns of a row follow
// one another, so the vectors lie along the columns that are corrected, each a sum of its own.
#include "feedback.h"

#include "search.h"
#include "simd.h"

namespace kvant::KVANT_ISA {
namespace {

// The nearest level of a weight, and its code. Evenly spaced levels may also run downwards.
struct Nearest {
  const Levels& levels;
  int64_t block;

  uint8_t operator()(int64_t j, float w, float* q) const {
    const float* v = levels.values + j;
    if (levels.count == 2) {
      const float base = v[0], step = v[block] - v[0];
      float t = (w - base) * reciprocal_or_zero(step);
      t = t > 0.0f ? t : 0.0f;
      t = t < float(levels.most) ? t : float(levels.most);
      constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
      const float code = (t + kMagic) - kMagic;
      *q = base + step * code;
      return uint8_t(code);
    }
    int best = 0;
    float least = kHuge;
    for (int c = 0; c < levels.count; ++c) {
      const float d = w - v[c * block];
      if (d * d < least) {
        least = d * d;
        best = c;
      }
    }
    *q = v[best * block];
    return uint8_t(best);
  }
};

void carry(const Levels& levels, int64_t block, float* w, const float* factor, const float* inverse,
           uint8_t* codes, float* error) {
  const Nearest nearest{levels, block};
  for (int64_t j = 0; j < block; ++j) {
    float q;
    codes[j] = nearest(j, w[j], &q);
    const float e = (w[j] - q) * inverse[j];
    error[j] = e;
    const float* row = factor + j * block;
    for (int64_t i = (j + 1) / kLanes * kLanes; i < block; i += kLanes)
      store(w + i, load(w + i) - e * load(row + i));
  }
}

void descend(const Levels& levels, int64_t block, float* q, float* r, const float* moments,
             const float* inverse, uint8_t* codes, float* change) {
  const Nearest nearest{levels, block};
  for (int64_t j = 0; j < block; ++j) {
    float to;
    const uint8_t code = nearest(j, q[j] - r[j] * inverse[j], &to);
    change[j] = 0;
    if (code == codes[j]) continue;
    const float d = to - q[j];
    codes[j] = code;
    q[j] = to;
    change[j] = d;
    const float* row = moments + j * block;
    for (int64_t i = 0; i < block; i += kLanes) store(r + i, load(r + i) + d * load(row + i));
  }
}

}  // namespace

extern const FeedbackKernels kFeedback = {carry, descend};

}  // namespace kvant::KVANT_ISA
