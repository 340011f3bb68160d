// The sampler's Python face.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>

#include "runtime/plan.h"
#include "runtime/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using TokensIn = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MasksIn = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using LogitsIn = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

void require_tokens(const Sampler& sampler, const TokensIn& tokens) {
  for (size_t i = 0; i < tokens.shape(0); ++i)
    require(tokens.data()[i] >= 0 && tokens.data()[i] < sampler.vocab(), "a token is out of range");
}

void make(Sampler* self, int64_t vocab, float temperature, int32_t top_k, float top_p, float min_p,
          float repetition, float frequency, float presence, uint64_t seed, int32_t logprobs,
          std::vector<std::pair<int32_t, float>> bias) {
  // What would divide by zero or read out of bounds; sensible ranges are Python's matter.
  require(vocab > 0 && vocab < (int64_t(1) << 31), "a vocabulary has 1 to 2^31 - 1 tokens");
  require(temperature >= 0.0f && repetition > 0.0f, "temperature or repetition penalty");
  require(top_k >= 0 && top_p > 0.0f && min_p >= 0.0f && min_p <= 1.0f, "top-k, top-p or min-p");
  for (const auto& [token, by] : bias)
    require(token >= 0 && token < vocab, "a biased token is out of range");
  new (self) Sampler({temperature, top_k, top_p, min_p, repetition, frequency, presence, seed,
                      logprobs, std::move(bias)},
                     vocab);
}

// `guesses` [rows] are what each row is guessed to give, -1 for the last of a sampler's; `masked` [rows]
// names each row's mask, or -1.
std::vector<std::vector<Draw>> sample(const std::vector<Sampler*>& samplers, LogitsIn logits,
                                      TokensIn guesses, std::optional<MasksIn> masks,
                                      std::optional<TokensIn> masked, Plan* plan) {
  const int64_t vocab = int64_t(logits.shape(1)), rows = int64_t(logits.shape(0));
  require(int64_t(guesses.shape(0)) == rows, "one guess a row of logits");
  std::vector<const uint32_t*> allowed(size_t(rows), nullptr);
  if (masks) {
    require(int64_t(masks->shape(1)) == mask_words(vocab), "a mask has a bit for each token");
    require(masked && int64_t(masked->shape(0)) == rows, "masks are named row by row");
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t mask = masked->data()[row];
      require(mask < int32_t(masks->shape(0)), "a mask there is not");
      if (mask >= 0) allowed[size_t(row)] = masks->data() + mask * mask_words(vocab);
    }
  }
  std::vector<Turn> turns;
  int64_t row = 0;
  for (Sampler* s : samplers) {
    require(s && s->vocab() == vocab, "a sampler is for another vocabulary");
    const int64_t first = row;
    while (row < rows && guesses.data()[row] >= 0) ++row;
    require(row++ < rows, "one sampler for each group of rows");
    turns.push_back({s, logits.data() + first * vocab, row - first, guesses.data() + first,
                     allowed.data() + first});
  }
  require(row == rows, "one sampler for each group of rows");
  nb::gil_scoped_release unlocked;
  std::vector<std::vector<Draw>> draws(turns.size());
  if (!plan || turns.size() < 2) {
    for (size_t i = 0; i < turns.size(); ++i) draws[i] = draw(turns[i]);
    return draws;
  }
  Tickets tickets;
  plan->pool().run([&](int) {
    for (int64_t i = tickets.take(1); i < int64_t(turns.size()); i = tickets.take(1))
      draws[size_t(i)] = draw(turns[size_t(i)]);
  });
  return draws;
}

}  // namespace

void bind_sampler(nb::module_& m) {
  nb::class_<Draw>(m, "Draw", "One row's token, -1 where there is a fault, and its logprobs.")
      .def_ro("token", &Draw::token)
      .def_prop_ro("fault", [](const Draw& d) { return int(d.fault); })
      .def_ro("logprob", &Draw::logprob)
      .def_ro("top", &Draw::top);
  nb::class_<Sampler>(m, "Sampler", "How one request draws its tokens, and what it drew so far.")
      .def("__init__", &make, "vocab"_a, nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a,
           "min_p"_a, "repetition"_a, "frequency"_a, "presence"_a, "seed"_a, "logprobs"_a, "bias"_a)
      .def_prop_ro("position", &Sampler::position)
      .def(
          "prompt",
          [](Sampler& s, TokensIn t) {
            require_tokens(s, t);
            s.prompt(t.data(), int64_t(t.shape(0)));
          },
          "tokens"_a.noconvert(), "Tokens of the prompt, for the repetition penalty.")
      .def("seek", &Sampler::seek, "position"_a, "Go on elsewhere in the stream of random numbers.")
      .def(
          "accept",
          [](Sampler& s, TokensIn t) {
            require_tokens(s, t);
            s.accept(t.data(), int64_t(t.shape(0)));
          },
          "tokens"_a.noconvert(), "Tokens of the answer that were not drawn by this object.");
  m.def("sample", &sample, "samplers"_a, "logits"_a.noconvert(), "guesses"_a.noconvert(),
        "masks"_a.noconvert().none() = nb::none(), "masked"_a.noconvert().none() = nb::none(),
        "plan"_a.none() = nb::none(),
        "Draw from rows of logits, for each sampler as many as its guesses are right, and one more.");
}

}  // namespace kvant
