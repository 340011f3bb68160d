// Scoring one row of logits; see score.h.
//
// Everything after the float32 logits is in double: the exponentials cost some ten cycles for eight
// values, and rounding is then far below the divergence of even two 16-bit formats, with plain
// formulas. With a = base's logits less the greatest of them, b = the variant's, A and B the sums
// of their exponentials:
//   -log p(t) = log A - a[t],   KL = sum(exp(a) (a - b)) / A + log(B / A)
#include "score.h"

#include <cmath>
#include <cstring>

#include "simd.h"

namespace kvant::KVANT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kWide = 8;
#elif defined(__AVX2__)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
constexpr int kParts = kScoreLanes / kWide;

typedef double vd __attribute__((vector_size(kWide * 8)));
typedef int64_t vl __attribute__((vector_size(kWide * 8)));
typedef float vh __attribute__((vector_size(kWide * 4)));

inline vd widen(const float* p) {
  vh v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vd);
}

inline vd load_doubles(const double* p) {
  vd v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store_doubles(double* p, vd v) { std::memcpy(p, &v, sizeof v); }

inline vd greater(vd a, vd b) {
#if defined(__AVX512F__)
  return (vd)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (vd)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}

// e^x for x <= 0, to about 2e-16 of itself; below -708, where the result would lose its precision,
// e^-708, which is nothing beside the greatest weight of a row, 1.
// x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts so that r is exact, and a polynomial in r:
// Taylor's, whose first missing term is r^13 / 13! < 2e-16, summed in pairs for shorter chains.
inline vd exponential(vd x) {
  x = greater(x, vd{} - 708.0);
  const vd magic = vd{} + 0x1.8p52;  // adding it leaves no room for a fraction
  const vd shifted = x * 0x1.71547652b82fep0 + magic;
  const vd n = shifted - magic;
  const vd r = (x - n * 0x1.62e42fefa38p-1) - n * 0x1.ef35793c7673p-45;
  const vd s = r * r, q = s * s;
  const vd p0 = r + 1.0, p2 = r * (1.0 / 6) + 0.5;
  const vd p4 = r * (1.0 / 120) + 1.0 / 24, p6 = r * (1.0 / 5040) + 1.0 / 720;
  const vd p8 = r * (1.0 / 362880) + 1.0 / 40320, p10 = r * (1.0 / 39916800) + 1.0 / 3628800;
  const vd high = (q * (1.0 / 479001600) + (p10 * s + p8)) * q + (p6 * s + p4);
  const vd p = high * q + (p2 * s + p0);
  return (vd)((vl)p + ((vl)shifted << 52));  // n stands in the low bits of `shifted`
}

// The greatest logit and where it is first; false if one is not finite.
bool find_top(const float* x, int64_t n, ScoreSums* sums) {
  vf most = splat(-INFINITY);
  vi bits = {};  // the greatest magnitude, as an integer: infinity and NaN are above all others
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vf v = load(x + i);
    const vi magnitude = (vi)v & 0x7fffffff;
    bits = magnitude > bits ? magnitude : bits;
    most = vmax(v, most);
  }
  float top = vmost(most);
  int32_t largest = 0;
  for (int l = 0; l < kLanes; ++l) largest = bits[l] > largest ? bits[l] : largest;
  for (; i < n; ++i) {
    int32_t magnitude;
    std::memcpy(&magnitude, x + i, 4);
    magnitude &= 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
    top = x[i] > top ? x[i] : top;
  }
  if (largest >= 0x7f800000) return false;
  sums->top = top;
  int64_t at = 0;
  const vf wanted = splat(top);
  for (; at + kScoreChunk <= n; at += kScoreChunk) {  // the first chunk that has it
    vi found = {};
    for (int64_t j = 0; j < kScoreChunk; j += kLanes) found |= load(x + at + j) == wanted;
    int32_t any = 0;
    for (int l = 0; l < kLanes; ++l) any |= found[l];
    if (any) break;
  }
  while (x[at] != top) ++at;
  sums->argtop = at;
  return true;
}

