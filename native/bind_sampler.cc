// The sampler's Python face.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "runtime/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using TokensIn = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
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

std::vector<Draw> sample(const std::vector<Sampler*>& samplers, LogitsIn logits) {
  require(samplers.size() == logits.shape(0), "one sampler a row of logits");
  for (const Sampler* s : samplers)
    require(s && s->vocab() == int64_t(logits.shape(1)), "a sampler is for another vocabulary");
  nb::gil_scoped_release unlocked;
  std::vector<Draw> draws;
  draws.reserve(samplers.size());
  for (size_t row = 0; row < samplers.size(); ++row)
    draws.push_back(samplers[row]->sample(logits.data() + row * logits.shape(1)));
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
      .def(
          "accept",
          [](Sampler& s, TokensIn t) {
            require_tokens(s, t);
            s.accept(t.data(), int64_t(t.shape(0)));
          },
          "tokens"_a.noconvert(), "Tokens of the answer that were not drawn by this object.");
  m.def("sample", &sample, "samplers"_a, "logits"_a.noconvert(),
        "Draw one token a row of logits [samplers, vocabulary]; each sampler accepts its own.");
}

}  // namespace kvant
