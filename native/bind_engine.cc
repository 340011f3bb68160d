// The engine's Python face: weights, a plan, and steps over it. kvant/engine/ is the only caller.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <tuple>

#include "runtime/plan.h"
#include "runtime/rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

using Bytes2 = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Int1 = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int2 = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Long2 = nb::ndarray<const int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatIn2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Float2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

using IntOut2 = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using RoutingTuple = std::tuple<int, IntOut2, std::optional<Float2>, std::optional<Float2>>;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

float* optional_rows(const std::optional<Float2>& a, size_t rows, size_t width, const char* what) {
  if (!a) return nullptr;
  require(a->shape(0) == rows && a->shape(1) == width, what);
  return a->data();
}

// (read_failed, bad_row)
std::tuple<bool, int64_t> step(Plan& plan, Int1 tokens, Long2 entries, Int2 tables, Int1 rows,
                               int first_layer, int last_layer, std::optional<FloatIn2> stream_in,
                               std::optional<Float2> stream_out, std::optional<Float2> result,
                               std::optional<Float2> logits,
                               std::vector<std::tuple<int, Float2>> captures,
                               std::vector<RoutingTuple> routings) {
  Plan::Request r;
  r.tokens = tokens.data();
  r.count = int64_t(tokens.shape(0));
  require(entries.shape(1) == 3, "entries are [n, 3]: begin, count, first position");
  require(tables.shape(0) == entries.shape(0), "one block table an entry");
  int64_t next = 0;
  for (size_t i = 0; i < entries.shape(0); ++i) {
    const int64_t* e = entries.data() + 3 * i;
    require(e[0] == next && e[1] > 0 && e[2] >= 0, "entries follow each other");
    next += e[1];
    require(e[2] + e[1] <= int64_t(tables.shape(1)) * kKvBlock, "a block table is too short");
    r.entries.push_back({e[0], e[1], e[2], tables.data() + i * tables.shape(1)});
  }
  require(next == r.count, "entries cover the tokens");
  plan.check_blocks(r.entries);
  plan.check_positions(r.entries);
  if (first_layer < 0) plan.check_tokens(r.tokens, r.count);
  int64_t last = -1;
  for (size_t i = 0; i < rows.shape(0); ++i) {
    require(rows.data()[i] > last && rows.data()[i] < r.count, "rows ascend");
    last = rows.data()[i];
    r.rows.push_back(rows.data()[i]);
  }
  const size_t stream = size_t(plan.buffer_width(plan.stream()));
  r.first_layer = first_layer;
  r.last_layer = last_layer;
  if (stream_in) {
    require(stream_in->shape(0) == tokens.shape(0) && stream_in->shape(1) == stream, "stream_in");
    r.stream_in = stream_in->data();
  }
  r.stream_out = optional_rows(stream_out, tokens.shape(0), stream, "stream_out");
  r.result = optional_rows(result, rows.shape(0), size_t(plan.buffer_width(plan.result())), "result");
  r.logits = optional_rows(logits, rows.shape(0), size_t(plan.vocabulary()), "logits");
  for (auto& [op, out] : captures) {
    require(out.shape(0) == tokens.shape(0) && int64_t(out.shape(1)) == plan.op_columns(op),
            "a capture is [tokens, row length]");
    r.captures.push_back({op, out.data()});
  }
  for (auto& [op, experts, outer, inner] : routings) {
    const Op& moe = plan.op(op);
    require(moe.kind == Op::Kind::Moe, "a routing is of a mixture of experts");
    require(experts.shape(0) == tokens.shape(0) && int64_t(experts.shape(1)) == moe.used,
            "a routing is [tokens, used]");
    const size_t rows = tokens.shape(0) * size_t(moe.used);
    const size_t width = size_t(plan.weight(moe.down)->columns());
    r.routings.push_back(
        {op, experts.data(),
         optional_rows(outer, tokens.shape(0), size_t(moe.columns), "outer inputs"),
         optional_rows(inner, rows, width, "inner inputs")});
  }
  StepResult result_;
  {
    nb::gil_scoped_release unlocked;
    result_ = plan.run(r);
  }
  return {result_.read_failed, result_.bad_row};
}

std::tuple<bool, int64_t> head(Plan& plan, FloatIn2 hidden, Float2 logits) {
  require(int64_t(hidden.shape(1)) == plan.buffer_width(plan.result()), "hidden width");
  require(logits.shape(0) == hidden.shape(0) && int64_t(logits.shape(1)) == plan.vocabulary(),
          "logits [rows, vocabulary]");
  StepResult result;
  {
    nb::gil_scoped_release unlocked;
    result = plan.head(hidden.data(), int64_t(hidden.shape(0)), logits.data());
  }
  return {result.read_failed, result.bad_row};
}

