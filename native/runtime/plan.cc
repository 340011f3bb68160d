#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace kvant {
namespace {

int64_t padded(int64_t width) { return (width + kPanelRows - 1) / kPanelRows * kPanelRows; }

}  // namespace

Plan::Plan(int threads, int64_t most_tokens)
    : pool_(threads), isa_(current_isa()), most_tokens_((most_tokens + kTile - 1) / kTile * kTile) {}

int Plan::add_weight(std::shared_ptr<Weight> w) {
  weights_.push_back(std::move(w));
  return int(weights_.size()) - 1;
}

void Plan::set_weight(int id, std::shared_ptr<Weight> w) {
  const Weight& old = *weights_.at(size_t(id));
  if (w->rows() != old.rows() || w->columns() != old.columns() || w->matrices() != old.matrices())
    throw std::invalid_argument("the weight that replaces another has another shape");
  weights_[size_t(id)] = std::move(w);
  if (arena_) finish(kv_blocks_, stream_, result_, layers_);  // it may need other scratch
}

int Plan::add_vector(std::vector<float> v) {
  vectors_.push_back(std::move(v));
  return int(vectors_.size()) - 1;
}

void Plan::set_vector(int id, std::vector<float> v) {
  if (vectors_.at(size_t(id)).size() != v.size())
    throw std::invalid_argument("the vector that replaces another has another length");
  vectors_[size_t(id)] = std::move(v);
}

int Plan::add_table(std::shared_ptr<FileRows> rows) {
  tables_.push_back(std::move(rows));
  return int(tables_.size()) - 1;
}

int Plan::add_frequencies(std::vector<double> f, double magnitude) {
  turns_.push_back({std::move(f), magnitude, {}, {}});
  return int(turns_.size()) - 1;
}

int Plan::add_buffer(int64_t width) {
  if (width < 1) throw std::invalid_argument("a buffer has a width");
  buffers_.push_back({width, padded(width)});
  return int(buffers_.size()) - 1;
}

int Plan::add_view(int buffer, int64_t start, int64_t width) {
  const Buffer b = buffers_.at(size_t(buffer));
  if (b.parent >= 0 || width < 1 || start < 0 || start + width > b.width)
    throw std::invalid_argument("a view lies within a buffer");
  buffers_.push_back({width, b.stride, nullptr, buffer, start});
  return int(buffers_.size()) - 1;
}

int Plan::add_state(KvShape shape) {
  states_.push_back({shape, nullptr});
  return int(states_.size()) - 1;
}

