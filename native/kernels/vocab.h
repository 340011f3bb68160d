// Passes over one row of logits, as long as the vocabulary. Compiled once per instruction set.
#pragma once

#include <cstdint>

namespace kvant {

// A row is read in chunks; value i of a chunk goes to lane i % kVocabLanes. Both are the same for
// every instruction set, so sums are added up in the same order and have the same bits everywhere.
inline constexpr int64_t kVocabChunk = 1024;
inline constexpr int64_t kVocabLanes = 16;

inline int64_t vocab_chunks(int64_t n) { return (n + kVocabChunk - 1) / kVocabChunk; }

struct VocabKernels {
  // The greatest value of each lane of each chunk, [chunks, kVocabLanes]; -infinity where a lane has
  // none. Returns whether every value is finite. The k-th greatest of these maxima is at most the
  // k-th greatest value, and nearly equal to it while k is small against their number.
  bool (*maxima)(const float* x, int64_t n, float* lane_max);
  // Copies the values from `least` on and their positions, in ascending order; returns their number.
  int64_t (*gather)(const float* x, int64_t n, const float* lane_max, float least, float* values,
                    int32_t* positions);
  // e[i] = exp((x[i] - most) * scale), for x <= most and scale > 0; the sum of each chunk's.
  void (*weigh)(const float* x, int64_t n, float most, float scale, float* e, double* chunk_sum);
};

}  // namespace kvant
