// Row and attention kernels one by one, for tests and benchmarks. The engine goes another way.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstFloats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstFloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

// Floats on a cache line's boundary.
struct Aligned {
  explicit Aligned(int64_t n)
      : data(static_cast<float*>(::operator new(size_t(n) * 4, std::align_val_t(64)))) {}
  ~Aligned() { ::operator delete(data, std::align_val_t(64)); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  float* data;
};

KvShape shape_of(int kv_heads, int head_dim, int type) {
  require(kv_heads > 0 && head_dim > 0 && head_dim <= 1024, "kv_heads and head_dim are positive");
  require(type == 0 || type == 1, "cache type is 0 (F16) or 1 (Q8_0)");
  return {kv_heads, head_dim, KvType(type)};
}

// Every block of positions [begin, end) is in the table and its bytes in the cache.
void require_blocks(const KvShape& s, const Bytes& cache, const Table& table, int64_t begin,
                    int64_t end) {
  require(begin >= 0 && (end + kKvBlock - 1) / kKvBlock <= int64_t(table.shape(0)),
          "the block table is too short");
  const int64_t blocks = int64_t(cache.shape(0)) / kv_block_bytes(s);
  for (int64_t b = begin / kKvBlock; b * kKvBlock < end; ++b)
    require(table.data()[b] >= 0 && table.data()[b] < blocks, "a block lies outside the cache");
}

void rms_norm(ConstFloats x, ConstFloats w, Floats y, int64_t groups, float eps) {
  const int64_t width = int64_t(x.shape(0));
  require(groups > 0 && width % groups == 0, "width is a multiple of groups");
  require(int64_t(w.shape(0)) == width / groups && y.shape(0) == x.shape(0), "shapes");
  current_isa().rows->rms_norm(x.data(), w.data(), y.data(), width, groups, eps);
}

void layer_norm(ConstFloats x, ConstFloats w, std::optional<ConstFloats> b, Floats y, float eps) {
  require(w.shape(0) == x.shape(0) && y.shape(0) == x.shape(0) && (!b || b->shape(0) == x.shape(0)),
          "shapes");
  current_isa().rows->layer_norm(x.data(), w.data(), b ? b->data() : nullptr, y.data(),
                                 int64_t(x.shape(0)), eps);
}

void rope(FloatRows x, ConstFloats cos, ConstFloats sin) {
  require(2 * cos.shape(0) <= x.shape(1) && sin.shape(0) == cos.shape(0),
          "cos and sin have at most half the head's width");
  current_isa().rows->rope(x.data(), cos.data(), sin.data(), int64_t(x.shape(0)),
                           int64_t(x.shape(1)), 2 * int64_t(cos.shape(0)));
}

void swiglu(ConstFloats gate, ConstFloats up, Floats y) {
  require(gate.shape(0) == up.shape(0) && up.shape(0) == y.shape(0), "shapes");
  current_isa().rows->swiglu(gate.data(), up.data(), y.data(), int64_t(y.shape(0)));
}

void geglu(ConstFloats gate, ConstFloats up, Floats y) {
  require(gate.shape(0) == up.shape(0) && up.shape(0) == y.shape(0), "shapes");
  current_isa().rows->geglu(gate.data(), up.data(), y.data(), int64_t(y.shape(0)));
}

void gelu(ConstFloats x, Floats y, bool tanh) {
  require(x.shape(0) == y.shape(0), "shapes");
  const RowKernels& rows = *current_isa().rows;
  (tanh ? rows.gelu_tanh : rows.gelu_erf)(x.data(), y.data(), int64_t(y.shape(0)));
}

void scale(ConstFloats x, float factor, Floats y) {
  require(x.shape(0) == y.shape(0), "shapes");
  current_isa().rows->scale(x.data(), factor, y.data(), int64_t(y.shape(0)));
}

void soft_cap(ConstFloats x, float cap, Floats y) {
  require(x.shape(0) == y.shape(0), "shapes");
  current_isa().rows->soft_cap(x.data(), cap, y.data(), int64_t(y.shape(0)));
}

void add(Floats x, ConstFloats y) {
  require(x.shape(0) == y.shape(0), "shapes");
  current_isa().rows->add(x.data(), y.data(), int64_t(x.shape(0)));
}

std::tuple<float, double> log_sum_exp(ConstFloats x) {
  float greatest;
  double sum;
  current_isa().rows->log_sum_exp(x.data(), int64_t(x.shape(0)), &greatest, &sum);
  return {greatest, sum};
}

std::tuple<int64_t, int64_t> kv_bytes(int kv_heads, int head_dim, int type) {
  const KvShape s = shape_of(kv_heads, head_dim, type);
  return {kv_head_bytes(s), kv_block_bytes(s)};
}

void kv_write(int kv_heads, int head_dim, int type, Bytes cache, Table table, int64_t first,
              ConstFloatRows k, ConstFloatRows v, int head_begin, int head_end) {
  const KvShape s = shape_of(kv_heads, head_dim, type);
  const int64_t n = int64_t(k.shape(0)), width = int64_t(k.shape(1));
  require(width == int64_t(kv_heads) * head_dim, "rows are kv_heads * head_dim wide");
  require(v.shape(0) == k.shape(0) && v.shape(1) == k.shape(1), "k and v have one shape");
  require(0 <= head_begin && head_begin <= head_end && head_end <= kv_heads, "heads");
  require_blocks(s, cache, table, first, first + n);
  nb::gil_scoped_release unlocked;
  current_isa().rows->kv_write(s, cache.data(), table.data(), first, n, k.data(), width, v.data(),
                               width, head_begin, head_end);
}

// All heads of n rows, `repeats` times; seconds of one. With `split` by parts that are joined.
double attend(int kv_heads, int head_dim, int type, Bytes cache, Table table, int64_t first,
              ConstFloatRows q, FloatRows out, float scale, int64_t window, float softcap,
              bool split, int repeats) {
  const KvShape s = shape_of(kv_heads, head_dim, type);
  const int64_t n = int64_t(q.shape(0)), width = int64_t(q.shape(1));
  require(out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1), "q and out have one shape");
  require(n > 0 && width > 0 && width % (int64_t(kv_heads) * head_dim) == 0, "row width");
  const int group = int(width / (int64_t(kv_heads) * head_dim));
  const int64_t seen = window > 0 ? std::max<int64_t>(0, first - window + 1) : 0;
  require_blocks(s, cache, table, seen, first + n);
  const int64_t begin = attention_parts_begin(first, window);
  const int64_t parts = attention_parts_end(first, n) - begin;
  const int64_t partial = attention_partial(s, group, n);
  const Aligned scratch(attention_scratch(s, group, n)), partials(split ? parts * partial : 1);
  const RowKernels& rows = *current_isa().rows;
  nb::gil_scoped_release unlocked;
  const auto before = std::chrono::steady_clock::now();
  for (int r = 0; r < repeats; ++r)
    for (int h = 0; h < kv_heads; ++h) {
      const int64_t at = int64_t(h) * group * head_dim;
      const Attention a = {s,     cache.data(), table.data(), first, n,      q.data() + at,
                           width, h,            group,        scale, window, softcap};
      if (!split) {
        rows.attend(a, out.data() + at, width, scratch.data);
        continue;
      }
      for (int64_t p = parts - 1; p >= 0; --p)
        rows.attend_part(a, begin + p, partials.data + p * partial, scratch.data);
      rows.attend_merge(a, partials.data, partial, parts, out.data() + at, width);
    }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count() / repeats;
}

