// Attention over a block cache, by the running softmax of FlashAttention (arXiv 2205.14135).
//
// A tile of queries goes over the positions in chunks at fixed places. A chunk's keys and values
// become floats once for the tile; scores and weighted values are then two small matrix products,
// register tile by register tile. In both, lanes hold results (positions, head elements) and each
// result is one chain of additions in order, so how queries are grouped does not show: a position
// that a query must not see gets the weight zero, and adding zero changes nothing.
#include "attention_direct.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int64_t kBlocksPerChunk = kChunk / kKvBlock;
constexpr float kLog2E = 1.44269504f;

// A run of kChunk positions, and what of them a tile sees.
struct Chunk {
  int64_t base;        // first position
  int64_t begin, end;  // positions seen; only their blocks have an address
  const uint8_t* blocks[kBlocksPerChunk];  // this head's part of each
  const uint8_t* ahead[kBlocksPerChunk];   // of the chunk after it, or the same where there is none
};

const uint8_t* block_of(const Attention& a, int64_t position) {
  return a.cache + a.table[position / kKvBlock] * kv_block_bytes(a.shape) +
         a.kv_head * kv_head_bytes(a.shape);
}

// `last` is the last position that any row of the tile sees.
Chunk chunk_at(const Attention& a, int64_t base, int64_t begin, int64_t end, int64_t last) {
  Chunk c = {base, begin > base ? begin : base, end < base + kChunk ? end : base + kChunk, {}, {}};
  for (int64_t b = 0; b < kBlocksPerChunk; ++b) {
    const int64_t at = base + b * kKvBlock;
    if (at + kKvBlock <= c.begin || at >= c.end) continue;
    c.blocks[b] = block_of(a, at);
    c.ahead[b] = at + kChunk <= last ? block_of(a, at + kChunk) : c.blocks[b];
  }
  return c;
}

// One tile's memory, cut from the caller's scratch.
struct Workspace {
  float* k;        // [kChunk / kPass][head_dim][kPass]
  float* v;        // [kChunk][padded]
  float* weights;  // [kTileM][kChunk]
  float* q;        // register tiles of [head_dim][kTileM]
  float* part;     // records of the part at hand
  float* next;     // room for another part's
};

int64_t padded_dim(const KvShape& s) { return (int64_t(s.head_dim) + 15) / 16 * 16; }

Workspace cut(const Attention& a, int64_t rows, float* scratch) {
  const int64_t padded = padded_dim(a.shape), queries = rows * a.group;
  Workspace w;
  w.k = scratch;
  w.v = w.k + kChunk * padded;
  w.weights = w.v + kChunk * padded;
  w.q = w.weights + 16 * kChunk;
  w.part = w.q + queries * padded;
  w.next = w.part + queries * attention_record(a.shape);
  return w;
}

// A record is one query's state: kLanes partial sums of its weights, at kMax the greatest score, at
// kHeader the weighted values. Closing it leaves the whole sum in front.
constexpr int kMax = 16, kHeader = 32;

void open_records(float* records, int64_t count, int64_t size) {
  std::memset(records, 0, size_t(count * size) * 4);
  for (int64_t i = 0; i < count; ++i) records[i * size + kMax] = -INFINITY;
}

void close_records(float* records, int64_t count, int64_t size) {
  for (int64_t i = 0; i < count; ++i) records[i * size] = vtotal(load(records + i * size));
}

// The chunk's keys and values as floats. Slots that are not seen are left as they are: scores there
// are masked, and values there are not read.
void load_chunk(const Attention& a, const Chunk& c, const Workspace& w) {
  const int64_t head_dim = a.shape.head_dim, padded = padded_dim(a.shape);
  for (int64_t b = 0; b < kBlocksPerChunk; ++b) {
    if (!c.blocks[b]) continue;
    const int64_t left = c.end - c.base - b * kKvBlock, tokens = left < kKvBlock ? left : kKvBlock;
    const uint8_t* values = c.blocks[b] + kv_half_bytes(a.shape);
    float* v = w.v + b * kKvBlock * padded;
    for (int64_t i = 0; i < kv_head_bytes(a.shape); i += 64) prefetch(c.ahead[b] + i);
    if (a.shape.type == KvType::F16) {
      unpack_keys_f16((const uint16_t*)c.blocks[b], head_dim, b * kKvBlock, w.k);
      unpack_values_f16((const uint16_t*)values, head_dim, padded, tokens, v);
    } else {
      unpack_keys_q8(c.blocks[b], head_dim, b * kKvBlock, w.k);
      unpack_values_q8(values, head_dim, padded, tokens, v);
    }
  }
}

// Queries of a register tile.
int64_t tile_queries(int64_t queries) { return queries <= kMostM ? queries : kTileM; }

