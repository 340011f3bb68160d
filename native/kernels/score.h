// Scoring one row of logits: what a model says of the token that follows, and how far a variant is
// from its base.
#pragma once

#include <cstdint>

namespace kvant {

// Sums over a row run in eight lanes, value i in lane i % 8, and in chunks, each summed by itself
// first. It is the same for every instruction set, and nothing is fused, so all of them give the
// same bits.
inline constexpr int kScoreLanes = 8;
inline constexpr int64_t kScoreChunk = 512;

// What is kept of one model while a row is read. Scratch: the caller only provides it.
struct alignas(64) ScoreSums {
  double weights[kScoreLanes];  // exp(logit - top)
  double cross[kScoreLanes];    // base's weight * (base's logit - this one's), both less their tops
  double top;
  int64_t argtop;  // the first of those as great
};

// Scores one row of a base, `logits[0]`, and of `models - 1` variants, all [vocab].
//   nll[m]       -log p(target), nats
//   kld[m - 1]   KL(base || variant m), nats
//   same[m - 1]  whether both have their greatest logit at one token, the first in a tie
// Returns -1, or the first model with a value that is not finite; nothing is written then.
using ScoreRow = int (*)(const float* const* logits, int models, int64_t vocab, int32_t target,
                         ScoreSums* sums, double* nll, double* kld, uint8_t* same);

}  // namespace kvant
