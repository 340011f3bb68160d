// The Python face of the core: plain arrays in, plain arrays out, the interpreter lock released.
//
// Shapes and types are checked here once more, cheaply: a wrong call from Python must raise, not
// write out of bounds. Untrusted files are parsed in Python; the core sees only their numbers, and a
// vocabulary's texts, which it walks over within the buffer it is given.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <fcntl.h>
#endif

#include <optional>
#include <stdexcept>

#include "kernels/lattice_points.h"
#include "runtime/cpu.h"
#include "runtime/rows.h"
#include "runtime/texts.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {

void bind_limits(nb::module_& m);   // bind_limits.cc
void bind_score(nb::module_& m);    // bind_score.cc
void bind_rows(nb::module_& m);     // bind_rows.cc
void bind_engine(nb::module_& m);   // bind_engine.cc
void bind_sampler(nb::module_& m);  // bind_sampler.cc
void bind_feedback(nb::module_& m);  // bind_feedback.cc
void bind_groups(nb::module_& m);  // bind_groups.cc

namespace {

using BytesIn = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatsIn = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatVector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

void require_rows(int type, size_t row_bytes, size_t columns) {
  const BlockShape s = block_shape(type);
  require(s.elements > 0, "the core does not know this storage type");
  require(columns % size_t(s.elements) == 0, "row length is not a whole number of blocks");
  require(columns / size_t(s.elements) * size_t(s.bytes) == row_bytes,
          "row bytes do not follow from row length and type");
}

void dequantize(int type, BytesIn in, FloatsOut out) {
  require(in.shape(0) == out.shape(0), "input and output differ in rows");
  require_rows(type, in.shape(1), out.shape(1));
  nb::gil_scoped_release unlocked;
  decode_rows(type, in.data(), out.data(), int64_t(in.shape(0)), int64_t(out.shape(1)));
}

std::optional<std::tuple<int64_t, int64_t, float>> quantize(int from, int to, BytesIn in,
                                                            BytesOut out, size_t columns,
                                                            std::optional<FloatVector> importance) {
  require(in.shape(0) == out.shape(0), "input and output differ in rows");
  require_rows(from, in.shape(1), columns);
  require_rows(to, out.shape(1), columns);
  require(!importance || importance->shape(0) == columns, "importance needs one weight a column");
  BadValue bad;
  {
    nb::gil_scoped_release unlocked;
    bad = convert_rows(from, to, in.data(), out.data(), int64_t(in.shape(0)), int64_t(columns),
                       importance ? importance->data() : nullptr);
  }
  if (!bad.found) return std::nullopt;
  return std::make_tuple(bad.row, bad.column, bad.value);
}

// ---- the four parts of a packing, for methods that work between them ----------------------------

const PackingKernels& kernels_of(int type) {
  for (const PackingKernels* const* p = current_isa().packings; *p; ++p)
    if ((*p)->id == type) return **p;
  throw std::invalid_argument("the core has no kernels for this packing");
}

void require_blocks(const PackingKernels& k, size_t blocks, size_t width, size_t scales_rows,
                    size_t scales_width) {
  require(width == size_t(k.block), "arrays of weights and codes are [blocks, block length]");
  require(scales_rows == blocks && scales_width == sizeof(Scales), "scales are [blocks, 40] bytes");
}

void fit(int type, FloatsIn x, std::optional<FloatsIn> w, BytesOut scales) {
  const PackingKernels& k = kernels_of(type);
  require_blocks(k, x.shape(0), x.shape(1), scales.shape(0), scales.shape(1));
  require(!w || (w->shape(0) == x.shape(0) && w->shape(1) == x.shape(1)),
          "importance has the shape of the weights");
  nb::gil_scoped_release unlocked;
  k.fit(x.data(), w ? w->data() : nullptr, reinterpret_cast<Scales*>(scales.data()),
        int64_t(x.shape(0)));
}

void encode(int type, FloatsIn x, BytesIn scales, BytesOut codes) {
  const PackingKernels& k = kernels_of(type);
  require_blocks(k, x.shape(0), x.shape(1), scales.shape(0), scales.shape(1));
  require(codes.shape(0) == x.shape(0) && codes.shape(1) == x.shape(1), "codes shape");
  nb::gil_scoped_release unlocked;
  k.encode(x.data(), reinterpret_cast<const Scales*>(scales.data()), codes.data(),
           int64_t(x.shape(0)));
}

void encode_weighted(int type, FloatsIn x, FloatsIn w, BytesIn scales, BytesOut codes) {
  const PackingKernels& k = kernels_of(type);
  require_blocks(k, x.shape(0), x.shape(1), scales.shape(0), scales.shape(1));
  require(w.shape(0) == x.shape(0) && w.shape(1) == x.shape(1), "importance has the shape of the weights");
  require(codes.shape(0) == x.shape(0) && codes.shape(1) == x.shape(1), "codes shape");
  nb::gil_scoped_release unlocked;
  const auto* s = reinterpret_cast<const Scales*>(scales.data());
  if (k.encode_weighted) k.encode_weighted(x.data(), w.data(), s, codes.data(), int64_t(x.shape(0)));
  else k.encode(x.data(), s, codes.data(), int64_t(x.shape(0)));
}

// Groups under scales of their own, for methods that go through a row group by group.
void encode_groups(int type, FloatsIn x, std::optional<FloatsIn> w, FloatVector scales, BytesIn low,
                   BytesOut codes) {
  const PackingKernels& k = kernels_of(type);
  const size_t n = x.shape(0);
  require(k.encode_groups != nullptr, "the packing has no groups");
  require(x.shape(1) == size_t(k.group), "arrays of weights and codes are [groups, group length]");
  require(!w || (w->shape(0) == n && w->shape(1) == x.shape(1)), "importance has the shape of the weights");
  require(scales.shape(0) == n && low.shape(0) == n && low.shape(1) == 1, "a scale and a shift a group");
  require(codes.shape(0) == n && codes.shape(1) == x.shape(1), "codes shape");
  nb::gil_scoped_release unlocked;
  k.encode_groups(x.data(), w ? w->data() : nullptr, scales.data(), low.data(), codes.data(), int64_t(n));
}

std::vector<int> grid_points(int type) {
  const PointTable t = points_of(type);
  require(t.points != nullptr, "the packing has no table of points");
  return std::vector<int>(t.points, t.points + t.count);
}

void decode(int type, BytesIn codes, BytesIn scales, FloatsOut y) {
  const PackingKernels& k = kernels_of(type);
  require_blocks(k, codes.shape(0), codes.shape(1), scales.shape(0), scales.shape(1));
  require(codes.shape(0) == y.shape(0) && codes.shape(1) == y.shape(1), "output shape");
  nb::gil_scoped_release unlocked;
  k.decode(codes.data(), reinterpret_cast<const Scales*>(scales.data()), y.data(),
           int64_t(codes.shape(0)));
}

void layout(int type, BytesIn codes, BytesIn scales, BytesOut out) {
  const PackingKernels& k = kernels_of(type);
  require_blocks(k, codes.shape(0), codes.shape(1), scales.shape(0), scales.shape(1));
  require(out.shape(0) == codes.shape(0) && out.shape(1) == size_t(k.block_bytes), "block bytes");
  nb::gil_scoped_release unlocked;
  k.layout(codes.data(), reinterpret_cast<const Scales*>(scales.data()), out.data(),
           int64_t(codes.shape(0)));
}

void unlayout(int type, BytesIn in, BytesOut codes, BytesOut scales) {
  const PackingKernels& k = kernels_of(type);
  require_blocks(k, codes.shape(0), codes.shape(1), scales.shape(0), scales.shape(1));
  require(in.shape(0) == codes.shape(0) && in.shape(1) == size_t(k.block_bytes), "block bytes");
  nb::gil_scoped_release unlocked;
  k.unlayout(in.data(), codes.data(), reinterpret_cast<Scales*>(scales.data()),
             int64_t(codes.shape(0)));
}

std::tuple<int64_t, int64_t, bool> texts(nb::bytes data, int64_t start, int64_t most) {
  require(start >= 0 && start <= int64_t(data.size()), "the start lies outside the data");
  const TextWalk walk = walk_texts(reinterpret_cast<const uint8_t*>(data.c_str()),
                                   int64_t(data.size()), start, most);
  return {walk.count, walk.end, walk.valid};
}

// Have the system begin to write a file's new pages to disk, without waiting for it. Says whether it
// can: only Linux has a call for that. A disk that fails is reported by the sync at the end.
bool start_writing(int fd) {
#if defined(__linux__)
  nb::gil_scoped_release unlocked;
  return sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE) == 0;
#else
  (void)fd;
  return false;
#endif
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa* isa : usable_isas()) names.emplace_back(isa->name);
  return names;
}

