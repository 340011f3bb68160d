// From a row of logits to the next token.
//
// Order, as in vLLM: logit bias; repetition, frequency and presence penalty; temperature; min-p;
// top-k; top-p, of the mass that is left. All of them together keep a set of tokens, and the token
// is the one where the cumulated probability of that set, in the order of ids, passes a random
// number. Ranks are by value, and by lower id among equals, so the set is always the same.
//
// Nothing sorts the vocabulary: one vectorised pass finds maxima of strided blocks, these give a
// value that the wanted tokens cannot be below, and only what is from there on is looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace kvant {

struct SamplerOptions {
  float temperature = 1.0f;  // 0: the likeliest token
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition = 1.0f;
  float frequency = 0.0f;
  float presence = 0.0f;
  uint64_t seed = 0;
  int32_t logprobs = -1;                        // -1: none; n: the chosen token's and the best n
  std::vector<std::pair<int32_t, float>> bias;  // -infinity forbids a token
};

inline int64_t mask_words(int64_t vocab) { return (vocab + 31) / 32; }

// What became of a row.
enum class Fault : int {
  none = 0,
  logits = 1,    // the model gave NaN or infinity
  nothing = 2,   // bias, penalties and the mask left no token possible
};

struct Draw {
  int32_t token = -1;
  Fault fault = Fault::none;
  // Natural logarithms of the unmodified softmax, at temperature 1 and before any filter.
  double logprob = 0.0;
  std::vector<std::pair<int32_t, double>> top;  // likeliest first
};

class Sampler {
 public:
  // Options are checked by the caller, except that biased tokens must be below `vocab`.
  Sampler(SamplerOptions options, int64_t vocab);

  int64_t vocab() const { return vocab_; }
  const SamplerOptions& options() const { return options_; }

  // Tokens of the prompt: the repetition penalty knows them, the other two do not.
  void prompt(const int32_t* tokens, int64_t n);
  // Tokens of the answer that were not drawn here (a request taken up again).
  void accept(const int32_t* tokens, int64_t n);
  // How many tokens of the answer there are; the position in the stream of random numbers.
  uint64_t position() const { return position_; }
  // Go on from another place in that stream; penalties are not told.
  void seek(uint64_t position) { position_ = position; }

  // Draw from `logits` [vocab], and accept what was drawn. Where `allowed` is not null, only tokens
  // whose bits are set there may be drawn: `mask_words(vocab)` words, the lowest bit first.
  Draw sample(const float* logits, const uint32_t* allowed = nullptr);

 private:
  struct Seen {
    int32_t token;
    int32_t in_answer;
  };

  Seen& seen(int32_t token);
  bool changes_logits() const;
  void change(float* x, const uint32_t* allowed) const;
  int32_t choose(const float* x, const float* lane_max, float most) const;

  SamplerOptions options_;
  int64_t vocab_;
  uint64_t position_ = 0;
  bool counts_;  // whether a penalty needs to know what was there
  std::vector<Seen> seen_;
  std::unordered_map<int32_t, size_t> place_;
};

// What one request draws in a step. After each row but the last stands a guess of what it gives, and
// a row counts only where all guesses before it were right.
struct Turn {
  Sampler* sampler;
  const float* logits;            // [rows][vocab]
  int64_t rows;
  const int32_t* guesses;         // [rows - 1]
  const uint32_t* const* allowed;  // a mask for each row, or null
};
std::vector<Draw> draw(const Turn& turn);

}  // namespace kvant
