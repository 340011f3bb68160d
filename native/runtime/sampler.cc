#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "cpu.h"
#include "random.h"

namespace kvant {

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

const VocabKernels& kernels() { return *current_isa().vocab; }

struct Ranked {
  float value;
  int32_t token;
  float weight = 1.0f;
};

bool before(const Ranked& a, const Ranked& b) {
  return a.value != b.value ? a.value > b.value : a.token < b.token;
}

// Buffers as long as a vocabulary; each thread keeps its own, because asking the system for fresh
// pages costs more than drawing a token.
struct Scratch {
  std::vector<float> changed, lane_max, maxima, values, weights;
  std::vector<int32_t> tokens;
  std::vector<uint16_t> buckets;
  std::vector<double> sums;
  std::vector<Ranked> ranked;
};
thread_local Scratch scratch;

template <class T>
T* room(std::vector<T>& buffer, int64_t n) {
  if (buffer.size() < size_t(n)) buffer.resize(size_t(n));
  return buffer.data();
}

// A value that at least k of the row are not below; -infinity where the maxima do not say.
float bound_of_top(const float* lane_max, int64_t count, int64_t k) {
  if (k > count) return kNone;
  scratch.maxima.assign(lane_max, lane_max + count);
  const auto nth = scratch.maxima.begin() + (k - 1);
  std::nth_element(scratch.maxima.begin(), nth, scratch.maxima.end(), std::greater<>());
  return *nth;
}

int64_t maxima_count(int64_t n) { return vocab_chunks(n) * kVocabLanes; }

float most_of(const float* lane_max, int64_t n) {
  return *std::max_element(lane_max, lane_max + maxima_count(n));
}

int32_t first_at(const float* x, const float* lane_max, float value) {
  int64_t i = 0;
  while (lane_max[i] != value) ++i;
  i = i / kVocabLanes * kVocabChunk;
  while (x[i] != value) ++i;
  return int32_t(i);
}

// Tokens still in the race, by ascending id, with weights in proportion to their probability.
// `tokens` is null while all of the row are.
struct Race {
  const float* values;
  const int32_t* tokens;
  int64_t count;

  Ranked at(int64_t i) const { return {values[i], tokens ? tokens[i] : int32_t(i)}; }
};

Race gathered(const float* x, int64_t n, const float* lane_max, float least) {
  float* values = room(scratch.values, n);
  int32_t* tokens = room(scratch.tokens, n);
  const int64_t count = kernels().gather(x, n, lane_max, least, values, tokens);
  return {values, tokens, count};
}

// Those not behind `last`. In place: never writes beyond what was read; and without a branch, which
// would be guessed wrong half the time.
Race until(const Race& race, const Ranked& last) {
  float* values = room(scratch.values, race.count);
  int32_t* tokens = room(scratch.tokens, race.count);
  int64_t kept = 0;
  for (int64_t i = 0; i < race.count; ++i) {
    const Ranked r = race.at(i);
    values[kept] = r.value;
    tokens[kept] = r.token;
    kept += (r.value > last.value) | ((r.value == last.value) & (r.token <= last.token));
  }
  return {values, tokens, kept};
}

// Goes by rank through `low` to `high`, adding up weights to `sum`, to the first that reaches `goal`;
// the last one where none does. Halves again and again, so that nothing is sorted but the last few.
Ranked reaching(Ranked* low, Ranked* high, double sum, double goal) {
  while (high - low > 64) {
    Ranked* middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, before);
    double half = 0.0;
    for (const Ranked* r = low; r != middle; ++r) half += double(r->weight);
    if (sum + half >= goal) {
      high = middle;
    } else {
      sum += half;
      low = middle;
    }
  }
  std::sort(low, high, before);
  for (; low + 1 != high; ++low)
    if ((sum += double(low->weight)) >= goal) break;
  return *low;
}