// Queries of rows [row, row + rows), scaled, element by element within a register tile.
void load_queries(const Attention& a, int64_t row, int64_t rows, float* q) {
  const int64_t head_dim = a.shape.head_dim, queries = rows * a.group;
  const float scale = a.softcap > 0 ? a.scale : a.scale * kLog2E;
  const int64_t size = tile_queries(queries);
  for (int64_t i = 0; i < queries; ++i) {
    const float* from = a.q + (row + i / a.group) * a.q_stride + i % a.group * head_dim;
    const int64_t tile = i / size * size;
    const int64_t m = queries - tile < size ? queries - tile : size;
    float* to = q + tile * head_dim + i % size;
    for (int64_t e = 0; e < head_dim; ++e) to[e * m] = from[e] * scale;
  }
}

// One query's scores become weights under its greatest score so far; its sum goes on. Returns what
// its older values must be multiplied by. [low, high) are the slots of the chunk it sees, [begin,
// end) the whole vectors that the register tile sees.
float weigh(float* s, float* record, int64_t low, int64_t high, int64_t begin, int64_t end,
            float softcap) {
  if (softcap > 0) {
    const vf inverse = splat(1.0f / softcap), cap = splat(softcap * kLog2E);
    for (int64_t j = begin; j < end; j += kLanes) store(s + j, vtanh(load(s + j) * inverse) * cap);
  }
  const vf lowest = splat(-INFINITY);
  if (low > begin || high < end)
    for (int64_t j = begin; j < end; j += kLanes) {
      const vi slot = vcount() + int32_t(j);
      store(s + j, select((slot >= int32_t(low)) & (slot < int32_t(high)), load(s + j), lowest));
    }
  vf most = lowest;
  for (int64_t j = begin; j < end; j += kLanes) most = vmax(most, load(s + j));
  const float old = record[kMax];
  const float here = vmost(most);
  const float top = here > old ? here : old;
  record[kMax] = top;
  const float shift = top == -INFINITY ? 0.0f : top;  // nothing seen yet: all weights are zero
  const float factor = vexp2(splat(old - shift))[0];
  vf sum = load(record) * splat(factor);
  for (int64_t j = begin; j < end; j += kLanes) {
    const vf p = vexp2(load(s + j) - splat(shift));
    store(s + j, p);
    sum += p;
  }
  store(record, sum);
  return factor;
}

// Queries that are too few to be worth a copy of keys and values as floats.
constexpr int64_t kFew = 8;

bool straight_from_cache(const Attention& a, int64_t queries) {
  return queries <= kFew && a.shape.head_dim % kLanes == 0;
}

// Queries [i, i + m) of the tile and one chunk.
void step(const Attention& a, const Chunk& c, const Workspace& w, int64_t row, int64_t i, int64_t m,
          bool straight) {
  const int64_t head_dim = a.shape.head_dim, padded = padded_dim(a.shape);
  const int64_t record = attention_record(a.shape);
  const int64_t first = a.first + row + i / a.group;
  const int64_t last = a.last_seen(row + (i + m - 1) / a.group);
  int64_t begin = c.begin - c.base;
  if (a.window > 0 && first - a.window + 1 - c.base > begin) begin = first - a.window + 1 - c.base;
  const int64_t end = (c.end < last + 1 ? c.end : last + 1) - c.base;
  if (begin >= end) return;

  const int64_t from = begin / kLanes * kLanes, to = (end + kLanes - 1) / kLanes * kLanes;
  const float* q = w.q + i * head_dim;
  const Blocks blocks = {c.blocks, c.ahead, head_dim};
  const bool halves = a.shape.type == KvType::F16;
  if (!straight)
    scores(m, q, w.k, head_dim, from, to, w.weights);
  else if (halves)
    direct_scores<KvType::F16>(m, q, blocks, from, to, w.weights);
  else
    direct_scores<KvType::Q8_0>(m, q, blocks, from, to, w.weights);
  float factors[kMostM];
  for (int64_t k = 0; k < m; ++k) {
    const int64_t position = first + (i % a.group + k) / a.group;
    const int64_t low = a.window > 0 ? position - a.window + 1 - c.base : 0;
    factors[k] = weigh(w.weights + k * kChunk, w.part + (i + k) * record, low > begin ? low : begin,
                       a.last_seen(position - a.first) + 1 - c.base, from, to, a.softcap);
  }
  float* out = w.part + i * record + kHeader;
  if (!straight)
    add_values(m, w.weights, w.v, padded, begin, end, factors, out, record);
  else if (halves)
    direct_values<KvType::F16>(m, w.weights, blocks, begin, end, factors, out, record);
  else
    direct_values<KvType::Q8_0>(m, w.weights, blocks, begin, end, factors, out, record);
}

