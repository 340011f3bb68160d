// A mixture of experts: tokens sorted by the experts they chose, so that an expert's panels meet all
// of its tokens at once. Where there are few tokens, the experts that none of them chose are not read.
//
// A token's result depends on the token alone: its experts follow from its own scores, a row gets the
// same bits wherever in its expert's group it lies, and rows are added in the order of their shares.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "plan.h"

namespace kvant {

// The `used` largest scores, the first of equal ones, and their shares. With all shares normalised
// those of the chosen are the same as softmax over the chosen alone.
void Plan::choose(const Op& op, int64_t token) {
  const int64_t experts = weights_[size_t(op.gate)]->matrices();
  float* scores = row(op.src2, token);
  int32_t* chosen = mixture_.chosen + token * op.used;
  float* share = mixture_.share + token * op.used;
  float total = 0;
  const float most = *std::max_element(scores, scores + experts);
  if (!op.normalise)
    for (int64_t e = 0; e < experts; ++e) total += std::exp(scores[e] - most);
  for (int64_t i = 0; i < op.used; ++i) {
    int32_t best = -1;
    for (int32_t e = 0; e < int32_t(experts); ++e) {
      if (std::find(chosen, chosen + i, e) != chosen + i) continue;
      if (best < 0 || scores[e] > scores[best]) best = e;
    }
    chosen[i] = best;
    share[i] = std::exp(scores[best] - most);  // not finite where the scores are not
    if (op.normalise) total += share[i];
  }
  for (int64_t i = 0; i < op.used; ++i) share[i] /= total;
}

// Rows by expert, in the order of tokens; an expert's rows begin a tile.
void Plan::group(const Op& op, int64_t tokens) {
  Mixture& m = mixture_;
  const int64_t rows = tokens * op.used;
  std::vector<int64_t> count(size_t(weights_[size_t(op.gate)]->matrices()));
  for (int64_t i = 0; i < rows; ++i) ++count[size_t(m.chosen[i])];
  m.groups.clear();
  int64_t first = 0, tile = 0;
  for (size_t e = 0; e < count.size(); ++e) {
    const int64_t n = count[e];
    count[e] = first;  // from here on, where its next row goes
    if (!n) continue;
    m.groups.push_back({int64_t(e), first, n, tile});
    first += n;
    tile += (n + kTile - 1) / kTile;
  }
  m.tiles = tile;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = count[size_t(m.chosen[i])]++;
    m.place[i] = int32_t(at);
    m.source[at] = int32_t(i);
  }
}

// Inputs of the experts as tiles: of gate and up the tokens' own rows, of down (`inner`) what those
// two gave.
void Plan::prepare_experts(const Op& op, int index, Run& run, int thread, bool inner) {
  Mixture& m = mixture_;
  Thread& own = threads_[size_t(thread)];
  const Weight &gate = *weights_[size_t(op.gate)], &up = *weights_[size_t(op.up)],
               &down = *weights_[size_t(op.down)];
  const int64_t columns = inner ? down.columns() : op.columns;
  const int64_t room = cache_lines(columns * 4) / 4, stride = cache_lines(down.columns() * 4) / 4;
  uint32_t acts = 0;
  if (inner)
    acts = 1u << int(down.kernels().act);
  else
    acts = 1u << int(gate.kernels().act) | 1u << int(up.kernels().act);
  float* capture = nullptr;
  for (const Routing& r : run.request->routings)
    if (r.op == index && inner) capture = r.inner;
  Tickets& tickets = tickets_[op.tickets + (inner ? 3 : 1)];
  size_t g = 0;
  for (int64_t tile = tickets.take(1); tile < m.tiles; tile = tickets.take(1)) {
    while (g + 1 < m.groups.size() && m.groups[g + 1].tile <= tile) ++g;
    const Mixture::Group& group = m.groups[g];
    const int64_t begin = group.first + (tile - group.tile) * kTile;
    const int n = int(std::min<int64_t>(kTile, group.first + group.count - begin));
    const int width = tile_width(group.count);
    const float* rows[kTile];
    for (int i = 0; i < n; ++i) {
      const int64_t r = begin + i, source = m.source[r];
      if (inner) {
        float* y = own.rows + i * room;
        isa_.rows->swiglu(m.gate + r * stride, m.up + r * stride, y, columns);
        rows[i] = y;
        if (capture) std::memcpy(capture + source * columns, y, size_t(columns) * 4);
      } else {
        rows[i] = row(op.src, source / op.used);
      }
    }
    for (int a = 0; a < kActs; ++a)
      if (acts >> a & 1) {
        const int64_t bytes = act_layout(Act(a), columns).bytes;
        isa_.prepare_tile(Act(a), rows, n, width, columns, tiles_[size_t(a)]->data() + tile * bytes);
      }
  }
}