std::shared_ptr<Weight> weight_of_array(int type, size_t columns, Bytes2 data, int64_t matrices) {
  const BlockShape s = block_shape(type);
  require(s.elements > 0 && columns % size_t(s.elements) == 0 && columns > 0 && data.shape(0) > 0 &&
              columns / size_t(s.elements) * size_t(s.bytes) == data.shape(1),
          "rows do not follow from row length and type");
  nb::gil_scoped_release unlocked;
  return std::make_shared<Weight>(type, int64_t(data.shape(0)), int64_t(columns), data.data(),
                                  matrices);
}

using OutputTuple = std::tuple<int, int, int, bool>;

Op map_op(Op::Kind kind, int layer, int what, int src, int src2, int vector, int vector2,
          float number) {
  require(what >= 0 && what < kMaps, "map");
  Op op{};
  op.kind = kind;
  op.layer = layer;
  op.map = Map(what);
  op.src = src;
  op.src2 = src2;
  op.vector = vector;
  op.vector2 = vector2;
  op.number = number;
  return op;
}

Op linear_op(Op op, const std::vector<OutputTuple>& outputs) {
  require(!outputs.empty() && outputs.size() <= 8, "linear");
  for (const auto& [weight, bias, dst, add] : outputs) op.outputs.push_back({weight, bias, dst, add});
  return op;
}

Op simple_op(Op::Kind kind, int layer, int src, int src2, int dst) {
  Op op{};
  op.kind = kind;
  op.layer = layer;
  op.src = src;
  op.src2 = src2;
  op.dst = dst;
  return op;
}

}  // namespace