// The shortest list of leaders whose weights reach `goal`; null weights are all 1. Values are first
// thrown into buckets of equal width, from `most` to `range` below it and further, so that only one
// of these has to be ranked.
Race leaders(const Race& race, const float* weights, double goal, float most, double range) {
  constexpr int kBuckets = 1024;
  double mass[kBuckets] = {};
  const float per_bucket = float(kBuckets / std::max(range, 1e-30));
  uint16_t* bucket = room(scratch.buckets, race.count);
  for (int64_t i = 0; i < race.count; ++i)
    bucket[i] = uint16_t(std::min((most - race.values[i]) * per_bucket, float(kBuckets - 1)));
  for (int64_t i = 0; i < race.count; ++i) mass[bucket[i]] += weights ? double(weights[i]) : 1.0;
  double sum = 0.0;
  int at = 0;
  while (at < kBuckets - 1 && sum + mass[at] < goal) sum += mass[at++];
  Ranked* ranked = room(scratch.ranked, race.count);
  int64_t count = 0;
  for (int64_t i = 0; i < race.count; ++i) {
    ranked[count] = race.at(i);
    ranked[count].weight = weights ? weights[i] : 1.0f;
    count += bucket[i] == at;
  }
  if (count == 0) return race;  // rounding: the goal is the whole mass
  return until(race, reaching(ranked, ranked + count, sum, goal));
}

Race top_k(const Race& race, int64_t k, float most) {
  if (race.count <= k) return race;
  float lowest = most;
  for (int64_t i = 0; i < race.count; ++i)
    if (race.values[i] > kNone) lowest = std::min(lowest, race.values[i]);
  return leaders(race, nullptr, double(k), most, double(most) - double(lowest));
}

double weigh(const Race& race, float most, float scale) {
  const int64_t chunks = vocab_chunks(race.count);
  float* weights = room(scratch.weights, race.count);
  double* sums = room(scratch.sums, chunks);
  kernels().weigh(race.values, race.count, most, scale, weights, sums);
  return std::accumulate(sums, sums + chunks, 0.0);
}

// Where the cumulated weights pass `u` times their sum; they are in `scratch`.
int64_t pick(int64_t count, double total, double u) {
  const double target = u * total;
  double sum = 0.0;
  int64_t chunk = 0;
  const int64_t last = vocab_chunks(count) - 1;
  while (chunk < last && sum + scratch.sums[size_t(chunk)] <= target)
    sum += scratch.sums[size_t(chunk++)];
  const int64_t stop = std::min(count, (chunk + 1) * kVocabChunk);
  int64_t possible = -1;  // rounding may lead past the end of a chunk: its last possible token then
  for (int64_t i = chunk * kVocabChunk; i < stop; ++i) {
    if (scratch.weights[size_t(i)] <= 0.0f) continue;
    possible = i;
    sum += double(scratch.weights[size_t(i)]);
    if (sum > target) return i;
  }
  if (possible >= 0) return possible;
  const auto begin = scratch.weights.begin();
  return std::max_element(begin, begin + count) - begin;
}

std::vector<std::pair<int32_t, double>> best(const float* x, int64_t n, const float* lane_max,
                                             int64_t k, double log_sum) {
  k = std::min(k, n);
  if (k == 0) return {};
  const Race race = gathered(x, n, lane_max, bound_of_top(lane_max, maxima_count(n), k));
  Ranked* all = room(scratch.ranked, race.count);
  for (int64_t i = 0; i < race.count; ++i) all[i] = race.at(i);
  std::partial_sort(all, all + k, all + race.count, before);
  std::vector<std::pair<int32_t, double>> found;
  for (int64_t i = 0; i < k; ++i) found.emplace_back(all[i].token, double(all[i].value) - log_sum);
  return found;
}

}  // namespace

Sampler::Sampler(SamplerOptions options, int64_t vocab)
    : options_(std::move(options)),
      vocab_(vocab),
      counts_(options_.repetition != 1.0f || options_.frequency != 0.0f ||
              options_.presence != 0.0f) {}

Sampler::Seen& Sampler::seen(int32_t token) {
  const auto [at, fresh] = place_.try_emplace(token, seen_.size());
  if (fresh) seen_.push_back({token, 0});
  return seen_[at->second];
}

void Sampler::prompt(const int32_t* tokens, int64_t n) {
  if (options_.repetition == 1.0f) return;  // the only one that asks about the prompt
  for (int64_t i = 0; i < n; ++i) seen(tokens[i]);
}

void Sampler::accept(const int32_t* tokens, int64_t n) {
  if (counts_)
    for (int64_t i = 0; i < n; ++i) ++seen(tokens[i]).in_answer;
  position_ += uint64_t(n);
}

