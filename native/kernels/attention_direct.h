// Attention's two products straight from the cache, for few queries: to the same bits as through
// floats, for both kinds of cache hold numbers that become floats without rounding.
#pragma once

#include "attention_tile.h"

namespace kvant::KVANT_ISA {

// One head's part of the blocks of a chunk, and of the chunk after it.
struct Blocks {
  const uint8_t* const* here;
  const uint8_t* const* ahead;
  int64_t head_dim;
};

// Where a block's numbers and scales lie, behind the address of its keys or values.
template <KvType T>
static inline constexpr int64_t kCodeBytes = T == KvType::F16 ? 2 : 1;

template <KvType T>
static inline vf load_codes_as_floats(const uint8_t* p) {
  if constexpr (T == KvType::F16) return vload_f16((const uint16_t*)p);
  return vload_i8((const int8_t*)p);
}

// As score_tile, for N vectors of a block's slots.
template <KvType T, int M, int N>
static void score_block(const float* q, const uint8_t* k, const uint8_t* ahead, int64_t slot,
                        int64_t head_dim, float* s) {
  constexpr int64_t kRow = kKvBlock * kCodeBytes<T>;
  vf acc[M][N] = {};
  for (int64_t group = 0; group < head_dim; group += 32) {
    vf scale[N];
    if constexpr (T == KvType::Q8_0) {
      const int64_t at = head_dim * kKvBlock + 2 * (group + slot);  // a group's scales: 32 halves
      prefetch(ahead + at);
      for (int n = 0; n < N; ++n) scale[n] = vload_f16((const uint16_t*)(k + at) + n * kLanes);
    }
    const int64_t stop = std::min(head_dim, group + 32);
    for (int64_t e = group; e < stop; ++e, q += M) {
      const int64_t at = e * kRow + slot * kCodeBytes<T>;
      prefetch(ahead + at);
      vf row[N];
      for (int n = 0; n < N; ++n) {
        row[n] = load_codes_as_floats<T>(k + at + n * kLanes * kCodeBytes<T>);
        if constexpr (T == KvType::Q8_0) row[n] *= scale[n];
      }
      for (int m = 0; m < M; ++m) {
        const vf x = splat(q[m]);
        for (int n = 0; n < N; ++n) acc[m][n] = vfma(x, row[n], acc[m][n]);
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(s + m * kChunk + n * kLanes, acc[m][n]);
}

// As value_tile, for the slots [begin, end) of a chunk and N vectors of head elements from `e` on.
template <KvType T, int M, int N>
static void weigh_blocks(const float* p, const Blocks& blocks, int64_t e, int64_t begin,
                         int64_t end, const float* factors, float* out, int64_t out_stride) {
  const int64_t head_dim = blocks.head_dim, groups = (head_dim + 31) / 32;
  const int64_t values = T == KvType::F16 ? head_dim * kKvBlock * 2
                                          : head_dim * kKvBlock + groups * kKvBlock * 2;
  vf acc[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n)
      acc[m][n] = load(out + m * out_stride + n * kLanes) * splat(factors[m]);
  for (int64_t j = begin; j < end;) {
    const uint8_t* v = blocks.here[j / kKvBlock] + values;
    const uint8_t* ahead = blocks.ahead[j / kKvBlock] + values;
    const int64_t stop = std::min<int64_t>(end, (j / kKvBlock + 1) * kKvBlock);
    for (; j < stop; ++j) {
      const int64_t at = (j % kKvBlock * head_dim + e) * kCodeBytes<T>;
      for (int64_t i = 0; i < N * kLanes * kCodeBytes<T>; i += 64) prefetch(ahead + at + i);
      vf row[N];
      for (int n = 0; n < N; ++n)
        row[n] = load_codes_as_floats<T>(v + at + n * kLanes * kCodeBytes<T>);
      if constexpr (T == KvType::Q8_0) {
        const int64_t scales = head_dim * kKvBlock + j % kKvBlock * groups * 2;
        prefetch(ahead + scales);
        for (int n = 0; n < N; ++n)
          row[n] *= vspread_f16((const uint16_t*)(v + scales) + (e + n * kLanes) / 32);
      }
      for (int m = 0; m < M; ++m) {
        const vf x = splat(p[m * kChunk + j]);
        for (int n = 0; n < N; ++n) acc[m][n] = vfma(x, row[n], acc[m][n]);
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(out + m * out_stride + n * kLanes, acc[m][n]);
}

template <KvType T>
struct Direct {
  template <int M, int N>
  static constexpr auto score = score_block<T, M, N>;
  template <int M, int N>
  static constexpr auto weigh = weigh_blocks<T, M, N>;

  using Score = void (*)(const float*, const uint8_t*, const uint8_t*, int64_t, int64_t, float*);
  using Weigh = void (*)(const float*, const Blocks&, int64_t, int64_t, int64_t, const float*,
                         float*, int64_t);
  static constexpr Score kScore[kMostM][kTileN] = KVANT_TILES(score);
  static constexpr Weigh kWeigh[kMostM][kTileN] = KVANT_TILES(weigh);
};

// Scores of m queries and the slots [from, to), whole vectors, to s [m][kChunk].
template <KvType T>
static void direct_scores(int64_t m, const float* q, const Blocks& blocks, int64_t from, int64_t to,
                          float* s) {
  for (int64_t j = from; j < to;) {
    const int64_t stop = std::min(to, (j / (2 * kLanes) + 1) * (2 * kLanes));
    const int64_t b = j / kKvBlock;
    Direct<T>::kScore[m - 1][(stop - j) / kLanes - 1](q, blocks.here[b], blocks.ahead[b],
                                                      j % kKvBlock, blocks.head_dim, s + j);
    j = stop;
  }
}

// out [m] rows of head_dim floats, out_stride apart; slots [begin, end).
template <KvType T>
static void direct_values(int64_t m, const float* p, const Blocks& blocks, int64_t begin,
                          int64_t end, const float* factors, float* out, int64_t out_stride) {
  for (int64_t e = 0; e < blocks.head_dim;) {
    const int64_t left = (blocks.head_dim - e) / kLanes;
    const int64_t n = std::min<int64_t>(left, tile_vectors(m));
    Direct<T>::kWeigh[m - 1][n - 1](p, blocks, e, begin, end, factors, out + e, out_stride);
    e += n * kLanes;
  }
}

}  // namespace kvant::KVANT_ISA
