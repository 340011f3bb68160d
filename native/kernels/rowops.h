// What the engine does to rows of floats between its matrix products.
//
// Every function gives one row the same bits whatever else is in the call: rows never share a sum,
// and the order of a row's sums follows from its width and its positions alone.
#pragma once

#include <cstdint>

#include "kv.h"

namespace kvant {

// Attention is summed in parts of this many positions, at fixed places, and the parts are joined in
// order. So a long context may be spread over threads, and the result does not show it.
inline constexpr int64_t kAttentionPart = 1024;

// Positions between two looks at a query's greatest score, at fixed places too.
inline constexpr int64_t kAttentionChunk = 128;

// What `attend` and friends are asked. Attention, causal or not, of `n` consecutive query rows of one
// sequence (positions first .. first + n - 1; their keys and values are already written) for the
// `group` query heads of one kv head.
struct Attention {
  KvShape shape;
  const uint8_t* cache;  // one layer's
  const int32_t* table;  // the physical block of each logical block
  int64_t first;
  int64_t n;
  const float* q;    // row r at q + r * q_stride: group * head_dim floats
  int64_t q_stride;  // floats
  int kv_head;
  int group;
  float scale;     // of the scores
  int64_t window;  // <= 0: none; else position p sees only those > p - window
  float softcap;   // 0: none; else a score s becomes softcap * tanh(s / softcap)
  int64_t both = 0;  // > 0: not causal; every row sees the first so many positions

  // The last position that row `r` sees.
  int64_t last_seen(int64_t r) const { return both > 0 ? both - 1 : first + r; }
};

// Floats between two queries' records in a partial result: a header and the padded head.
inline int64_t attention_record(const KvShape& s) {
  return 32 + (int64_t(s.head_dim) + 15) / 16 * 16;
}

// Query heads x rows that share one pass over keys and values.
inline constexpr int64_t kAttentionTile = 192;

inline int64_t attention_tile_rows(int group) {
  const int64_t rows = kAttentionTile / group;
  return rows < 1 ? 1 : rows;
}

// Floats of scratch for `attend` and `attend_part`, private to a thread, 64-byte aligned.
inline int64_t attention_scratch(const KvShape& s, int group, int64_t n) {
  const int64_t rows = n < attention_tile_rows(group) ? n : attention_tile_rows(group);
  const int64_t queries = rows * group;
  const int64_t padded = (int64_t(s.head_dim) + 15) / 16 * 16;
  // Keys and values of a chunk, scores of a register tile, queries, and two states.
  return 2 * kAttentionChunk * padded + 16 * kAttentionChunk +
         queries * (padded + 2 * attention_record(s));
}

// Floats of one part's partial result, 64-byte aligned.
inline int64_t attention_partial(const KvShape& s, int group, int64_t n) {
  return n * group * attention_record(s);
}

// One past the last part that n rows from position `first` can see, and the first one.
inline int64_t attention_parts_end(int64_t first, int64_t n) {
  return (first + n - 1) / kAttentionPart + 1;
}
inline int64_t attention_parts_begin(int64_t first, int64_t window) {
  const int64_t seen = window > 0 ? first - window + 1 : 0;
  return seen > 0 ? seen / kAttentionPart : 0;
}

struct RowKernels {
  // y = x / sqrt(mean(x^2) + eps) * w in each of `groups` equal parts of the row; w [width/groups].
  // y may be x.
  void (*rms_norm)(const float* x, const float* w, float* y, int64_t width, int64_t groups,
                   float eps);
  // y = (x - mean(x)) / sqrt(var(x) + eps) * w + b; b may be null, y may be x.
  void (*layer_norm)(const float* x, const float* w, const float* b, float* y, int64_t width,
                     float eps);
  // x [heads][head_dim] in place, pairs (i, i + turned / 2) of each head's first `turned` elements;
  // cos and sin [turned / 2].
  void (*rope)(float* x, const float* cos, const float* sin, int64_t heads, int64_t head_dim,
               int64_t turned);
  // y = gate / (1 + exp(-gate)) * up; y may be gate or up.
  void (*swiglu)(const float* gate, const float* up, float* y, int64_t n);
  // y = gelu(x) by tanh, or by the error function; y may be x.
  void (*gelu_tanh)(const float* x, float* y, int64_t n);
  void (*gelu_erf)(const float* x, float* y, int64_t n);
  // y = gelu(gate) * up by tanh; y may be gate or up.
  void (*geglu)(const float* gate, const float* up, float* y, int64_t n);
  // x += y
  void (*add)(float* x, const float* y, int64_t n);
  // x += share * y
  void (*add_share)(float* x, const float* y, float share, int64_t n);
  // y = factor * x; y may be x.
  void (*scale)(const float* x, float factor, float* y, int64_t n);
  // y = cap * tanh(x / cap); y may be x.
  void (*soft_cap)(const float* x, float cap, float* y, int64_t n);
  // Store n tokens from position `first` on, kv heads [head_begin, head_end) of them. k and v have
  // rows of kv_heads * head_dim floats, strides in floats. Finite numbers beyond half's range
  // become its largest: one of them must not turn the rows that mask it into NaN.
  void (*kv_write)(const KvShape& shape, uint8_t* cache, const int32_t* table, int64_t first,
                   int64_t n, const float* k, int64_t k_stride, const float* v, int64_t v_stride,
                   int head_begin, int head_end);
  // out: row r at out + r * out_stride, group * head_dim floats. The same bits as attend_part of
  // every part from attention_parts_begin to attention_parts_end, then attend_merge.
  void (*attend)(const Attention& a, float* out, int64_t out_stride, float* scratch);
  // Only positions [part * kAttentionPart, (part + 1) * kAttentionPart), into `partial`.
  void (*attend_part)(const Attention& a, int64_t part, float* partial, float* scratch);
  // Join `parts` partial results that lie `partial_stride` floats apart, in order; the first is
  // overwritten.
  void (*attend_merge)(const Attention& a, float* partials, int64_t partial_stride, int64_t parts,
                       float* out, int64_t out_stride);
  // The greatest of n floats, and the sum of exp(x - greatest) in double precision.
  void (*log_sum_exp)(const float* x, int64_t n, float* greatest, double* sum);
};

}  // namespace kvant