void Plan::multiply_experts(const Op& op, Run& run, int thread, bool inner) {
  Mixture& m = mixture_;
  const Weight& down = *weights_[size_t(op.down)];
  const Weight* weights[2] = {weights_[size_t(op.gate)].get(), weights_[size_t(op.up)].get()};
  float* results[2] = {m.gate, m.up};
  const int64_t count = inner ? 1 : 2;
  if (inner) {
    weights[0] = &down;
    results[0] = m.out;
  }
  const int64_t stride = cache_lines((inner ? op.columns : down.columns()) * 4) / 4;
  const int64_t panels = weights[0]->matrix_panels();
  const int64_t all = panels * count * int64_t(m.groups.size());
  int64_t step = std::clamp<int64_t>(all / (pool_.size() * 8), 1, std::min<int64_t>(16, panels));
  for (int64_t i = 0; i < count; ++i) {
    const Weight& w = *weights[i];
    const int64_t one = cache_lines(w.kernels().unpacked_bytes(w.columns()));
    if (one) step = std::clamp<int64_t>(kUnpacked / one, 1, step);
  }
  const int64_t each = (panels + step - 1) / step;
  Tickets& tickets = tickets_[op.tickets + (inner ? 4 : 2)];
  const int64_t pieces = each * count * int64_t(m.groups.size());
  for (int64_t piece = tickets.take(1); piece < pieces && !run.failed; piece = tickets.take(1)) {
    const Mixture::Group& group = m.groups[size_t(piece / (each * count))];
    const int64_t which = piece / each % count, base = group.expert * panels;
    const Weight& w = *weights[which];
    const Act act = w.kernels().act;
    const int64_t bytes = act_layout(act, w.columns()).bytes;
    const int64_t begin = base + piece % each * step;
    const int width = tile_width(group.count);
    // One narrow tile, or whole ones: either way they follow each other at full width.
    product({&w, tiles_[size_t(act)]->data() + group.tile * bytes, bytes, width, group.count,
             results[which] + group.first * stride, stride, base, nullptr, false, false},
            begin, std::min(begin + step, base + panels), run, thread);
  }
}

void Plan::moe(const Op& op, int index, Run& run, int thread) {
  Mixture& m = mixture_;
  const auto each_token = [&](size_t ticket, auto&& f) {
    Tickets& tickets = tickets_[op.tickets + ticket];
    for (int64_t t0 = tickets.take(kTile); t0 < run.tokens; t0 = tickets.take(kTile))
      for (int64_t t = t0; t < std::min(t0 + kTile, run.tokens); ++t) f(t);
    pool_.barrier();
  };
  each_token(0, [&](int64_t t) {
    choose(op, t);
    for (const Routing& r : run.request->routings)
      if (r.op == index) {
        std::memcpy(r.experts + t * op.used, m.chosen + t * op.used, size_t(op.used) * 4);
        if (r.outer) std::memcpy(r.outer + t * op.columns, row(op.src, t), size_t(op.columns) * 4);
      }
  });
  if (thread == 0) group(op, run.tokens);
  pool_.barrier();
  for (const bool inner : {false, true}) {
    prepare_experts(op, index, run, thread, inner);
    pool_.barrier();
    multiply_experts(op, run, thread, inner);
    pool_.barrier();
  }
  const int64_t stride = cache_lines(op.columns * 4) / 4;
  each_token(5, [&](int64_t t) {
    float* y = row(op.dst, t);
    if (!op.add) std::memset(y, 0, size_t(op.columns) * 4);
    for (int64_t i = t * op.used; i < (t + 1) * op.used; ++i)
      isa_.rows->add_share(y, m.out + m.place[i] * stride, m.share[i], op.columns);
  });
}

}  // namespace kvant