void bind_engine(nb::module_& m) {
  m.attr("KV_BLOCK") = kKvBlock;
  m.def("has_panels", [](int type) { return panel_kernels_of(type) != nullptr; }, "type"_a,
        "Whether the engine multiplies weights of this storage type.");
  m.def("kv_block_bytes", [](int kv_heads, int head_dim, int type) {
    return kv_block_bytes({kv_heads, head_dim, KvType(type)});
  });

  nb::class_<FileRows>(m, "FileRows", "Rows of one storage type in open files.")
      .def("__init__",
           [](FileRows* self, const std::vector<std::tuple<int, int64_t>>& parts, int type,
              int64_t rows, int64_t columns) {
             std::vector<FileRows::Part> places;
             for (const auto& [fd, offset] : parts) places.push_back({fd, offset});
             new (self) FileRows(std::move(places), type, rows, columns);
           },
           "parts"_a, "type"_a, "rows"_a, "columns"_a);
  nb::class_<Weight>(m, "Weight", "A matrix as the engine holds it.")
      .def(nb::init<std::shared_ptr<FileRows>, std::vector<int32_t>, bool, int64_t>(), "source"_a,
           "order"_a, "resident"_a, "matrices"_a = 1)
      .def_static("of_array", &weight_of_array, "type"_a, "columns"_a, "data"_a.noconvert(),
                  "matrices"_a = 1)
      .def_prop_ro("rows", &Weight::rows)
      .def_prop_ro("columns", &Weight::columns)
      .def_prop_ro("matrices", &Weight::matrices)
      .def_prop_ro("type", &Weight::type)
      .def_prop_ro("memory", &Weight::memory);

  nb::class_<Plan>(m, "Plan", "Operations of a model, and the memory they run in.")
      .def(nb::init<int, int64_t>(), "threads"_a, "most_tokens"_a)
      .def("load", [](Plan& p, std::vector<std::shared_ptr<Weight>> weights) {
        nb::gil_scoped_release unlocked;
        for (size_t i = 0; i < weights.size(); ++i)
          if (!weights[i]->load(p.pool())) return int(i);
        return -1;
      }, "weights"_a, "Fill panels; the index of the first weight that cannot be read, or -1.")
      .def("add_weight", &Plan::add_weight)
      .def("set_weight", &Plan::set_weight)
      .def("weight", &Plan::weight)
      .def("op_columns", &Plan::op_columns)
      .def("add_vector", &Plan::add_vector)
      .def("set_vector", &Plan::set_vector)
      .def("add_table", &Plan::add_table)
      .def("add_frequencies", &Plan::add_frequencies)
      .def("add_buffer", &Plan::add_buffer)
      .def("add_view", &Plan::add_view)
      .def("add_state", [](Plan& p, int kv_heads, int head_dim, int type) {
        require(kv_heads > 0 && head_dim > 0 && (type == 0 || type == 1), "state");
        return p.add_state({kv_heads, head_dim, KvType(type)});
      })
      .def("embed", [](Plan& p, int table, int dst) {
        Op op = simple_op(Op::Kind::Embed, -1, -1, -1, dst);
        op.table = table;
        return p.add(op);
      })
      .def("positions", [](Plan& p, int table, int dst, int64_t fixed) {
        Op op = simple_op(Op::Kind::Positions, -1, -1, -1, dst);
        op.table = table;
        op.fixed = fixed;
        return p.add(op);
      }, "table"_a, "dst"_a, "fixed"_a = -1)
      .def("map", [](Plan& p, int layer, int what, int src, int src2, int dst, int vector,
                     int vector2, float number, int64_t groups) {
        Op op = map_op(Op::Kind::Map, layer, what, src, src2, vector, vector2, number);
        op.dst = dst;
        op.groups = groups;
        return p.add(op);
      })
      .def("rope", [](Plan& p, int layer, int buffer, int table, int64_t heads, int64_t head_dim) {
        Op op = simple_op(Op::Kind::Rope, layer, buffer, -1, buffer);
        op.table = table;
        op.heads = heads;
        op.head_dim = head_dim;
        return p.add(op);
      })
      .def("add", [](Plan& p, int layer, int left, int right, int dst) {
        return p.add(simple_op(Op::Kind::Add, layer, left, right, dst));
      })
      .def("linear", [](Plan& p, int layer, int before, int src, int src2, int vector, int vector2,
                        float number, const std::vector<OutputTuple>& outputs) {
        for (const OutputTuple& o : outputs) require(std::get<2>(o) >= 0, "linear: output");
        const Op op = map_op(Op::Kind::Linear, layer, before, src, src2, vector, vector2, number);
        return p.add(linear_op(op, outputs));
      })
      .def("head", [](Plan& p, int src, int weight, int bias, float factor, float cap) {
        Op op = map_op(Op::Kind::Linear, 0, 0, src, -1, -1, -1, 0);
        op.factor = factor;
        op.cap = cap;
        p.set_head(linear_op(op, {OutputTuple{weight, bias, -1, false}}));
      })
      .def("attention",
           [](Plan& p, int layer, int q, int k, int v, int dst, int state, int64_t heads,
              float scale, int64_t window, float softcap, int q_norm, float q_eps, int k_norm,
              float k_eps, int q_rope, int k_rope, bool causal) {
             Op op = simple_op(Op::Kind::Attention, layer, q, k, dst);
             op.value = v;
             op.state = state;
             op.heads = heads;
             op.scale = scale;
             op.window = window;
             op.softcap = softcap;
             op.q_norm = q_norm;
             op.q_eps = q_eps;
             op.k_norm = k_norm;
             op.k_eps = k_eps;
             op.q_rope = q_rope;
             op.k_rope = k_rope;
             op.causal = causal;
             return p.add(op);
           })
      .def("moe",
           [](Plan& p, int layer, int src, int scores, int dst, bool add, int gate, int up, int down,
              int64_t used, bool normalise) {
             Op op = simple_op(Op::Kind::Moe, layer, src, scores, dst);
             op.add = add;
             op.gate = gate;
             op.up = up;
             op.down = down;
             op.used = used;
             op.normalise = normalise;
             return p.add(op);
           })
      .def("finish", &Plan::finish, "kv_blocks"_a, "stream"_a, "result"_a, "layers"_a)
      .def("step", &step, "tokens"_a.noconvert(), "entries"_a.noconvert(), "tables"_a.noconvert(),
           "rows"_a.noconvert(), "first_layer"_a, "last_layer"_a, "stream_in"_a.noconvert().none(),
           "stream_out"_a.noconvert().none(), "result"_a.noconvert().none(),
           "logits"_a.noconvert().none(), "captures"_a,
           "routings"_a = std::vector<RoutingTuple>())
      .def("copy_blocks", &Plan::copy_blocks, "pairs"_a, nb::call_guard<nb::gil_scoped_release>(),
           "Copy blocks of the cache, of all layers: (from, to).")
      .def("run_head", &head, "hidden"_a.noconvert(), "logits"_a.noconvert())
      .def_prop_ro("threads", [](Plan& p) { return p.pool().size(); })
      .def_prop_ro("most_tokens", &Plan::most_tokens)
      .def_prop_ro("kv_bytes", &Plan::kv_bytes)
      .def_prop_ro("weight_bytes", &Plan::weight_bytes)
      .def_prop_ro("scratch_bytes", &Plan::scratch_bytes);
}

}  // namespace kvant