// A chunk of a model's logits: its weights are added to `sums`, and left in `weights` unless that is
// null. `n` is a whole number of lanes.
void weigh(const float* x, int64_t n, ScoreSums* sums, double* weights) {
  vd sum[kParts] = {};
  for (int64_t i = 0; i < n; i += kScoreLanes)
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = i + part * kWide;
      const vd e = exponential(widen(x + at) - sums->top);
      sum[part] += e;
      if (weights) store_doubles(weights + at, e);
    }
  for (int part = 0; part < kParts; ++part) {
    double* total = sums->weights + part * kWide;
    store_doubles(total, load_doubles(total) + sum[part]);
  }
}

// The same of a variant, beside its base's chunk.
void compare(const float* x, const float* base, const double* weights, double base_top, int64_t n,
             ScoreSums* sums) {
  vd sum[kParts] = {}, cross[kParts] = {};
  for (int64_t i = 0; i < n; i += kScoreLanes)
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = i + part * kWide;
      const vd b = widen(x + at) - sums->top;
      sum[part] += exponential(b);
      cross[part] += load_doubles(weights + at) * ((widen(base + at) - base_top) - b);
    }
  for (int part = 0; part < kParts; ++part) {
    double* total = sums->weights + part * kWide;
    store_doubles(total, load_doubles(total) + sum[part]);
    total = sums->cross + part * kWide;
    store_doubles(total, load_doubles(total) + cross[part]);
  }
}

double total_of(const double* lanes) {
  double total = 0.0;
  for (int l = 0; l < kScoreLanes; ++l) total += lanes[l];
  return total;
}

// What is left at the end, less than the lanes: value i in lane i as everywhere.
void finish(const float* const* logits, int models, int64_t start, int64_t vocab, ScoreSums* sums) {
  for (int64_t i = start; i < vocab; ++i) {
    const int64_t lane = i - start;
    const double a = double(logits[0][i]) - sums[0].top;
    const double weight = exponential(vd{} + a)[0];
    sums[0].weights[lane] += weight;
    for (int m = 1; m < models; ++m) {
      const double b = double(logits[m][i]) - sums[m].top;
      sums[m].weights[lane] += exponential(vd{} + b)[0];
      sums[m].cross[lane] += weight * (a - b);
    }
  }
}

}  // namespace

int score_row(const float* const* logits, int models, int64_t vocab, int32_t target,
              ScoreSums* sums, double* nll, double* kld, uint8_t* same) {
  for (int m = 0; m < models; ++m) {
    sums[m] = ScoreSums{};
    if (!find_top(logits[m], vocab, &sums[m])) return m;
  }
  alignas(64) double weights[kScoreChunk];
  const int64_t whole = vocab / kScoreLanes * kScoreLanes;
  for (int64_t start = 0; start < whole; start += kScoreChunk) {
    const int64_t n = whole - start < kScoreChunk ? whole - start : kScoreChunk;
    const float* base = logits[0] + start;
    weigh(base, n, &sums[0], models > 1 ? weights : nullptr);
    for (int m = 1; m < models; ++m)
      compare(logits[m] + start, base, weights, sums[0].top, n, &sums[m]);
  }
  finish(logits, models, whole, vocab, sums);
  const double base_total = total_of(sums[0].weights);
  for (int m = 0; m < models; ++m) {
    const double total = total_of(sums[m].weights);
    nll[m] = std::log(total) - (double(logits[m][target]) - sums[m].top);
    if (m == 0) continue;
    // Of two models that are all but equal it can come out at -1e-16, by rounding. No true value is
    // below 0, and what the cut adds to a mean is as small.
    const double divergence = total_of(sums[m].cross) / base_total + std::log(total / base_total);
    kld[m - 1] = divergence > 0.0 ? divergence : 0.0;
    same[m - 1] = sums[m].argtop == sums[0].argtop;
  }
  return -1;
}

}  // namespace kvant::KVANT_ISA