// Seconds of one call of a row kernel of `n` floats.
double time_rows(const std::string& name, int64_t n, int repeats) {
  const RowKernels& rows = *current_isa().rows;
  require(n > 0 && n % 2 == 0, "n is even");
  std::vector<float> x(n, 0.5f), w(n, 1.0f), y(n, 0.25f);
  float greatest;
  double sum;
  const auto before = std::chrono::steady_clock::now();
  for (int r = 0; r < repeats; ++r) {
    if (name == "rms_norm") rows.rms_norm(x.data(), w.data(), y.data(), n, 1, 1e-5f);
    else if (name == "layer_norm") rows.layer_norm(x.data(), w.data(), w.data(), y.data(), n, 1e-5f);
    else if (name == "rope") rows.rope(x.data(), w.data(), y.data(), 1, n, n);
    else if (name == "swiglu") rows.swiglu(x.data(), w.data(), y.data(), n);
    else if (name == "geglu") rows.geglu(x.data(), w.data(), y.data(), n);
    else if (name == "gelu_erf") rows.gelu_erf(x.data(), y.data(), n);
    else if (name == "add") rows.add(x.data(), y.data(), n);
    else if (name == "log_sum_exp") rows.log_sum_exp(x.data(), n, &greatest, &sum);
    else throw std::invalid_argument("no such row kernel");
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count() / repeats;
}

}  // namespace

void bind_rows(nb::module_& m) {
  m.def("rows_rms_norm", &rms_norm, "x"_a.noconvert(), "w"_a.noconvert(), "y"_a.noconvert(),
        "groups"_a, "eps"_a);
  m.def("rows_layer_norm", &layer_norm, "x"_a.noconvert(), "w"_a.noconvert(),
        "b"_a.noconvert().none(), "y"_a.noconvert(), "eps"_a);
  m.def("rows_geglu", &geglu, "gate"_a.noconvert(), "up"_a.noconvert(), "y"_a.noconvert());
  m.def("rows_gelu", &gelu, "x"_a.noconvert(), "y"_a.noconvert(), "tanh"_a);
  m.def("rows_scale", &scale, "x"_a.noconvert(), "factor"_a, "y"_a.noconvert());
  m.def("rows_soft_cap", &soft_cap, "x"_a.noconvert(), "cap"_a, "y"_a.noconvert());
  m.def("rows_rope", &rope, "x"_a.noconvert(), "cos"_a.noconvert(), "sin"_a.noconvert());
  m.def("rows_swiglu", &swiglu, "gate"_a.noconvert(), "up"_a.noconvert(), "y"_a.noconvert());
  m.def("rows_add", &add, "x"_a.noconvert(), "y"_a.noconvert());
  m.def("rows_log_sum_exp", &log_sum_exp, "x"_a.noconvert());
  m.def("rows_kv_bytes", &kv_bytes, "kv_heads"_a, "head_dim"_a, "type"_a,
        "Bytes of a head and of a whole block of 32 positions.");
  m.def("rows_kv_write", &kv_write, "kv_heads"_a, "head_dim"_a, "type"_a, "cache"_a.noconvert(),
        "table"_a.noconvert(), "first"_a, "k"_a.noconvert(), "v"_a.noconvert(), "head_begin"_a,
        "head_end"_a);
  m.def("rows_attend", &attend, "kv_heads"_a, "head_dim"_a, "type"_a, "cache"_a.noconvert(),
        "table"_a.noconvert(), "first"_a, "q"_a.noconvert(), "out"_a.noconvert(), "scale"_a,
        "window"_a, "softcap"_a, "split"_a, "repeats"_a);
  m.def("rows_time", &time_rows, "name"_a, "n"_a, "repeats"_a);
}

}  // namespace kvant
