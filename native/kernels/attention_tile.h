// The inner loops of attention: keys and values to floats, and two products by register tiles.
#pragma once

#include <algorithm>
#include <cmath>

#include "rowops.h"
#include "vmath.h"

namespace kvant::KVANT_ISA {

// A register tile: kTileM queries by kTileN vectors of results. With AVX-512 24 of 32 registers
// accumulate, else 12 of 16; each loaded vector serves kTileM multiplications. With AVX-512 up to
// kMostM queries by two vectors fit as well.
inline constexpr int kTileM = 6;
#if defined(__AVX512F__)
inline constexpr int kTileN = 4, kMostM = 8;
#else
inline constexpr int kTileN = 2, kMostM = 6;
#endif
inline constexpr int kPass = kTileN * kLanes;  // positions that one register tile scores
inline constexpr int64_t kChunk = kAttentionChunk;
static_assert(kChunk % kPass == 0 && kKvBlock % kLanes == 0);

// Ask for bytes that will be read soon. The blocks of a sequence lie anywhere, where the machine
// does not foresee them.
static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// ---- unpacking: keys to [slot / kPass][head_dim][kPass], values to [slot][padded] ---------------

static inline float* key_column(float* k, int64_t head_dim, int64_t slot) {
  return k + slot / kPass * head_dim * kPass + slot % kPass;
}

static inline void unpack_keys_f16(const uint16_t* in, int64_t head_dim, int64_t slot, float* k) {
  for (int t = 0; t < kKvBlock; t += kLanes) {
    float* out = key_column(k, head_dim, slot + t);
    for (int64_t e = 0; e < head_dim; ++e) store(out + e * kPass, vload_f16(in + e * kKvBlock + t));
  }
}

static inline void unpack_keys_q8(const uint8_t* in, int64_t head_dim, int64_t slot, float* k) {
  const int8_t* codes = (const int8_t*)in;
  const uint16_t* scales = (const uint16_t*)(in + head_dim * kKvBlock);
  for (int t = 0; t < kKvBlock; t += kLanes) {
    float* out = key_column(k, head_dim, slot + t);
    for (int64_t e = 0; e < head_dim; ++e)
      store(out + e * kPass,
            vload_i8(codes + e * kKvBlock + t) * vload_f16(scales + e / 32 * kKvBlock + t));
  }
}

static inline void unpack_values_f16(const uint16_t* in, int64_t head_dim, int64_t padded,
                                     int64_t tokens, float* v) {
  for (int64_t t = 0; t < tokens; ++t, in += head_dim, v += padded) {
    int64_t e = 0;
    for (; e + kLanes <= head_dim; e += kLanes) store(v + e, vload_f16(in + e));
    if (e < head_dim) {
      uint16_t rest[kLanes] = {};
      std::memcpy(rest, in + e, size_t(head_dim - e) * 2);
      store(v + e, vload_f16(rest));
    }
    for (e += kLanes * (e < head_dim); e < padded; e += kLanes) store(v + e, vf{});
  }
}

static inline void unpack_values_q8(const uint8_t* in, int64_t head_dim, int64_t padded,
                                    int64_t tokens, float* v) {
  const int64_t groups = (head_dim + 31) / 32;
  const int8_t* codes = (const int8_t*)in;
  const uint16_t* scales = (const uint16_t*)(in + head_dim * kKvBlock);
  for (int64_t t = 0; t < tokens; ++t, codes += head_dim, scales += groups, v += padded) {
    int64_t e = 0;
    for (; e + kLanes <= head_dim; e += kLanes)
      store(v + e, vload_i8(codes + e) * splat(half_to_float(scales[e / 32])));
    if (e < head_dim) {
      int8_t rest[kLanes] = {};
      std::memcpy(rest, codes + e, size_t(head_dim - e));
      store(v + e, vload_i8(rest) * splat(half_to_float(scales[e / 32])));
    }
    for (e += kLanes * (e < head_dim); e < padded; e += kLanes) store(v + e, vf{});
  }
}

// ---- products -----------------------------------------------------------------------------------

// acc[m][n] += the sum over i of a[m * AM + i * AK] times vector n of row i of b.
template <int M, int N, int AM, int AK>
[[gnu::always_inline]] static inline void multiply(vf (&acc)[M][N], const float* a, const float* b,
                                                   int64_t b_stride, int64_t count) {
  for (int64_t i = 0; i < count; ++i, a += AK, b += b_stride) {
    vf row[N];
    for (int n = 0; n < N; ++n) row[n] = load(b + n * kLanes);
    for (int m = 0; m < M; ++m) {
      const vf x = splat(a[m * AM]);
      for (int n = 0; n < N; ++n) acc[m][n] = vfma(x, row[n], acc[m][n]);
    }
  }
}

// Scores of M queries [head_dim][M] and N vectors of positions.
template <int M, int N>
static void score_tile(const float* q, const float* k, int64_t head_dim, float* s) {
  vf acc[M][N] = {};
  multiply<M, N, 1, M>(acc, q, k, kPass, head_dim);
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(s + m * kChunk + n * kLanes, acc[m][n]);
}

// out = out * factor + the sum of `count` values weighted by p, N vectors of head elements.
template <int M, int N>
static void value_tile(const float* p, const float* v, int64_t v_stride, int64_t count,
                       const float* factors, float* out, int64_t out_stride) {
  vf acc[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n)
      acc[m][n] = load(out + m * out_stride + n * kLanes) * splat(factors[m]);
  multiply<M, N, kChunk, 1>(acc, p, v, v_stride, count);
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(out + m * out_stride + n * kLanes, acc[m][n]);
}

using ScoreTile = void (*)(const float*, const float*, int64_t, float*);
using ValueTile = void (*)(const float*, const float*, int64_t, int64_t, const float*, float*,
                           int64_t);

// Vectors of results that a tile of m queries has registers for.
static inline constexpr int tile_vectors(int64_t m) { return m <= kTileM ? kTileN : 2; }

#if defined(__AVX512F__)
#define KVANT_TILES(f)                                                             \
  {{f<1, 1>, f<1, 2>, f<1, 3>, f<1, 4>}, {f<2, 1>, f<2, 2>, f<2, 3>, f<2, 4>},     \
   {f<3, 1>, f<3, 2>, f<3, 3>, f<3, 4>}, {f<4, 1>, f<4, 2>, f<4, 3>, f<4, 4>},     \
   {f<5, 1>, f<5, 2>, f<5, 3>, f<5, 4>}, {f<6, 1>, f<6, 2>, f<6, 3>, f<6, 4>},     \
   {f<7, 1>, f<7, 2>, nullptr, nullptr}, {f<8, 1>, f<8, 2>, nullptr, nullptr}}
#else
#define KVANT_TILES(f)                                                             \
  {{f<1, 1>, f<1, 2>}, {f<2, 1>, f<2, 2>}, {f<3, 1>, f<3, 2>}, {f<4, 1>, f<4, 2>}, \
   {f<5, 1>, f<5, 2>}, {f<6, 1>, f<6, 2>}}
#endif
static constexpr ScoreTile kScoreTiles[kMostM][kTileN] = KVANT_TILES(score_tile);
static constexpr ValueTile kValueTiles[kMostM][kTileN] = KVANT_TILES(value_tile);

// Scores of m queries and the slots [from, to), whole vectors, to s [m][kChunk].
static inline void scores(int64_t m, const float* q, const float* k, int64_t head_dim, int64_t from,
                          int64_t to, float* s) {
  const int64_t width = tile_vectors(m) * kLanes;
  for (int64_t j = from; j < to;) {
    const int64_t next = (j / width + 1) * width, stop = next < to ? next : to;
    kScoreTiles[m - 1][(stop - j) / kLanes - 1](q, key_column(const_cast<float*>(k), head_dim, j),
                                                head_dim, s + j);
    j = stop;
  }
}

// out [m] rows of `padded` floats, out_stride apart: see value_tile; slots [begin, end).
static inline void add_values(int64_t m, const float* p, const float* v, int64_t padded,
                              int64_t begin, int64_t end, const float* factors, float* out,
                              int64_t out_stride) {
  for (int64_t e = 0; e < padded;) {
    const int64_t left = (padded - e) / kLanes, n = std::min<int64_t>(left, tile_vectors(m));
    kValueTiles[m - 1][n - 1](p + begin, v + begin * padded + e, padded, end - begin, factors,
                              out + e, out_stride);
    e += n * kLanes;
  }
}

}  // namespace kvant::KVANT_ISA