// Everything an operation names is checked here, once, so that a step need not.
int Plan::add(Op op) {
  const auto buffer = [&](int id, int64_t width) {
    if (id < 0 || id >= int(buffers_.size()) || (width && buffers_[size_t(id)].width != width))
      throw std::invalid_argument("an operation names a buffer that does not fit it");
  };
  const auto vector = [&](int id, int64_t width) {
    if (id < 0 || id >= int(vectors_.size()) || int64_t(vectors_[size_t(id)].size()) != width)
      throw std::invalid_argument("an operation names a vector that does not fit it");
  };
  const auto width = [&](int id) { return buffers_[size_t(id)].width; };
  const auto turn = [&](int id, int64_t head_dim) {
    if (id >= int(turns_.size()) ||
        (id >= 0 && int64_t(turns_[size_t(id)].frequencies.size()) * 2 > head_dim))
      throw std::invalid_argument("an operation names frequencies that do not fit it");
  };
  const auto map = [&]() {
    const int64_t n = width(op.src);
    switch (op.map) {
      case Map::RmsNorm:
        if (op.groups < 1 || n % op.groups) throw std::invalid_argument("norm: groups");
        vector(op.vector, n / op.groups);
        break;
      case Map::LayerNorm:
        vector(op.vector, n);
        if (op.vector2 >= 0) vector(op.vector2, n);
        break;
      case Map::SwiGlu:
      case Map::GeGlu: buffer(op.src2, n); break;
      default: break;
    }
  };
  switch (op.kind) {
    case Op::Kind::Embed:
    case Op::Kind::Positions:
      if (op.table < 0 || op.table >= int(tables_.size()))
        throw std::invalid_argument("no such table");
      buffer(op.dst, tables_[size_t(op.table)]->columns());
      if (op.fixed >= tables_[size_t(op.table)]->rows()) throw std::invalid_argument("no such row");
      break;
    case Op::Kind::Map:
      buffer(op.src, 0);
      buffer(op.dst, width(op.src));
      map();
      break;
    case Op::Kind::Rope:
      buffer(op.src, op.heads * op.head_dim);
      turn(op.table, op.head_dim);
      if (op.table < 0) throw std::invalid_argument("rope: frequencies");
      break;
    case Op::Kind::Add:
      buffer(op.src, 0);
      buffer(op.src2, width(op.src));
      buffer(op.dst, width(op.src));
      break;
    case Op::Kind::Linear: {
      buffer(op.src, 0);
      op.columns = width(op.src);
      map();
      for (const Output& o : op.outputs) {
        if (o.weight < 0 || o.weight >= int(weights_.size()))
          throw std::invalid_argument("no such weight");
        const Weight& w = *weights_[size_t(o.weight)];
        if (w.columns() != op.columns) throw std::invalid_argument("a weight's row length");
        if (o.dst >= 0) buffer(o.dst, w.rows());
        if (o.dst >= 0 && buffers_[size_t(o.dst)].parent >= 0)
          throw std::invalid_argument("a product's result goes to a buffer of its own");
        if (o.bias >= 0) vector(o.bias, w.rows());
      }
      break;
    }
    case Op::Kind::Attention: {
      if (op.state < 0 || op.state >= int(states_.size()))
        throw std::invalid_argument("no such state");
      const KvShape& s = states_[size_t(op.state)].shape;
      if (op.heads < 1 || op.heads % s.kv_heads) throw std::invalid_argument("attention: heads");
      buffer(op.src, op.heads * s.head_dim);
      buffer(op.src2, int64_t(s.kv_heads) * s.head_dim);
      buffer(op.value, int64_t(s.kv_heads) * s.head_dim);
      buffer(op.dst, op.heads * s.head_dim);
      if (op.q_norm >= 0) vector(op.q_norm, s.head_dim);
      if (op.k_norm >= 0) vector(op.k_norm, s.head_dim);
      turn(op.q_rope, s.head_dim);
      turn(op.k_rope, s.head_dim);
      break;
    }
    case Op::Kind::Moe: {
      buffer(op.src, 0);
      op.columns = width(op.src);
      buffer(op.dst, op.columns);
      for (int id : {op.gate, op.up, op.down})
        if (id < 0 || id >= int(weights_.size())) throw std::invalid_argument("no such weight");
      const Weight &gate = *weights_[size_t(op.gate)], &up = *weights_[size_t(op.up)],
                   &down = *weights_[size_t(op.down)];
      if (gate.columns() != op.columns || up.columns() != op.columns ||
          up.rows() != gate.rows() || down.columns() != gate.matrix_rows() ||
          down.matrix_rows() != op.columns || up.matrices() != gate.matrices() ||
          down.matrices() != gate.matrices())
        throw std::invalid_argument("moe: the experts' shapes");
      if (op.used < 1 || op.used > gate.matrices()) throw std::invalid_argument("moe: used");
      buffer(op.src2, gate.matrices());
      break;
    }
  }
  ops_.push_back(std::move(op));
  return int(ops_.size()) - 1;
}

void Plan::set_head(Op op) {
  add(std::move(op));
  head_ = std::move(ops_.back());
  ops_.pop_back();
  if (head_.kind != Op::Kind::Linear || head_.outputs.size() != 1)
    throw std::invalid_argument("the head is a linear with one output");
  has_head_ = true;
}

int64_t Plan::vocabulary() const {
  return has_head_ ? weights_[size_t(head_.outputs[0].weight)]->rows() : 0;
}

int64_t Plan::kv_bytes_per_block(const std::vector<KvShape>& shapes) {
  int64_t bytes = 0;
  for (const KvShape& s : shapes) bytes += kv_block_bytes(s);
  return bytes;
}

