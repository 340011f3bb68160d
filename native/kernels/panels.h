// A packing's panels: from the file's layout to theirs, and the kernels it gets for them.
//
// A packing's file names its `Format` and takes `panel_kernels`.
#pragma once

#include "matmul.h"
#include "packing.h"

namespace kvant::KVANT_ISA {

using Unlayout = void (*)(const uint8_t* in, uint8_t* codes, Scales* scales, int64_t blocks);

static inline void put_half(uint8_t* out, float x) {
  const uint16_t h = float_to_half(x);
  std::memcpy(out, &h, 2);
}

// One bit of each of 256 codes, bit i of the result that of code i.
template <int SHIFT>
static inline void put_bits(const uint8_t* codes, uint8_t* out) {
#if defined(__AVX2__)
  for (int i = 0; i < 256; i += 32) {
    const __m256i c = _mm256_loadu_si256((const __m256i*)(codes + i));
    const uint32_t bits = uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(c, 7 - SHIFT)));
    std::memcpy(out + i / 8, &bits, 4);
  }
#else
  for (int i = 0; i < 32; ++i) {
    uint8_t bits = 0;
    for (int k = 0; k < 8; ++k) bits |= uint8_t((codes[8 * i + k] >> SHIFT & 1) << k);
    out[i] = bits;
  }
#endif
}

// `high` is where what belongs beside the block's scale goes.
template <class F>
static inline void put_scales(const Scales* s, uint8_t* out, uint8_t* high) {
  uint8_t v[256];
  if constexpr (F::scales == SubScales::EightSixBits) {
    for (int j = 0; j < 8; ++j)
      for (int r = 0; r < 16; ++r) v[j * 16 + r] = uint8_t(s[r].sub[j] + 32);
    for (int i = 0; i < 64; ++i) out[i] = uint8_t((v[i] & 15) | v[64 + i] << 4);
    for (int i = 0; i < 32; ++i)
      high[i] = uint8_t(v[i] >> 4 | v[32 + i] >> 4 << 2 | v[64 + i] >> 4 << 4 | v[96 + i] >> 4 << 6);
    return;
  }
  if constexpr (F::scales == SubScales::Bytes || F::scales == SubScales::Nibbles) {
    for (int j = 0; j < 16; ++j)
      for (int r = 0; r < 16; ++r)
        out[j * 16 + r] = F::scales == SubScales::Bytes
                              ? uint8_t(s[r].sub[j])
                              : uint8_t(uint8_t(s[r].sub[j]) | s[r].submin[j] << 4);
    return;
  }
  if constexpr (F::scales == SubScales::OddNibbles) {
    for (int j = 0; j < F::subs; j += 2)
      for (int r = 0; r < 16; ++r)
        out[j * 8 + r] = uint8_t((s[r].sub[j] >> 1 & 15) | (s[r].sub[j + 1] >> 1 & 15) << 4);
    return;
  }
  if constexpr (F::scales == SubScales::SixBits)
    for (int j = 0; j < 8; ++j)
      for (int r = 0; r < 16; ++r) {
        v[j * 16 + r] = uint8_t(s[r].sub[j]);
        v[128 + j * 16 + r] = s[r].submin[j];
      }
  else
    for (int j = 0; j < 16; ++j)
      for (int r = 0; r < 16; ++r) v[j * 16 + r] = uint8_t(s[r].sub[j] + 32);
  for (int i = 0; i < 64; ++i) {
    const uint8_t top = v[192 + i];
    out[i] = uint8_t(v[i] | (top & 3) << 6);
    out[64 + i] = uint8_t(v[64 + i] | (top >> 2 & 3) << 6);
    out[128 + i] = uint8_t(v[128 + i] | (top >> 4 & 3) << 6);
  }
}