bool Sampler::changes_logits() const { return !options_.bias.empty() || !seen_.empty(); }

void Sampler::change(float* x, const uint32_t* allowed) const {
  for (int64_t first = 0; allowed && first < vocab_; first += 32) {
    const uint32_t bits = allowed[first / 32];
    if (bits == ~uint32_t(0)) continue;
    const int64_t n = std::min<int64_t>(32, vocab_ - first);
    for (int64_t i = 0; i < n; ++i) x[first + i] = bits >> i & 1 ? x[first + i] : kNone;
  }
  for (const auto& [token, by] : options_.bias) x[token] += by;
  for (const Seen& s : seen_) {
    float& v = x[s.token];
    v = v > 0.0f ? v / options_.repetition : v * options_.repetition;
    if (s.in_answer > 0) v -= options_.frequency * float(s.in_answer) + options_.presence;
  }
}

Draw Sampler::sample(const float* logits, const uint32_t* allowed) {
  const VocabKernels& k = kernels();
  Draw draw;
  float* lane_max = room(scratch.lane_max, maxima_count(vocab_));
  if (!k.maxima(logits, vocab_, lane_max)) {
    draw.fault = Fault::logits;
    return draw;
  }
  float most = most_of(lane_max, vocab_);
  double log_sum = 0.0;
  if (options_.logprobs >= 0) {
    log_sum = double(most) + std::log(weigh({logits, nullptr, vocab_}, most, 1.0f));
    draw.top = best(logits, vocab_, lane_max, options_.logprobs, log_sum);
  }
  const float* x = logits;
  if (allowed || changes_logits()) {
    float* changed = room(scratch.changed, vocab_);
    std::memcpy(changed, logits, size_t(vocab_) * sizeof(float));
    change(changed, allowed);
    k.maxima(changed, vocab_, lane_max);  // forbidden tokens are not finite, and may be so
    x = changed;
    most = most_of(lane_max, vocab_);
    if (!std::isfinite(most)) {
      draw.fault = Fault::nothing;
      return draw;
    }
  }
  draw.token = options_.temperature == 0.0f ? first_at(x, lane_max, most)
                                            : choose(x, lane_max, most);
  draw.logprob = double(logits[draw.token]) - log_sum;
  accept(&draw.token, 1);
  return draw;
}

int32_t Sampler::choose(const float* x, const float* lane_max, float most) const {
  const SamplerOptions& o = options_;
  const float scale = 1.0f / o.temperature;
  Race race = {x, nullptr, vocab_};

  float least = kNone;
  if (o.min_p > 0.0f) least = float(double(most) + std::log(double(o.min_p)) * double(o.temperature));
  const bool by_rank = o.top_k > 0 && o.top_k < vocab_;
  if (by_rank) least = std::max(least, bound_of_top(lane_max, maxima_count(vocab_), o.top_k));
  if (least > kNone) race = gathered(x, vocab_, lane_max, std::min(least, most));
  if (by_rank) race = top_k(race, o.top_k, most);

  double total = weigh(race, most, scale);
  if (o.top_p < 1.0f) {
    // Whatever is this far behind the leader cannot weigh more than what top-p leaves out, even if
    // all of the race were there.
    const double rest = (1.0 - double(o.top_p)) * total / double(race.count);
    const double behind = (1e-3 - std::log(rest)) * double(o.temperature);
    if (!race.tokens) {
      race = gathered(x, vocab_, lane_max, std::min(float(double(most) - behind), most));
      weigh(race, most, scale);
    }
    const double mass = double(o.top_p) * total;
    race = leaders(race, scratch.weights.data(), mass, most, behind);
    total = weigh(race, most, scale);
  }
  return race.at(pick(race.count, total, uniform(o.seed, position_))).token;
}

std::vector<Draw> draw(const Turn& turn) {
  std::vector<Draw> drawn;
  const int64_t vocab = turn.sampler->vocab();
  for (int64_t row = 0; row < turn.rows; ++row) {
    drawn.push_back(turn.sampler->sample(turn.logits + row * vocab, turn.allowed[row]));
    const Draw& last = drawn.back();
    if (last.fault != Fault::none || row + 1 == turn.rows || last.token != turn.guesses[row]) break;
  }
  return drawn;
}

}  // namespace kvant
