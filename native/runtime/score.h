// Rows of logits scored on several threads.
#pragma once

#include <cstdint>
#include <vector>

namespace kvant {

struct ScoreTask {
  std::vector<const float*> logits;  // of the base, then of variants: [rows, vocab] each
  int64_t rows;
  int64_t vocab;
  const int32_t* targets;  // [rows], each below vocab
  double* nll;             // [models, rows]
  double* kld;             // [models - 1, rows]
  uint8_t* same;           // [models - 1, rows]
};

// A row, and the first model in it, with a value that is not finite.
struct NotFinite {
  bool found;
  int64_t row;
  int model;
};

// See ScoreRow for what is computed. Results do not depend on the number of threads. Where a value
// is not finite the first such row is told, and what was written is of no use.
NotFinite score_rows(const ScoreTask& task, int threads);

}  // namespace kvant