// `steps` [F::steps][64]: codes of sixteen rows, four columns together.
template <class F>
static inline void put_codes(const uint8_t* steps, uint8_t* out) {
  for (int q = 0; q < F::quads; ++q, steps += 256) {
    uint8_t* group = out + q / F::group_quads * F::group_bytes;
    uint8_t* high = group + q % F::group_quads * 32;
    uint8_t* low = group + F::high_group + q % F::group_quads * F::low * 32;
    if constexpr (F::low == 8) std::memcpy(low, steps, 256);
    if constexpr (F::low == 4)
      for (int g = 0; g < 2; ++g)
        for (int i = 0; i < 64; ++i)
          low[g * 64 + i] = uint8_t((steps[g * 128 + i] & 15) | steps[g * 128 + 64 + i] << 4);
    if constexpr (F::low == 2)
      for (int i = 0; i < 64; ++i)
        low[i] = uint8_t((steps[i] & 3) | (steps[64 + i] & 3) << 2 | (steps[128 + i] & 3) << 4 |
                         (steps[192 + i] & 3) << 6);
    if constexpr (F::high == 1) put_bits<F::low>(steps, high);
    if constexpr (F::high == 2)
      for (int i = 0; i < 64; ++i)
        high[i] = uint8_t((steps[i] >> 4 & 3) | (steps[64 + i] >> 4 & 3) << 2 |
                          (steps[128 + i] >> 4 & 3) << 4 | (steps[192 + i] >> 4 & 3) << 6);
  }
}

// Codes of sixteen rows, 256 apart, to steps of four columns. A signed code's sign bit is turned over.
template <int STEPS, bool SIGNED>
static inline void transpose(const uint8_t* codes, uint8_t* steps) {
  constexpr uint32_t flip = SIGNED ? 0x80808080u : 0;
  for (int s0 = 0; s0 < STEPS; s0 += 8)
    for (int r = 0; r < kPanelRows; ++r) {
      uint32_t words[8];
      std::memcpy(words, codes + r * 256 + s0 * 4, 32);
      for (int s = 0; s < 8; ++s) {
        const uint32_t word = words[s] ^ flip;
        std::memcpy(steps + (s0 + s) * 64 + r * 4, &word, 4);
      }
    }
}

// SIGNED: the file's codes are signed bytes; they become codes with their zero at 128. PER: blocks of
// the panel that one of the file makes.
template <class F, int BLOCK_BYTES, Unlayout UNLAYOUT, bool SIGNED = false, int PER = 1>
static void interleave(const uint8_t* const* rows, int n, int64_t columns, uint8_t* panel) {
  constexpr int kRun = 256 / F::block;  // blocks of a row taken at a time
  const int64_t blocks = columns / F::block;
  uint8_t* record = panel + F::heads_bytes(blocks);
  alignas(64) uint8_t codes[kPanelRows][256];
  alignas(64) uint8_t steps[F::steps * 64];
  Scales scales[kPanelRows][kRun];
  if (n < kPanelRows) {
    std::memset(codes, 0, sizeof codes);
    std::memset(scales, 0, sizeof scales);
    std::memset(panel, 0, size_t(F::heads_bytes(blocks)));
  }
  for (int64_t b0 = 0; b0 < blocks; b0 += kRun) {
    const int run = int(blocks - b0 < kRun ? blocks - b0 : kRun);
    for (int r = 0; r < n; ++r) UNLAYOUT(rows[r] + b0 / PER * BLOCK_BYTES, codes[r], scales[r], run);
    for (int b = 0; b < run; ++b, record += F::record_bytes) {
      transpose<F::steps, SIGNED>(codes[0] + b * F::block, steps);
      uint8_t* head = panel + (b0 + b) * F::head_bytes;
      for (int r = 0; r < n; ++r) {
        if constexpr (F::exponents)
          head[r] = exponent_of(scales[r][b].d);
        else
          put_half(head + 2 * r, scales[r][b].d);
        if constexpr (F::two_heads) put_half(head + 32 + 2 * r, scales[r][b].dmin);
      }
      if constexpr (F::nested) put_scales<F>(scales[0], record, head + 32);
      put_codes<F>(steps, record + F::scale_bytes);
    }
  }
}

template <class F, int BLOCK_BYTES, Unlayout UNLAYOUT, bool SIGNED = false, int PER = 1>
inline constexpr PanelKernels panel_kernels = {
    F::act,
    Panels<F>::panel_bytes,
    Panels<F>::unpacked_bytes,
    interleave<F, BLOCK_BYTES, UNLAYOUT, SIGNED, PER>,
    Panels<F>::unpack,
    Panels<F>::multiply,
    Panels<F>::multiply_unpacked,
};

}  // namespace kvant::KVANT_ISA
