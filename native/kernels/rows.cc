// Norms, rotary positions, gates and sums: the work between matrix products.
#include <cmath>

#include "rowops.h"
#include "vmath.h"

namespace kvant::KVANT_ISA {

void kv_write(const KvShape& shape, uint8_t* cache, const int32_t* table, int64_t first, int64_t n,
              const float* k, int64_t k_stride, const float* v, int64_t v_stride, int head_begin,
              int head_end);
void attend(const Attention& a, float* out, int64_t out_stride, float* scratch);
void attend_part(const Attention& a, int64_t part, float* partial, float* scratch);
void attend_merge(const Attention& a, float* partials, int64_t partial_stride, int64_t parts,
                  float* out, int64_t out_stride);

namespace {

float sum_of_squares(const float* x, int64_t n) {
  vf sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int s = 0; s < 4; ++s) {
      const vf v = load(x + i + s * kLanes);
      sum[s] = vfma(v, v, sum[s]);
    }
  for (; i < n; i += kLanes) {
    const vf v = i + kLanes <= n ? load(x + i) : vload_some(x + i, n - i);
    sum[0] = vfma(v, v, sum[0]);
  }
  return vtotal((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

void rms_norm(const float* x, const float* w, float* y, int64_t width, int64_t groups, float eps) {
  const int64_t n = width / groups;
  for (int64_t g = 0; g < groups; ++g, x += n, y += n) {
    const vf inverse = splat(1.0f / std::sqrt(sum_of_squares(x, n) / float(n) + eps));
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i) * inverse * load(w + i));
    if (i < n)
      vstore_some(y + i, vload_some(x + i, n - i) * inverse * vload_some(w + i, n - i), n - i);
  }
}

// y = f(x, ...) lane by lane; what is read behind the end of a row is zero, and not written.
template <typename F, typename... X>
void each(F f, float* y, int64_t n, const X*... x) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(x + i)...));
  if (i < n) vstore_some(y + i, f(vload_some(x + i, n - i)...), n - i);
}

void layer_norm(const float* x, const float* w, const float* b, float* y, int64_t width,
                float eps) {
  vf sum = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) sum += load(x + i);
  if (i < width) sum += vload_some(x + i, width - i);
  const vf mean = splat(vtotal(sum) / float(width));
  each([=](vf v) { return v - mean; }, y, width, x);
  const vf inverse = splat(1.0f / std::sqrt(sum_of_squares(y, width) / float(width) + eps));
  if (b)
    each([=](vf v, vf gain, vf shift) { return v * inverse * gain + shift; }, y, width, y, w, b);
  else
    each([=](vf v, vf gain) { return v * inverse * gain; }, y, width, y, w);
}

void rope(float* x, const float* cos, const float* sin, int64_t heads, int64_t head_dim,
          int64_t turned) {
  const int64_t half = turned / 2;
  for (int64_t h = 0; h < heads; ++h, x += head_dim) {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const vf a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
      store(x + i, vfma(a, c, -(b * s)));
      store(x + half + i, vfma(b, c, a * s));
    }
    if (i < half) {
      const int64_t rest = half - i;
      const vf a = vload_some(x + i, rest), b = vload_some(x + half + i, rest);
      const vf c = vload_some(cos + i, rest), s = vload_some(sin + i, rest);
      vstore_some(x + i, vfma(a, c, -(b * s)), rest);
      vstore_some(x + half + i, vfma(b, c, a * s), rest);
    }
  }
}

vf gated(vf gate, vf up) { return gate / (1.0f + vexp(-gate)) * up; }

void swiglu(const float* gate, const float* up, float* y, int64_t n) { each(gated, y, n, gate, up); }

// Beyond 10 the tanh is one; the cube of greater numbers would overflow.
vf gelu(vf x) {
  const vf z = vmin(splat(10.0f), vmax(splat(-10.0f), x));
  const vf inner = 0.797884561f * (z + 0.044715f * z * z * z);
  return 0.5f * x * (1.0f + vtanh(inner));
}

// The error function within 1.5e-7. Abramowitz and Stegun, Handbook of Mathematical Functions,
// 7.1.26.
vf verf(vf x) {
  const vf size = (vf)((vi)x & 0x7fffffff);
  const vi sign = (vi)x & (vi)splat(-0.0f);
  const vf t = 1.0f / (1.0f + 0.3275911f * size);
  vf p = splat(1.061405429f);
  p = vfma(p, t, splat(-1.453152027f));
  p = vfma(p, t, splat(1.421413741f));
  p = vfma(p, t, splat(-0.284496736f));
  p = vfma(p, t, splat(0.254829592f));
  return (vf)((vi)(1.0f - p * t * vexp(-size * size)) | sign);
}

void gelu_tanh(const float* x, float* y, int64_t n) { each(gelu, y, n, x); }

void gelu_erf(const float* x, float* y, int64_t n) {
  each([](vf v) { return 0.5f * v * (1.0f + verf(v * 0.707106781f)); }, y, n, x);
}

void geglu(const float* gate, const float* up, float* y, int64_t n) {
  each([](vf g, vf u) { return gelu(g) * u; }, y, n, gate, up);
}

void scale(const float* x, float factor, float* y, int64_t n) {
  each([=](vf v) { return v * factor; }, y, n, x);
}

void soft_cap(const float* x, float cap, float* y, int64_t n) {
  const vf inverse = splat(1.0f / cap);
  each([=](vf v) { return vtanh(v * inverse) * cap; }, y, n, x);
}

void add(float* x, const float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) + load(y + i));
  for (; i < n; ++i) x[i] += y[i];
}

void add_share(float* x, const float* y, float share, int64_t n) {
  const vf s = splat(share);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, vfma(s, load(y + i), load(x + i)));
  if (i < n) {
    const int64_t rest = n - i;
    vstore_some(x + i, vfma(s, vload_some(y + i, rest), vload_some(x + i, rest)), rest);
  }
}

typedef double vd __attribute__((vector_size(kLanes * 8)));

void log_sum_exp(const float* x, int64_t n, float* greatest, double* sum) {
  const vf lowest = splat(-INFINITY);
  const int64_t whole = n / kLanes * kLanes, rest = n - whole;
  vf most = lowest;
  for (int64_t i = 0; i < whole; i += kLanes) most = vmax(most, load(x + i));
  float top = vmost(most);
  for (int64_t i = whole; i < n; ++i) top = x[i] > top ? x[i] : top;

  vd total = {};
  const vf base = splat(top);
  for (int64_t i = 0; i < whole; i += kLanes)
    total += __builtin_convertvector(vexp(load(x + i) - base), vd);
  if (rest) {
    const vf tail = select(vcount() < int32_t(rest), vload_some(x + whole, rest), lowest);
    total += __builtin_convertvector(vexp(tail - base), vd);
  }
  *greatest = top;
  *sum = 0;
  for (int l = 0; l < kLanes; ++l) *sum += total[l];
}

}  // namespace

extern const RowKernels kRows = {
    rms_norm,  layer_norm, rope,     swiglu,   gelu_tanh, gelu_erf,    geglu,        add,
    add_share, scale,      soft_cap, kv_write, attend,    attend_part, attend_merge, log_sum_exp};

}  // namespace kvant::KVANT_ISA