int64_t Plan::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& w : weights_) bytes += w->memory();
  return bytes;
}

int64_t Plan::scratch_bytes() const {
  int64_t bytes = arena_ ? arena_->bytes() : 0;
  for (const auto& t : tiles_) bytes += t ? t->bytes() : 0;
  for (const Thread& t : threads_) bytes += t.pages->bytes();
  bytes += mixture_.pages ? mixture_.pages->bytes() : 0;
  return bytes;
}

uint32_t Plan::acts_of(const Op& op) const {
  uint32_t acts = 0;
  for (const Output& o : op.outputs)
    acts |= 1u << int(weights_[size_t(o.weight)]->kernels().act);
  return acts;
}

void Plan::finish(int64_t kv_blocks, int stream, int result, int layers) {
  stream_ = stream;
  result_ = result;
  layers_ = layers;
  if (!arena_) {
    int64_t floats = 0;
    for (const Buffer& b : buffers_) floats += b.parent < 0 ? b.stride * most_tokens_ : 0;
    arena_ = std::make_unique<Pages>(floats * 4);
    float* at = reinterpret_cast<float*>(arena_->data());
    for (Buffer& b : buffers_) {
      if (b.parent >= 0) {
        b.data = buffers_[size_t(b.parent)].data + b.start;
        continue;
      }
      b.data = at;
      at += b.stride * most_tokens_;
    }
    for (Turns& t : turns_) {
      t.cos.resize(t.frequencies.size() * size_t(most_tokens_));
      t.sin.resize(t.frequencies.size() * size_t(most_tokens_));
    }
    kv_blocks_ = kv_blocks;
    for (const State& s : states_) kv_bytes_ += kv_blocks * kv_block_bytes(s.shape);
    kv_ = std::make_unique<Pages>(kv_bytes_);
    uint8_t* cache = kv_->data();
    for (State& s : states_) {
      s.cache = cache;
      cache += kv_blocks * kv_block_bytes(s.shape);
    }
    ticket_count_ = ops_.size() * 2 + 8;
    for (Op& op : ops_)
      if (op.kind == Op::Kind::Moe) {
        op.tickets = ticket_count_;
        ticket_count_ += 6;
      }
    tickets_ = std::make_unique<Tickets[]>(ticket_count_);
  }
  int64_t tile[kActs] = {}, unpacked = 64, panel = 64, columns = 1, attention = 64;
  const auto size = [&](const Op& op) {
    for (const Output& o : op.outputs) {
      const Weight& w = *weights_[size_t(o.weight)];
      const int act = int(w.kernels().act);
      tile[act] = std::max(tile[act], act_layout(w.kernels().act, op.columns).bytes);
      const int64_t one = cache_lines(w.kernels().unpacked_bytes(op.columns));
      unpacked = std::max(unpacked, std::max(one, std::min(kUnpacked, one * w.panels())));
      panel = std::max(panel, w.scratch_bytes());
    }
    columns = std::max(columns, op.columns);
    if (op.kind == Op::Kind::Attention) {
      const KvShape& s = states_[size_t(op.state)].shape;
      const int group = int(op.heads / s.kv_heads);
      attention = std::max(attention, attention_scratch(s, group, most_tokens_) * 4);
    }
  };
  // A mixture has a row for each expert a token uses, and each expert's rows begin a tile.
  int64_t tile_bytes[kActs] = {}, rows = 0, outer = 0, inner = 0;
  const auto mixture = [&](const Op& op) {
    if (op.kind != Op::Kind::Moe) return;
    const int64_t all = most_tokens_ * op.used;
    for (int id : {op.gate, op.up, op.down}) {
      const Weight& w = *weights_[size_t(id)];
      const int64_t tiles = all / kTile + std::min(all, w.matrices());
      const Act act = w.kernels().act;
      int64_t& bytes = tile_bytes[int(act)];
      bytes = std::max(bytes, act_layout(act, w.columns()).bytes * tiles);
      const int64_t one = cache_lines(w.kernels().unpacked_bytes(w.columns()));
      unpacked = std::max(unpacked, std::max(one, std::min(kUnpacked, one * w.matrix_panels())));
      panel = std::max(panel, w.scratch_bytes());
      columns = std::max(columns, w.columns());
    }
    rows = std::max(rows, all);
    outer = std::max(outer, padded(op.columns));
    inner = std::max(inner, padded(weights_[size_t(op.down)]->columns()));
  };
  for (const Op& op : ops_) {
    size(op);
    mixture(op);
  }
  if (has_head_) size(head_);
  tiles_.clear();
  for (int a = 0; a < kActs; ++a) {
    const int64_t bytes = std::max(tile[a] * (most_tokens_ / kTile), tile_bytes[a]);
    tiles_.push_back(bytes ? std::make_unique<Pages>(bytes) : nullptr);
  }
  if (rows && !mixture_.pages) {
    Mixture& m = mixture_;
    m.pages = std::make_unique<Pages>(rows * (2 * inner + outer + 4) * 4);
    float* at = reinterpret_cast<float*>(m.pages->data());
    m.gate = at;
    m.up = at += rows * inner;
    m.out = at += rows * inner;
    m.share = at += rows * outer;
    m.chosen = reinterpret_cast<int32_t*>(at + rows);
    m.place = m.chosen + rows;
    m.source = m.place + rows;
  }
  threads_.clear();
  for (int t = 0; t < pool_.size(); ++t) {
    Thread scratch;
    const int64_t inputs = cache_lines(columns * 4) * kTile, spare = kTile * kPanelRows * 4;
    const int64_t parts[] = {cache_lines(unpacked), cache_lines(panel), inputs, cache_lines(attention), spare};
    int64_t bytes = 0;
    for (int64_t p : parts) bytes += p;
    scratch.pages = std::make_unique<Pages>(bytes);
    uint8_t* at = scratch.pages->data();
    scratch.unpacked = at;
    scratch.panel = at += parts[0];
    scratch.rows = reinterpret_cast<float*>(at += parts[1]);
    scratch.attention = reinterpret_cast<float*>(at += parts[2]);
    scratch.spare = reinterpret_cast<float*>(at += parts[3]);
    threads_.push_back(std::move(scratch));
  }
}

