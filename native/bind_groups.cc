// Groups of weights. kvant/packing/groups.py and bits.py are the only callers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>

#include "kernels/groups.h"
#include "runtime/cpu.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats1Out = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes2 = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes2Out = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kLongest = 1 << 18;  // of a searched group

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

GroupGrid grid_of(int bits, int zero, int scale, size_t block) {
  require(bits >= 1 && bits <= 8, "codes have 1 to 8 bits");
  require(zero >= 0 && zero <= 2 && scale >= 0 && scale <= 2, "there are three kinds of each");
  require(block >= 1, "a group has weights");
  return {bits, int64_t(block), GroupZero(zero), GroupScale(scale)};
}

void range(Floats2 x, Floats1Out lo, Floats1Out hi) {
  const size_t n = x.shape(0);
  require(lo.shape(0) == n && hi.shape(0) == n && x.shape(1) >= 1, "results are [groups]");
  nb::gil_scoped_release unlocked;
  current_isa().groups->range(x.data(), int64_t(x.shape(1)), int64_t(n), lo.data(), hi.data());
}

void search(int bits, int zero, int scale, Floats2 x, std::optional<Floats2> w, Floats1 widths,
            Floats1Out d, Floats1Out z) {
  const GroupGrid grid = grid_of(bits, zero, scale, x.shape(1));
  const size_t n = x.shape(0);
  require(d.shape(0) == n && z.shape(0) == n, "results are [groups]");
  require(grid.block <= kLongest, "a group is too long to be searched");
  require(!w || (w->shape(1) == x.shape(1) && w->shape(0) >= 1),
          "weights are rows as long as the groups");
  nb::gil_scoped_release unlocked;
  current_isa().groups->search(grid, x.data(), w ? w->data() : nullptr,
                               w ? int64_t(w->shape(0)) : 1, int64_t(n), widths.data(),
                               int(widths.shape(0)), d.data(), z.data());
}

void encode(int bits, int zero, Floats2 x, Floats1 d, Floats1 z, Bytes2Out codes) {
  const GroupGrid grid = grid_of(bits, zero, 0, x.shape(1));
  const size_t n = x.shape(0);
  require(d.shape(0) == n && z.shape(0) == n && codes.shape(0) == n &&
              codes.shape(1) == x.shape(1),
          "scales are [groups], codes as large as the weights");
  nb::gil_scoped_release unlocked;
  current_isa().groups->encode(grid, x.data(), d.data(), z.data(), int64_t(n), codes.data());
}

void pack(Bytes2 codes, int bits, Bytes2Out out) {
  require(bits >= 1 && bits <= 8, "codes have 1 to 8 bits");
  const size_t n = codes.shape(1);
  require(n % 8 == 0 && out.shape(0) == codes.shape(0) && out.shape(1) == n * size_t(bits) / 8,
          "rows are a multiple of 8 codes, results as long as their bits");
  nb::gil_scoped_release unlocked;
  current_isa().groups->pack(codes.data(), bits, int64_t(codes.shape(0) * n), out.data());
}

}  // namespace

void bind_groups(nb::module_& m) {
  m.def("group_range", &range, "x"_a.noconvert(), "lo"_a.noconvert(), "hi"_a.noconvert(),
        "Least and greatest weight of each group.");
  m.def("group_search", &search, "bits"_a, "zero"_a, "scale"_a, "x"_a.noconvert(),
        "w"_a.noconvert().none(), "widths"_a.noconvert(), "d"_a.noconvert(), "z"_a.noconvert(),
        "Scales of groups with least weighed squared error.");
  m.def("group_encode", &encode, "bits"_a, "zero"_a, "x"_a.noconvert(), "d"_a.noconvert(),
        "z"_a.noconvert(), "codes"_a.noconvert(), "Nearest codes of groups under given scales.");
  m.def("pack_bits", &pack, "codes"_a.noconvert(), "bits"_a, "out"_a.noconvert(),
        "Codes as streams of bits, lowest first.");
}

}  // namespace kvant
