// One step: every thread walks the plan's operations and takes pieces of each by ticket.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "plan.h"

namespace kvant {
namespace {

// Rows of a query tile and tokens written by one piece of work: whole blocks of keys and values.
constexpr int64_t kQueryRows = 64;

}  // namespace

void Plan::positions(Run& run, int thread) {
  for (int64_t t = thread; t < run.request->count; t += pool_.size())
    for (Turns& turns : turns_) {
      const size_t n = turns.frequencies.size();
      for (size_t i = 0; i < n; ++i) {
        const double angle = double(run.positions[size_t(t)]) * turns.frequencies[i];
        turns.cos[size_t(t) * n + i] = float(std::cos(angle) * turns.magnitude);
        turns.sin[size_t(t) * n + i] = float(std::sin(angle) * turns.magnitude);
      }
    }
}

// Row `t` of an operation's source, mapped to `y`, which may be the row itself.
void Plan::map(const Op& op, int64_t t, float* y) {
  const RowKernels& k = *isa_.rows;
  const int64_t n = buffers_[size_t(op.src)].width;
  const float* x = row(op.src, t);
  const float* v = op.vector < 0 ? nullptr : vectors_[size_t(op.vector)].data();
  const float* v2 = op.vector2 < 0 ? nullptr : vectors_[size_t(op.vector2)].data();
  switch (op.map) {
    case Map::Nothing: break;
    case Map::RmsNorm: k.rms_norm(x, v, y, n, op.groups, op.number); break;
    case Map::LayerNorm: k.layer_norm(x, v, v2, y, n, op.number); break;
    case Map::SwiGlu: k.swiglu(x, row(op.src2, t), y, n); break;
    case Map::GeGlu: k.geglu(x, row(op.src2, t), y, n); break;
    case Map::GeluTanh: k.gelu_tanh(x, y, n); break;
    case Map::GeluErf: k.gelu_erf(x, y, n); break;
    case Map::Scale: k.scale(x, op.number, y, n); break;
  }
}

void Plan::prepare(const Op& op, int index, Run& run, int thread, int64_t tokens) {
  const uint32_t acts = acts_of(op);
  float* capture = nullptr;
  for (const Capture& c : run.request->captures)
    if (c.op == index) capture = c.out;
  Thread& own = threads_[size_t(thread)];
  const int64_t row_stride = cache_lines(op.columns * 4) / 4;
  Tickets& tickets = tickets_[size_t(2 * index)];
  const int64_t tiles = (tokens + kTile - 1) / kTile;
  const int width = tile_width(tokens);
  for (int64_t tile = tickets.take(1); tile < tiles; tile = tickets.take(1)) {
    const int n = int(std::min<int64_t>(kTile, tokens - tile * kTile));
    const float* rows[kTile];
    for (int i = 0; i < n; ++i) {
      const int64_t t = tile * kTile + i;
      float* y = op.map == Map::Nothing ? row(op.src, t) : own.rows + i * row_stride;
      map(op, t, y);
      rows[i] = y;
      if (capture) std::memcpy(capture + t * op.columns, rows[i], size_t(op.columns) * 4);
    }
    for (int a = 0; a < kActs; ++a)
      if (acts >> a & 1) {
        const int64_t bytes = act_layout(Act(a), op.columns, width).bytes;
        isa_.prepare_tile(Act(a), rows, n, width, op.columns, tiles_[size_t(a)]->data() + tile * bytes);
      }
  }
}

void Plan::multiply(const Op& op, Run& run, int thread, int64_t tokens, float* out,
                    int64_t out_stride) {
  Tickets& tickets = tickets_[size_t(2 * (&op == &head_ ? int64_t(ops_.size()) : &op - ops_.data()) + 1)];
  const bool direct = tokens <= kDirect;
  const int width = tile_width(tokens);
  // Pieces of work over all outputs: some panels each.
  struct Share {
    int64_t first, pieces, panels;
  } shares[8];
  int64_t all = 0;
  for (size_t i = 0; i < op.outputs.size(); ++i) {
    const Weight& w = *weights_[size_t(op.outputs[i].weight)];
    const int64_t one = cache_lines(w.kernels().unpacked_bytes(op.columns));
    int64_t panels = std::clamp<int64_t>(w.panels() / (pool_.size() * 8), 1, 16);
    if (!direct && one) panels = std::clamp<int64_t>(kUnpacked / one, 1, panels);
    shares[i] = {all, (w.panels() + panels - 1) / panels, panels};
    all += shares[i].pieces;
  }
  for (int64_t piece = tickets.take(1); piece < all; piece = tickets.take(1)) {
    size_t i = op.outputs.size() - 1;
    while (shares[i].first > piece) --i;
    const Output& o = op.outputs[i];
    const Weight& w = *weights_[size_t(o.weight)];
    const int64_t begin = (piece - shares[i].first) * shares[i].panels;
    const Act act = w.kernels().act;
    product({&w, tiles_[size_t(act)]->data(), act_layout(act, op.columns, width).bytes, width, tokens,
             out ? out : row(o.dst, 0), out ? out_stride : buffers_[size_t(o.dst)].stride, 0,
             o.bias < 0 ? nullptr : vectors_[size_t(o.bias)].data(), o.add, out != nullptr},
            begin, std::min(begin + shares[i].panels, w.panels()), run, thread);
    if (run.failed) return;
  }
}

void Plan::product(const Product& x, int64_t begin, int64_t end, Run& run, int thread) {
  Thread& own = threads_[size_t(thread)];
  const Weight& w = *x.weight;
  const PanelKernels& k = w.kernels();
  const int64_t columns = w.columns(), tiles = (x.tokens + kTile - 1) / kTile;
  const uint8_t* from[64];
  const int64_t unpacked = cache_lines(k.unpacked_bytes(columns));
  const bool unpack = x.tokens > kDirect && unpacked;
  // Streamed panels share one scratch, so they are used one by one unless they are unpacked.
  const int64_t batch = !w.resident() && !unpack ? 1 : end - begin;
  for (int64_t p0 = begin; p0 < end; p0 += batch) {
    const int64_t p1 = std::min(p0 + batch, end);
    for (int64_t p = p0; p < p1; ++p) {
      const uint8_t* panel = w.panel(p, own.panel);
      if (!panel) {
        run.failed = true;
        return;
      }
      if (unpack) {
        k.unpack(panel, columns, own.unpacked + (p - p0) * unpacked);
        panel = own.unpacked + (p - p0) * unpacked;
      }
      from[p - p0] = panel;
    }
    const auto multiply = unpack ? k.multiply_unpacked : k.multiply;
    const auto one = [&](int64_t p, int64_t t) {
      const int n = int(std::min<int64_t>(kTile, x.tokens - t * kTile));
      const int64_t first = (p - x.base) * kPanelRows;
      float* at = x.y + t * kTile * x.stride + first;
      const int64_t rows = std::min<int64_t>(kPanelRows, w.matrix_rows() - first);
      const uint8_t* tile = x.tiles + t * x.tile_bytes;
      if (!x.bias && !x.add && (rows == kPanelRows || !x.exact))
        return multiply(from[p - p0], columns, tile, x.width, n, at, x.stride);
      multiply(from[p - p0], columns, tile, x.width, n, own.spare, kPanelRows);
      for (int j = 0; j < n; ++j) {
        const float* made = own.spare + j * kPanelRows;
        float* to = at + j * x.stride;
        for (int64_t r = 0; r < rows; ++r) {
          const float v = x.bias ? made[r] + x.bias[first + r] : made[r];
          to[r] = x.add ? to[r] + v : v;
        }
      }
    };
    // A panel meets all tiles while it is in the first-level cache; a tile, all unpacked panels.
    if (unpack)
      for (int64_t t = 0; t < tiles; ++t)
        for (int64_t p = p0; p < p1; ++p) one(p, t);
    else
      for (int64_t p = p0; p < p1; ++p)
        for (int64_t t = 0; t < tiles; ++t) one(p, t);
  }
}

// What comes after the head: every thread takes its share of the rows.
void Plan::finish_logits(float* logits, int64_t rows, int thread) const {
  const int64_t n = vocabulary();
  for (int64_t j = thread; j < rows; j += pool_.size()) {
    float* x = logits + j * n;
    if (head_.factor != 1) isa_.rows->scale(x, head_.factor, x, n);
    if (head_.cap > 0) isa_.rows->soft_cap(x, head_.cap, x, n);
  }
}

void Plan::linear(const Op& op, int index, Run& run, int thread, float* out, int64_t out_stride) {
  const int64_t tokens = run.tokens;
  prepare(op, index, run, thread, tokens);
  pool_.barrier();
  multiply(op, run, thread, tokens, out, out_stride);
  pool_.barrier();
}

void Plan::attention(const Op& op, Run& run, int thread) {
  const State& state = states_[size_t(op.state)];
  const KvShape& s = state.shape;
  const int group = int(op.heads / s.kv_heads);
  const size_t index = size_t(&op - ops_.data());
  const std::vector<Entry>& entries = run.request->entries;
  const Buffer &q = buffers_[size_t(op.src)], &k = buffers_[size_t(op.src2)],
               &v = buffers_[size_t(op.value)], &out = buffers_[size_t(op.dst)];

  // Pieces are whole blocks of the cache, so that no two threads write to one line.
  Tickets& writes = tickets_[2 * index];
  const auto pieces = [](const Entry& e) {
    return (e.first + e.count - 1) / kKvBlock - e.first / kKvBlock + 1;
  };
  int64_t base = 0;
  size_t at = 0;
  const auto turn = [&](int id, float* x, int64_t heads, int64_t t) {
    if (id < 0) return;
    const Turns& turns = turns_[size_t(id)];
    const size_t n = turns.frequencies.size();
    isa_.rows->rope(x, turns.cos.data() + size_t(t) * n, turns.sin.data() + size_t(t) * n, heads,
                    s.head_dim, int64_t(2 * n));
  };
  for (int64_t piece = writes.take(1);; piece = writes.take(1)) {
    while (at < entries.size() && piece - base >= pieces(entries[at])) base += pieces(entries[at++]);
    if (at == entries.size()) break;
    const Entry& e = entries[at];
    const int64_t block = e.first / kKvBlock + (piece - base);
    const int64_t p0 = std::max(e.first, block * kKvBlock);
    const int64_t p1 = std::min(e.first + e.count, (block + 1) * kKvBlock);
    for (int64_t p = p0; p < p1; ++p) {
      const int64_t t = e.begin + p - e.first;
      float *qr = row(op.src, t), *kr = row(op.src2, t);
      if (op.q_norm >= 0)
        isa_.rows->rms_norm(qr, vectors_[size_t(op.q_norm)].data(), qr, q.width, op.heads, op.q_eps);
      if (op.k_norm >= 0)
        isa_.rows->rms_norm(kr, vectors_[size_t(op.k_norm)].data(), kr, k.width, s.kv_heads,
                            op.k_eps);
      turn(op.q_rope, qr, op.heads, t);
      turn(op.k_rope, kr, s.kv_heads, t);
    }
    const int64_t t = e.begin + p0 - e.first;
    isa_.rows->kv_write(s, state.cache, e.table, p0, p1 - p0, row(op.src2, t), k.stride,
                        row(op.value, t), v.stride, 0, s.kv_heads);
  }
  pool_.barrier();

  Tickets& reads = tickets_[2 * index + 1];
  const int64_t rows = std::min(attention_tile_rows(group), kQueryRows);
  base = 0;
  at = 0;
  const auto tiles = [&](const Entry& e) { return (e.count + rows - 1) / rows * s.kv_heads; };
  for (int64_t piece = reads.take(1);; piece = reads.take(1)) {
    while (at < entries.size() && piece - base >= tiles(entries[at])) base += tiles(entries[at++]);
    if (at == entries.size()) break;
    const Entry& e = entries[at];
    // The last rows see most: they go first, so that the threads end together.
    const int64_t count = (e.count + rows - 1) / rows;
    const int64_t tile = count - 1 - (piece - base) / s.kv_heads;
    const int head = int((piece - base) % s.kv_heads);
    const int64_t r0 = tile * rows, t = e.begin + r0;
    const int64_t offset = int64_t(head) * group * s.head_dim;
    const Attention a{s,
                      state.cache,
                      e.table,
                      e.first + r0,
                      std::min(rows, e.count - r0),
                      row(op.src, t) + offset,
                      q.stride,
                      head,
                      group,
                      op.scale,
                      op.window,
                      op.softcap,
                      op.causal ? 0 : e.first + e.count};
    isa_.rows->attend(a, row(op.dst, t) + offset, out.stride, threads_[size_t(thread)].attention);
  }
  pool_.barrier();
}

void Plan::operate(const Op& op, int index, Run& run, int thread) {
  Tickets& tickets = tickets_[size_t(2 * index)];
  const auto each = [&](auto&& f) {
    for (int64_t t0 = tickets.take(kTile); t0 < run.tokens; t0 = tickets.take(kTile))
      for (int64_t t = t0; t < std::min(t0 + kTile, run.tokens); ++t) f(t);
    pool_.barrier();
  };
  switch (op.kind) {
    case Op::Kind::Embed: {
      const FileRows& table = *tables_[size_t(op.table)];
      std::vector<uint8_t> raw(size_t(table.row_bytes()));
      each([&](int64_t t) {
        if (!table.decode(run.request->tokens[t], raw.data(), row(op.dst, t))) run.failed = true;
      });
      break;
    }
    case Op::Kind::Positions: {
      const FileRows& table = *tables_[size_t(op.table)];
      std::vector<uint8_t> raw(size_t(table.row_bytes()));
      each([&](int64_t t) {
        const int64_t position = op.fixed < 0 ? run.positions[size_t(t)] : op.fixed;
        if (!table.decode(position, raw.data(), row(op.dst, t))) run.failed = true;
      });
      break;
    }
    case Op::Kind::Map: each([&](int64_t t) { map(op, t, row(op.dst, t)); }); break;
    case Op::Kind::Rope:
      each([&](int64_t t) {
        const Turns& turns = turns_[size_t(op.table)];
        const size_t n = turns.frequencies.size();
        isa_.rows->rope(row(op.src, t), turns.cos.data() + size_t(t) * n,
                        turns.sin.data() + size_t(t) * n, op.heads, op.head_dim, int64_t(2 * n));
      });
      break;
    case Op::Kind::Add:
      each([&](int64_t t) {
        const int64_t width = buffers_[size_t(op.src)].width;
        if (op.dst != op.src)
          std::memcpy(row(op.dst, t), row(op.src, t), size_t(width) * 4);
        isa_.rows->add(row(op.dst, t), row(op.src2, t), width);
      });
      break;
    case Op::Kind::Linear: linear(op, index, run, thread, nullptr, 0); break;
    case Op::Kind::Attention: attention(op, run, thread); break;
    case Op::Kind::Moe: moe(op, index, run, thread); break;
  }
}

StepResult Plan::run(const Request& r) {
  if (r.count < 1 || r.count > most_tokens_ || int64_t(r.rows.size()) > most_tokens_)
    throw std::invalid_argument("a step has from 1 to the planned number of tokens");
  for (size_t i = 0; i < ticket_count_; ++i) tickets_[i].reset();
  Run run;
  run.request = &r;
  run.tokens = r.count;
  run.positions.resize(size_t(r.count));
  for (const Entry& e : r.entries)
    for (int64_t i = 0; i < e.count; ++i) run.positions[size_t(e.begin + i)] = int32_t(e.first + i);
  const int64_t width = buffers_[size_t(stream_)].width;
  if (r.stream_in)
    for (int64_t t = 0; t < r.count; ++t)
      std::memcpy(row(stream_, t), r.stream_in + t * width, size_t(width) * 4);
  const bool tail = !r.rows.empty() && r.last_layer >= layers_;
  // A read that fails is only noted: a thread that left early would leave others at a barrier.
  pool_.run([&](int thread) {
    positions(run, thread);
    pool_.barrier();
    size_t i = 0;
    for (; i < ops_.size() && ops_[i].layer < layers_; ++i)
      if (ops_[i].layer >= r.first_layer && ops_[i].layer <= r.last_layer)
        operate(ops_[i], int(i), run, thread);
    if (!tail) return;
    // From here on only the rows wanted: they move to the front. Ascending, so none is overwritten
    // before it has moved.
    if (thread == 0) {
      for (size_t j = 0; j < r.rows.size(); ++j)
        if (r.rows[j] != int32_t(j))
          std::memcpy(row(stream_, int64_t(j)), row(stream_, r.rows[j]), size_t(width) * 4);
      run.tokens = int64_t(r.rows.size());
    }
    pool_.barrier();
    for (; i < ops_.size(); ++i) operate(ops_[i], int(i), run, thread);
    if (r.logits && has_head_) {
      linear(head_, int(ops_.size()), run, thread, r.logits, vocabulary());
      finish_logits(r.logits, run.tokens, thread);
    }
  });
  if (r.stream_out)
    for (int64_t t = 0; t < r.count; ++t)
      std::memcpy(r.stream_out + t * width, row(stream_, t), size_t(width) * 4);
  const int64_t n = buffers_[size_t(result_)].width;
  if (r.result && tail)
    for (size_t j = 0; j < r.rows.size(); ++j)
      std::memcpy(r.result + int64_t(j) * n, row(result_, int64_t(j)), size_t(n) * 4);
  StepResult result;
  result.read_failed = run.failed;
  if (r.logits && has_head_ && !run.failed)
    for (size_t j = 0; j < r.rows.size() && result.bad_row < 0; ++j)
      if (isa_.first_beyond(r.logits + int64_t(j) * vocabulary(), vocabulary(), 3.4e38f) >= 0)
        result.bad_row = int64_t(j);
  return result;
}

StepResult Plan::head(const float* hidden, int64_t n, float* logits) {
  if (!has_head_) throw std::invalid_argument("the plan has no head");
  StepResult result;
  const int64_t width = buffers_[size_t(result_)].width;
  for (int64_t done = 0; done < n; done += most_tokens_) {
    const int64_t count = std::min(most_tokens_, n - done);
    for (int64_t t = 0; t < count; ++t)
      std::memcpy(row(result_, t), hidden + (done + t) * width, size_t(width) * 4);
    for (size_t i = 0; i < ticket_count_; ++i) tickets_[i].reset();
    Request r;
    Run run;
    run.request = &r;
    run.tokens = count;
    float* out = logits + done * vocabulary();
    pool_.run([&](int thread) {
      linear(head_, int(ops_.size()), run, thread, out, vocabulary());
      finish_logits(out, count, thread);
    });
    if (run.failed) result.read_failed = true;
    for (int64_t j = 0; j < count && result.bad_row < 0; ++j)
      if (isa_.first_beyond(out + j * vocabulary(), vocabulary(), 3.4e38f) >= 0)
        result.bad_row = done + j;
  }
  return result;
}

}  // namespace kvant
