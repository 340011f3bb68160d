// Feedback and descent by blocks of columns. kvant/packing/feedback.py is the only caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>

#include "runtime/cpu.h"
#include "runtime/feedback.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BytesIn = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

BlockColumn column_of(int type, int count, bool even, BytesIn scales, BytesOut codes) {
  for (const PackingKernels* const* p = current_isa().packings; *p; ++p)
    if ((*p)->id == type) {
      require(count >= 2 && count <= 256, "there are 2 to 256 codes");
      require(scales.shape(1) == sizeof(Scales) && scales.shape(0) == codes.shape(0) &&
                  codes.shape(1) == size_t((*p)->block),
              "scales are [rows, 40] bytes, codes [rows, block]");
      return {*p, count, even, int64_t(codes.shape(0)),
              reinterpret_cast<const Scales*>(scales.data()), codes.data()};
    }
  throw std::invalid_argument("the core has no kernels for this packing");
}

BlockColumn group_column(int bits, Floats1& base, Floats1& step, std::optional<Floats1>& table,
                         BytesOut& codes) {
  require(bits >= 1 && bits <= 8, "codes have 1 to 8 bits");
  require(base.shape(0) == codes.shape(0) && step.shape(0) == codes.shape(0),
          "base and step are [rows], codes [rows, block]");
  require(!table || table->shape(0) == size_t(1) << bits, "a table has a level for each code");
  require(codes.shape(1) % 16 == 0 && codes.shape(1) <= 4096, "a group is 16 weights or more");
  BlockColumn c{nullptr, 1 << bits, !table, int64_t(codes.shape(0)), nullptr, codes.data()};
  c.block = int64_t(codes.shape(1));
  c.base = base.data();
  c.step = step.data();
  c.table = table ? table->data() : nullptr;
  return c;
}

void require_block(const BlockColumn& c, FloatsOut& a, size_t start, Floats2& square,
                   Floats1& inverse, FloatsOut& out) {
  const size_t block = size_t(c.width());
  require(a.shape(0) == size_t(c.rows) && start + block <= a.shape(1), "the block is in the matrix");
  require(square.shape(0) == block && square.shape(1) == block && inverse.shape(0) == block,
          "factors are [block, block] and [block]");
  require(out.shape(0) == size_t(c.rows) && out.shape(1) == block, "results are [rows, block]");
}

void carry(int type, int count, bool even, FloatsOut w, size_t start, BytesIn scales, Floats2 factor,
           Floats1 inverse, BytesOut codes, FloatsOut error, int threads) {
  const BlockColumn c = column_of(type, count, even, scales, codes);
  require_block(c, w, start, factor, inverse, error);
  nb::gil_scoped_release unlocked;
  carry_rows(c, w.data() + start, int64_t(w.shape(1)), factor.data(), inverse.data(), error.data(),
             threads);
}

void descend(int type, int count, bool even, FloatsOut q, FloatsOut r, size_t start, BytesIn scales,
             Floats2 moments, Floats1 inverse, BytesOut codes, FloatsOut change, int threads) {
  const BlockColumn c = column_of(type, count, even, scales, codes);
  require_block(c, q, start, moments, inverse, change);
  require(r.shape(0) == q.shape(0) && r.shape(1) == q.shape(1), "q and r have one shape");
  nb::gil_scoped_release unlocked;
  descend_rows(c, q.data() + start, r.data() + start, int64_t(q.shape(1)), moments.data(),
               inverse.data(), change.data(), threads);
}

void carry_group(int bits, Floats1 base, Floats1 step, std::optional<Floats1> table, FloatsOut w,
                 size_t start, Floats2 factor, Floats1 inverse, BytesOut codes, FloatsOut error,
                 int threads) {
  const BlockColumn c = group_column(bits, base, step, table, codes);
  require_block(c, w, start, factor, inverse, error);
  nb::gil_scoped_release unlocked;
  carry_rows(c, w.data() + start, int64_t(w.shape(1)), factor.data(), inverse.data(), error.data(),
             threads);
}

void descend_group(int bits, Floats1 base, Floats1 step, std::optional<Floats1> table, FloatsOut q,
                   FloatsOut r, size_t start, Floats2 moments, Floats1 inverse, BytesOut codes,
                   FloatsOut change, int threads) {
  const BlockColumn c = group_column(bits, base, step, table, codes);
  require_block(c, q, start, moments, inverse, change);
  require(r.shape(0) == q.shape(0) && r.shape(1) == q.shape(1), "q and r have one shape");
  nb::gil_scoped_release unlocked;
  descend_rows(c, q.data() + start, r.data() + start, int64_t(q.shape(1)), moments.data(),
               inverse.data(), change.data(), threads);
}

}  // namespace

void bind_feedback(nb::module_& m) {
  m.def("carry", &carry, "type"_a, "count"_a, "even"_a, "w"_a.noconvert(), "start"_a,
        "scales"_a.noconvert(), "factor"_a.noconvert(), "inverse"_a.noconvert(),
        "codes"_a.noconvert(), "error"_a.noconvert(), "threads"_a,
        "Codes of a block of columns with error feedback inside it.");
  m.def("descend", &descend, "type"_a, "count"_a, "even"_a, "q"_a.noconvert(), "r"_a.noconvert(),
        "start"_a, "scales"_a.noconvert(), "moments"_a.noconvert(), "inverse"_a.noconvert(),
        "codes"_a.noconvert(), "change"_a.noconvert(), "threads"_a,
        "One sweep of coordinate descent over the codes of a block of columns.");
  m.def("carry_group", &carry_group, "bits"_a, "base"_a.noconvert(), "step"_a.noconvert(),
        "table"_a.noconvert().none(), "w"_a.noconvert(), "start"_a, "factor"_a.noconvert(),
        "inverse"_a.noconvert(), "codes"_a.noconvert(), "error"_a.noconvert(), "threads"_a,
        "As `carry`, where a code stands for base + step code, or base + step table[code].");
  m.def("descend_group", &descend_group, "bits"_a, "base"_a.noconvert(), "step"_a.noconvert(),
        "table"_a.noconvert().none(), "q"_a.noconvert(), "r"_a.noconvert(), "start"_a,
        "moments"_a.noconvert(), "inverse"_a.noconvert(), "codes"_a.noconvert(),
        "change"_a.noconvert(), "threads"_a,
        "As `descend`, where a code stands for base + step code, or base + step table[code].");
}

}  // namespace kvant