// The texts themselves. A text that is not whole or not UTF-8 raises: `walk_texts` comes first.
nb::list decoded_texts(nb::bytes data, int64_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(data.c_str());
  const int64_t size = int64_t(data.size());
  nb::list out;
  for (int64_t i = 0, at = 0; i < count; ++i) {
    const TextWalk walk = walk_texts(bytes, size, at, 1);
    require(walk.count == 1, "the texts are not whole");
    out.append(nb::str(data.c_str() + at + 8, size_t(walk.end - at - 8)));
    at = walk.end;
  }
  return out;
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "kvant's native core: packings as SIMD kernels.";
  m.def("quantize", &quantize, "from_type"_a, "to_type"_a, "data"_a.noconvert(),
        "out"_a.noconvert(), "columns"_a, "importance"_a.noconvert().none(),
        "Convert rows between storage types; returns (row, column, value) of a weight the target "
        "cannot hold, or None.");
  m.def("dequantize", &dequantize, "type"_a, "data"_a.noconvert(), "out"_a.noconvert(),
        "Decode rows of a storage type to float32.");
  m.def("fit", &fit, "type"_a, "x"_a.noconvert(), "importance"_a.noconvert().none(),
        "scales"_a.noconvert());
  m.def("encode", &encode, "type"_a, "x"_a.noconvert(), "scales"_a.noconvert(),
        "codes"_a.noconvert());
  m.def("encode_weighted", &encode_weighted, "type"_a, "x"_a.noconvert(), "importance"_a.noconvert(),
        "scales"_a.noconvert(), "codes"_a.noconvert());
  m.def("encode_groups", &encode_groups, "type"_a, "x"_a.noconvert(),
        "importance"_a.noconvert().none(), "scales"_a.noconvert(), "low"_a.noconvert(),
        "codes"_a.noconvert());
  m.def("grid_points", &grid_points, "type"_a, "The points of a codebook packing, packed.");
  m.def("decode", &decode, "type"_a, "codes"_a.noconvert(), "scales"_a.noconvert(),
        "y"_a.noconvert());
  m.def("layout", &layout, "type"_a, "codes"_a.noconvert(), "scales"_a.noconvert(),
        "out"_a.noconvert());
  m.def("unlayout", &unlayout, "type"_a, "data"_a.noconvert(), "codes"_a.noconvert(),
        "scales"_a.noconvert());
  m.def("decode_texts", &decoded_texts, "data"_a, "count"_a,
        "`count` texts from the start, as `walk_texts` has passed them.");
  m.def("walk_texts", &texts, "data"_a, "start"_a, "most"_a,
        "Pass over texts (length in 8 bytes, UTF-8); returns how many, where they end, and whether "
        "the next one is UTF-8 or not wholly there.");
  m.def("start_writing", &start_writing, "fd"_a,
        "Begin to write a file's new pages to disk without waiting; False where that is not known.");
  m.def("cpu_features", &cpu_features, "Processor features that kernels care about.");
  m.def("isas", &isas, "Instruction sets this build and this processor share, best first.");
  m.def("current_isa", [] { return std::string(current_isa().name); });
  m.def("select_isa", &select_isa, "name"_a, "Use one of `isas()`; False if there is no such.");
  bind_rows(m);
  bind_engine(m);
  bind_limits(m);
  bind_score(m);
  bind_sampler(m);
  bind_feedback(m);
  bind_groups(m);
}

}  // namespace kvant
