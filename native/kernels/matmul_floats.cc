// Panels of float weights (F32, F16, BF16), and the rounding of activations into tiles.
#include <cmath>

#include "../runtime/x86.h"
#include "dot.h"
#include "packing.h"

namespace kvant::KVANT_ISA {
namespace {

#if defined(__AVX512VNNI__) && (defined(__GNUC__) || defined(__clang__))
#define KVANT_BF16_DOT 1
#endif

constexpr int kTokens = kLanes == 4 ? 4 : kTile;

// ---- F32 and F16: one column of every row in a register ------------------------------------------

template <int BYTES>
int64_t float_panel_bytes(int64_t columns) {
  return (columns * kPanelRows * BYTES + 63) / 64 * 64;
}

int64_t no_bytes(int64_t) { return 0; }
void no_unpack(const uint8_t*, int64_t, uint8_t*) {}

template <int BYTES>
void interleave_floats(const uint8_t* const* rows, int n, int64_t columns, uint8_t* panel) {
  if (n < kPanelRows) std::memset(panel, 0, size_t(float_panel_bytes<BYTES>(columns)));
  for (int64_t c0 = 0; c0 < columns; c0 += 64) {  // in strips, so that lines are written while warm
    const int64_t c1 = c0 + 64 < columns ? c0 + 64 : columns;
    for (int r = 0; r < n; ++r)
      for (int64_t c = c0; c < c1; ++c)
        std::memcpy(panel + (c * kPanelRows + r) * BYTES, rows[r] + c * BYTES, BYTES);
  }
}

template <int BYTES>
inline vf load_column(const uint8_t* p) {
  if constexpr (BYTES == 2) return vload_f16((const uint16_t*)p);
  return load((const float*)p);
}

template <int BYTES, int T, int W>
void product_floats(const uint8_t* panel, int64_t columns, const float* x, float* y,
                    int64_t stride) {
  vf acc[T][kParts] = {};
  for (int64_t c = 0; c < columns; ++c)
    for (int p = 0; p < kParts; ++p) {
      const vf w = load_column<BYTES>(panel + (c * kPanelRows + p * kLanes) * BYTES);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[t][p] = vfma(w, splat(x[c * W + t]), acc[t][p]);
    }
  for (int t = 0; t < T; ++t)
    for (int p = 0; p < kParts; ++p) store(y + t * stride + p * kLanes, acc[t][p]);
}

// ---- BF16: two columns of every row in a register ------------------------------------------------

int64_t pair_panel_bytes(int64_t columns) { return (columns + 1) / 2 * kPanelRows * 4; }

void interleave_pairs(const uint8_t* const* rows, int n, int64_t columns, uint8_t* panel) {
  if (n < kPanelRows || columns % 2) std::memset(panel, 0, size_t(pair_panel_bytes(columns)));
  for (int64_t c0 = 0; c0 < columns; c0 += 64) {
    const int64_t c1 = c0 + 64 < columns ? c0 + 64 : columns;
    for (int r = 0; r < n; ++r)
      for (int64_t c = c0; c < c1; c += 2)
        std::memcpy(panel + c / 2 * kPanelRows * 4 + r * 4, rows[r] + c * 2, c + 1 < columns ? 4 : 2);
  }
}

template <int T, int W>
void product_pairs(const uint8_t* panel, int64_t columns, const float* x, float* y, int64_t stride) {
  vf acc[T][kParts] = {};
  for (int64_t c = 0; c < columns; c += 2)
    for (int p = 0; p < kParts; ++p) {
      const vi both = load_words(panel + c / 2 * kPanelRows * 4 + p * kLanes * 4);
      const vf even = (vf)(both << 16), odd = (vf)(both & int32_t(0xffff0000));
      const bool whole = c + 1 < columns;
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        acc[t][p] = vfma(even, splat(x[c * W + t]), acc[t][p]);
        if (whole) acc[t][p] = vfma(odd, splat(x[(c + 1) * W + t]), acc[t][p]);
      }
    }
  for (int t = 0; t < T; ++t)
    for (int p = 0; p < kParts; ++p) store(y + t * stride + p * kLanes, acc[t][p]);
}

// ---- tokens, by what fits the registers ----------------------------------------------------------

using Product = void (*)(const uint8_t*, int64_t, const float*, float*, int64_t);

// One for each width of a tile; the widest takes as many tokens at once as the registers hold.
template <Product ONE, Product TWO, Product FOUR, Product ALL>
void multiply(const uint8_t* panel, int64_t columns, const uint8_t* tile, int width, int tokens,
              float* y, int64_t stride) {
  const Product f = width == 1 ? ONE : width == 2 ? TWO : width == 4 ? FOUR : ALL;
  const int step = width < kTokens ? width : kTokens;
  const float* x = (const float*)tile;
  for (int t = 0; t < tokens; t += step) {
    if (tokens - t >= step) {
      f(panel, columns, x + t, y + t * stride, stride);
      continue;
    }
    alignas(64) float spare[kTile * kPanelRows];
    f(panel, columns, x + t, spare, kPanelRows);
    for (int i = 0; t + i < tokens; ++i)
      std::memcpy(y + (t + i) * stride, spare + i * kPanelRows, kPanelRows * 4);
  }
}

constexpr auto multiply_f32 = multiply<product_floats<4, 1, 1>, product_floats<4, 2, 2>,
                                       product_floats<4, 4, 4>, product_floats<4, kTokens, kTile>>;
constexpr auto multiply_f16 = multiply<product_floats<2, 1, 1>, product_floats<2, 2, 2>,
                                       product_floats<2, 4, 4>, product_floats<2, kTokens, kTile>>;
constexpr auto multiply_bf16 = multiply<product_pairs<1, 1>, product_pairs<2, 2>,
                                        product_pairs<4, 4>, product_pairs<kTokens, kTile>>;

void unpack_f16(const uint8_t* panel, int64_t columns, uint8_t* out) {
  for (int64_t i = 0; i < columns * kPanelRows; i += kLanes)
    store((float*)out + i, vload_f16((const uint16_t*)panel + i));
}

constexpr PanelKernels kF32 = {Act::F32,  float_panel_bytes<4>, no_bytes,     interleave_floats<4>,
                               no_unpack, multiply_f32,         multiply_f32};
constexpr PanelKernels kF16 = {Act::F32,   float_panel_bytes<2>, float_panel_bytes<4>,
                               interleave_floats<2>, unpack_f16,           multiply_f16,
                               multiply_f32};
constexpr PanelKernels kBF16 = {Act::F32,  pair_panel_bytes, no_bytes,     interleave_pairs,
                                no_unpack, multiply_bf16,    multiply_bf16};

#if KVANT_BF16_DOT
// The processor's own product of pairs; activations are rounded to bfloat16 as well.
template <int T, int W>
__attribute__((target("avx512bf16"))) void product_bf16(const uint8_t* panel, int64_t columns,
                                                        const float* x, float* y, int64_t stride) {
  __m512 acc[T];
  for (int t = 0; t < T; ++t) acc[t] = _mm512_setzero_ps();
  const int64_t pairs = (columns + 1) / 2;
  for (int64_t c = 0; c < pairs; ++c) {
    const __m512bh w = (__m512bh)_mm512_loadu_si512(panel + c * 64);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
      acc[t] = _mm512_dpbf16_ps(acc[t], w,
                                (__m512bh)_mm512_set1_epi32(((const int32_t*)x)[c * W + t]));
  }
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(y + t * stride, acc[t]);
}

constexpr auto multiply_bf16_dot =
    multiply<product_bf16<1, 1>, product_bf16<2, 2>, product_bf16<4, 4>, product_bf16<kTokens, kTile>>;
constexpr PanelKernels kBF16Dot = {Act::BF16, pair_panel_bytes,  no_bytes,         interleave_pairs,
                                   no_unpack, multiply_bf16_dot, multiply_bf16_dot};
#endif

// ---- activations ---------------------------------------------------------------------------------

// The larger of magnitudes as integers: in their order, except that NaN is above everything, which
// the maximum of floats would lose. A NaN must reach the scale; codes cannot say it.
static inline vi larger(vi a, vi b) {
#if defined(__AVX512F__)
  return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
  return a > b ? a : b;
#endif
}

static inline float largest(vi x) {
  int32_t most = x[0];
  for (int l = 1; l < kLanes; ++l) most = x[l] > most ? x[l] : most;
  float found;
  std::memcpy(&found, &most, 4);
  return found;
}

// One block of one token: 127 is the largest magnitude. Bytes go to the
// tile four together, `width` times four apart.
template <int BLOCK>
inline float round_block(const float* x, int8_t* q, int width, int16_t* sums16) {
  vi most = {};
  for (int i = 0; i < BLOCK; i += kLanes) most = larger(most, (vi)load(x + i) & 0x7fffffff);
  const float amax = largest(most);
  const float d = amax / 127.0f;
  const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
  const vf scale = splat(inverse < 3.0e38f ? inverse : 0.0f);
  alignas(64) int8_t bytes[BLOCK];
  for (int i = 0; i < BLOCK; i += kLanes)
    store_bytes((uint8_t*)bytes + i,
                vtruncate(vrint(vclamp(load(x + i) * scale, -127.0f, 127.0f))));
  for (int i = 0; i < BLOCK / 4; ++i) std::memcpy(q + i * width * 4, bytes + 4 * i, 4);
  for (int i = 0; i < BLOCK / 16; ++i) {
    int sum = 0;
    for (int k = 0; k < 16; ++k) sum += bytes[16 * i + k];
    sums16[i] = int16_t(sum);
  }
  return d;
}

void prepare(Act act, const float* const* rows, int tokens, int width, int64_t columns, uint8_t* tile) {
  const ActLayout l = act_layout(act, columns, width);
  if (tokens < width) std::memset(tile, 0, size_t(l.bytes));
  for (int t = 0; t < tokens; ++t) {
    const float* x = rows[t];
    int16_t sums[16];
    switch (act) {
      case Act::Q8_32:
        for (int64_t b = 0; b < columns / 32; ++b) {
          ((float*)(tile + l.d))[b * width + t] =
              round_block<32>(x + b * 32, (int8_t*)tile + b * 32 * width + t * 4, width, sums);
          ((int32_t*)(tile + l.sums))[b * width + t] = sums[0] + sums[1];
        }
        break;
      case Act::Q8_256:
        for (int64_t b = 0; b < columns / 256; ++b) {
          ((float*)(tile + l.d))[b * width + t] =
              round_block<256>(x + b * 256, (int8_t*)tile + b * 256 * width + t * 4, width, sums);
          int16_t* wide = (int16_t*)(tile + l.sums) + b * 4 * width * 2 + t * 2;
          int16_t* fine = (int16_t*)(tile + l.sums16) + b * 8 * width * 2 + t * 2;
          for (int i = 0; i < 16; ++i) fine[i / 2 * width * 2 + i % 2] = sums[i];
          for (int i = 0; i < 8; ++i)
            wide[i / 2 * width * 2 + i % 2] = int16_t(sums[2 * i] + sums[2 * i + 1]);
        }
        break;
      case Act::F32:
        for (int64_t c = 0; c < columns; ++c) ((float*)tile)[c * width + t] = x[c];
        break;
      case Act::BF16:
        for (int64_t c = 0; c < columns; ++c)
          ((uint16_t*)tile)[(c / 2 * width + t) * 2 + c % 2] = float_to_bf16(x[c]);
        if (columns % 2) ((uint16_t*)tile)[(columns / 2 * width + t) * 2 + 1] = 0;
        break;
    }
  }
}

}  // namespace

void prepare_tile(Act act, const float* const* rows, int tokens, int width, int64_t columns, uint8_t* tile) {
  prepare(act, rows, tokens, width, columns, tile);
}

const PanelKernels* float_panels(int type) {
  switch (type) {
    case 0: return &kF32;
    case 1: return &kF16;
    case 30:
#if KVANT_BF16_DOT
      if (x86().avx512bf16) return &kBF16Dot;
#endif
      return &kBF16;
    default: return nullptr;
  }
}

}  // namespace kvant::KVANT_ISA
