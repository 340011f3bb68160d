// Storing keys and values: rounded to half precision, or to 8-bit codes with a scale per 32.
#include "rowops.h"
#include "vmath.h"

namespace kvant::KVANT_ISA {
namespace {

constexpr int kStep = 32;  // elements of a head handled at a time, and weights under one scale
constexpr float kHalfMax = 65504.0f;

// Finite numbers end at the largest half. The product is NaN where there is none to begin with:
// infinity is a fault of the model that has to be seen, not the largest half.
vf within_half(vf x) {
  return vmin(splat(kHalfMax), vmax(splat(-kHalfMax), x)) + x * 0.0f;
}

// `count` floats, zeros behind them.
void take(const float* x, int64_t count, float* step) {
  if (count < kStep) std::memset(step, 0, kStep * 4);
  std::memcpy(step, x, size_t(count < kStep ? count : kStep) * 4);
}

void to_halves(const float* step, uint16_t* out) {
  for (int i = 0; i < kStep; i += kLanes) vstore_f16(out + i, within_half(load(step + i)));
}

// Codes -127..127 under the scale as half precision holds it, which is returned. Where a number is
// not finite the scale is NaN, and so are all that share it.
uint16_t to_codes(const float* step, int8_t* codes) {
  vf most = {}, poison = {};
  for (int i = 0; i < kStep; i += kLanes) {
    const vf x = load(step + i);
    most = vmax(most, (vf)((vi)x & 0x7fffffff));
    poison += x * 0.0f;
  }
  float d = vmost(most) / 127.0f + vtotal(poison);
  if (d > kHalfMax) d = kHalfMax;
  const uint16_t half = float_to_half(d);
  const float inverse = half_to_float(half) > 0 ? 1.0f / half_to_float(half) : 0.0f;
  for (int i = 0; i < kStep; i += kLanes)
    store_bytes((uint8_t*)codes + i,
                vtruncate(vrint(vclamp(load(step + i) * inverse, -127, 127))));
  return half;
}

// `run` tokens into slots [slot, slot + run) of one head's part of a block; K or V by TRANSPOSED.
template <bool TRANSPOSED>
void write_f16(uint16_t* out, int64_t head_dim, int64_t slot, int64_t run, const float* x,
               int64_t stride) {
  float step[kStep];
  uint16_t rows[kKvBlock][kStep];
  for (int64_t e = 0; e < head_dim; e += kStep) {
    const int64_t count = head_dim - e < kStep ? head_dim - e : kStep;
    for (int64_t t = 0; t < run; ++t) {
      take(x + t * stride + e, count, step);
      to_halves(step, rows[t]);
      if constexpr (!TRANSPOSED)
        std::memcpy(out + (slot + t) * head_dim + e, rows[t], size_t(count) * 2);
    }
    if constexpr (TRANSPOSED)
      for (int64_t i = 0; i < count; ++i)
        for (int64_t t = 0; t < run; ++t) out[(e + i) * kKvBlock + slot + t] = rows[t][i];
  }
}

template <bool TRANSPOSED>
void write_q8(uint8_t* out, int64_t head_dim, int64_t groups, int64_t slot, int64_t run,
              const float* x, int64_t stride) {
  float step[kStep];
  int8_t rows[kKvBlock][kStep];
  int8_t* codes = (int8_t*)out;
  uint16_t* scales = (uint16_t*)(out + head_dim * kKvBlock);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t e = g * kStep, count = head_dim - e < kStep ? head_dim - e : kStep;
    for (int64_t t = 0; t < run; ++t) {
      take(x + t * stride + e, count, step);
      const uint16_t scale = to_codes(step, rows[t]);
      if constexpr (TRANSPOSED) {
        scales[g * kKvBlock + slot + t] = scale;
      } else {
        scales[(slot + t) * groups + g] = scale;
        std::memcpy(codes + (slot + t) * head_dim + e, rows[t], size_t(count));
      }
    }
    if constexpr (TRANSPOSED)
      for (int64_t i = 0; i < count; ++i)
        for (int64_t t = 0; t < run; ++t) codes[(e + i) * kKvBlock + slot + t] = rows[t][i];
  }
}

}  // namespace

void kv_write(const KvShape& shape, uint8_t* cache, const int32_t* table, int64_t first, int64_t n,
              const float* k, int64_t k_stride, const float* v, int64_t v_stride, int head_begin,
              int head_end) {
  const int64_t head_dim = shape.head_dim, groups = kv_scale_groups(shape);
  for (int64_t done = 0; done < n;) {
    const int64_t position = first + done, slot = position % kKvBlock;
    const int64_t run = kKvBlock - slot < n - done ? kKvBlock - slot : n - done;
    uint8_t* block = cache + table[position / kKvBlock] * kv_block_bytes(shape);
    for (int64_t h = head_begin; h < head_end; ++h) {
      uint8_t* k_out = block + h * kv_head_bytes(shape);
      uint8_t* v_out = k_out + kv_half_bytes(shape);
      const float* k_in = k + done * k_stride + h * head_dim;
      const float* v_in = v + done * v_stride + h * head_dim;
      if (shape.type == KvType::F16) {
        write_f16<true>((uint16_t*)k_out, head_dim, slot, run, k_in, k_stride);
        write_f16<false>((uint16_t*)v_out, head_dim, slot, run, v_in, v_stride);
      } else {
        write_q8<true>(k_out, head_dim, groups, slot, run, k_in, k_stride);
        write_q8<false>(v_out, head_dim, groups, slot, run, v_in, v_stride);
      }
    }
    done += run;
  }
}

}  // namespace kvant::KVANT_ISA