// Rows [row, row + rows) over one part, into w.part's records.
void run_part(const Attention& a, int64_t row, int64_t rows, int64_t part, const Workspace& w) {
  const int64_t queries = rows * a.group;
  const int64_t start = a.window > 0 ? a.first + row - a.window + 1 : 0;
  const int64_t begin = start > part * kAttentionPart ? start : part * kAttentionPart;
  const int64_t last = a.last_seen(row + rows - 1), limit = (part + 1) * kAttentionPart;
  const int64_t end = last + 1 < limit ? last + 1 : limit;
  const bool straight = straight_from_cache(a, queries);
  const int64_t tile = tile_queries(queries);
  open_records(w.part, queries, attention_record(a.shape));
  for (int64_t base = begin / kChunk * kChunk; base < end; base += kChunk) {
    const Chunk c = chunk_at(a, base, begin, end, last);
    if (!straight) load_chunk(a, c, w);
    for (int64_t i = 0; i < queries; i += tile)
      step(a, c, w, row, i, queries - i < tile ? queries - i : tile, straight);
  }
  close_records(w.part, queries, attention_record(a.shape));
}

// Join a part to those before it.
void join(float* total, const float* part, int64_t padded) {
  const float old = total[kMax], here = part[kMax];
  const float top = here > old ? here : old;
  const float shift = top == -INFINITY ? 0.0f : top;
  const vf keep = vexp2(splat(old - shift)), take = vexp2(splat(here - shift));
  total[kMax] = top;
  total[0] = total[0] * keep[0] + part[0] * take[0];
  for (int64_t e = kHeader; e < kHeader + padded; e += kLanes)
    store(total + e, vfma(load(total + e), keep, load(part + e) * take));
}

// The weighted mean. Adding zero makes a negative zero positive: where a weight underflowed, its
// sign would tell how queries were grouped.
void finish(const float* total, int64_t head_dim, float* out) {
  const vf sum = splat(total[0]);
  int64_t e = 0;
  for (; e + kLanes <= head_dim; e += kLanes)
    store(out + e, load(total + kHeader + e) / sum + 0.0f);
  if (e < head_dim) vstore_some(out + e, load(total + kHeader + e) / sum + 0.0f, head_dim - e);
}

void finish_rows(const Attention& a, int64_t row, int64_t rows, const float* totals, float* out,
                 int64_t out_stride) {
  for (int64_t i = 0; i < rows * a.group; ++i)
    finish(totals + i * attention_record(a.shape), a.shape.head_dim,
           out + (row + i / a.group) * out_stride + i % a.group * a.shape.head_dim);
}

}  // namespace

void attend(const Attention& a, float* out, int64_t out_stride, float* scratch) {
  const int64_t record = attention_record(a.shape), padded = padded_dim(a.shape);
  const int64_t tile = attention_tile_rows(a.group);
  for (int64_t row = 0; row < a.n; row += tile) {
    const int64_t rows = a.n - row < tile ? a.n - row : tile;
    Workspace w = cut(a, a.n < tile ? a.n : tile, scratch);
    load_queries(a, row, rows, w.q);
    float* total = w.part;
    const int64_t end = a.last_seen(row + rows - 1) / kAttentionPart + 1;
    for (int64_t p = attention_parts_begin(a.first + row, a.window); p < end; ++p) {
      run_part(a, row, rows, p, w);
      if (w.part == total) {
        w.part = w.next;
        continue;
      }
      for (int64_t i = 0; i < rows * a.group; ++i)
        join(total + i * record, w.part + i * record, padded);
    }
    finish_rows(a, row, rows, total, out, out_stride);
  }
}

void attend_part(const Attention& a, int64_t part, float* partial, float* scratch) {
  const int64_t record = attention_record(a.shape);
  const int64_t tile = attention_tile_rows(a.group);
  for (int64_t row = 0; row < a.n; row += tile) {
    const int64_t rows = a.n - row < tile ? a.n - row : tile;
    Workspace w = cut(a, a.n < tile ? a.n : tile, scratch);
    w.part = partial + row * a.group * record;
    load_queries(a, row, rows, w.q);
    run_part(a, row, rows, part, w);
  }
}

void attend_merge(const Attention& a, float* partials, int64_t partial_stride, int64_t parts,
                  float* out, int64_t out_stride) {
  const int64_t record = attention_record(a.shape), padded = padded_dim(a.shape);
  for (int64_t p = 1; p < parts; ++p)
    for (int64_t i = 0; i < a.n * a.group; ++i)
      join(partials + i * record, partials + p * partial_stride + i * record, padded);
  finish_rows(a, 0, a.n, partials, out, out_stride);
}

}  // namespace kvant::KVANT_ISA