void Plan::copy_blocks(const std::vector<std::pair<int64_t, int64_t>>& pairs) {
  for (const auto& [from, to] : pairs)
    if (from < 0 || to < 0 || from >= kv_blocks_ || to >= kv_blocks_)
      throw std::invalid_argument("a block there is not");
  for (const State& s : states_) {
    const int64_t bytes = kv_block_bytes(s.shape);
    for (const auto& [from, to] : pairs)
      if (from != to) std::memcpy(s.cache + to * bytes, s.cache + from * bytes, size_t(bytes));
  }
}

void Plan::check_blocks(const std::vector<Entry>& entries) const {
  if (!arena_) throw std::invalid_argument("the plan is not finished");
  for (const Entry& e : entries)
    for (int64_t b = 0; b <= (e.first + e.count - 1) / kKvBlock; ++b)
      if (e.table[b] < 0 || e.table[b] >= kv_blocks_)
        throw std::invalid_argument("a block table names a block there is not");
}

void Plan::check_tokens(const int32_t* tokens, int64_t n) const {
  int64_t rows = INT64_MAX;
  for (const Op& op : ops_)
    if (op.kind == Op::Kind::Embed) rows = std::min(rows, tables_[size_t(op.table)]->rows());
  for (int64_t i = 0; i < n; ++i)
    if (tokens[i] < 0 || tokens[i] >= rows) throw std::invalid_argument("a token there is not");
}

void Plan::check_positions(const std::vector<Entry>& entries) const {
  for (const Op& op : ops_)
    if (op.kind == Op::Kind::Positions && op.fixed < 0)
      for (const Entry& e : entries)
        if (e.first + e.count > tables_[size_t(op.table)]->rows())
          throw std::invalid_argument("a position there is not");
}

}  // namespace kvant
