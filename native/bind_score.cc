// Scoring of logits, for evaluation.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "runtime/score.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Targets = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Figures = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

std::optional<std::tuple<int64_t, int>> score(const std::vector<Logits>& logits, Targets targets,
                                              Figures nll, Figures kld, Flags same, int threads) {
  require(!logits.empty(), "there is no model to score");
  ScoreTask task{{},
                 int64_t(logits[0].shape(0)),
                 int64_t(logits[0].shape(1)),
                 targets.data(),
                 nll.data(),
                 kld.data(),
                 same.data()};
  require(task.vocab > 0, "the vocabulary is empty");
  for (const Logits& one : logits) {
    require(int64_t(one.shape(0)) == task.rows && int64_t(one.shape(1)) == task.vocab,
            "all logits must have one shape");
    task.logits.push_back(one.data());
  }
  const size_t models = logits.size(), rows = size_t(task.rows);
  require(targets.shape(0) == rows, "targets need one token a row");
  for (size_t i = 0; i < rows; ++i)
    require(task.targets[i] >= 0 && task.targets[i] < task.vocab, "a target is not in the vocabulary");
  require(nll.shape(0) == models && nll.shape(1) == rows, "nll is [models, rows]");
  require(kld.shape(0) == models - 1 && kld.shape(1) == rows, "kld is [variants, rows]");
  require(same.shape(0) == models - 1 && same.shape(1) == rows, "same is [variants, rows]");
  NotFinite bad;
  {
    nb::gil_scoped_release unlocked;
    bad = score_rows(task, threads);
  }
  if (!bad.found) return std::nullopt;
  return std::make_tuple(bad.row, bad.model);
}

}  // namespace

void bind_score(nb::module_& m) {
  m.def("score", &score, "logits"_a.noconvert(), "targets"_a.noconvert(), "nll"_a.noconvert(),
        "kld"_a.noconvert(), "same"_a.noconvert(), "threads"_a,
        "Score rows of logits of a base and its variants; returns (row, model) of a value that is "
        "not finite, or None.");
}

}  // namespace kvant
