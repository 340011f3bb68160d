// Scales and codes of groups: see groups.h. In the search a lane works on a group of its own, so
// that sums run in the order of the weights at every width.
#include "groups.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "search.h"
#include "simd.h"

namespace kvant::KVANT_ISA {
namespace {

void range(const float* x, int64_t block, int64_t n, float* lo, float* hi) {
  for (int64_t k = 0; k < n; ++k, x += block) {
    float least, most;
    int64_t i = 0;
    if (block >= kLanes) {
      vf a = load(x), b = a;
      for (i = kLanes; i + kLanes <= block; i += kLanes) {
        const vf v = load(x + i);
        a = vmin(a, v);
        b = vmax(b, v);
      }
      least = vleast(a);
      most = vmost(b);
    } else {
      least = most = x[0];
    }
    for (; i < block; ++i) {
      least = x[i] < least ? x[i] : least;
      most = x[i] > most ? x[i] : most;
    }
    lo[k] = least;
    hi[k] = most;
  }
}

// Ties to even. Scales are finite.
inline vf round_to_bf16(vf x) {
  const vi bits = (vi)x;
  const vi odd = (bits >> 16) & 1;
  return (vf)((bits + 0x7fff + odd) & int32_t(0xffff0000));
}

inline vf rounded(const GroupGrid& grid, vf x) {
  switch (grid.scale) {
    case GroupScale::F16:
      return vround_to_half(x);
    case GroupScale::BF16:
      return round_to_bf16(x);
    default:
      return x;
  }
}

struct Line {
  vf d, z;
};

template <GroupZero ZERO, bool WEIGHTED>
class Search {
 public:
  Search(const GroupGrid& grid, const float (*x)[kLanes], const float (*w)[kLanes])
      : grid_(grid), block_(grid.block), top_(grid.most()), x_(x), w_(w) {
    sw_ = sx_ = splat(0);
    for (int64_t i = 0; i < block_; ++i) {
      const vf wi = weight(i);
      sw_ = sw_ + wi;
      sx_ = sx_ + wi * load(x_[i]);
    }
    best_ = {splat(0), splat(0)};
    least_ = splat(3.0e38f);
  }

  Line run(const float* widths, int count) {
    vf lo = load(x_[0]), hi = lo;
    for (int64_t i = 1; i < block_; ++i) {
      lo = vmin(lo, load(x_[i]));
      hi = vmax(hi, load(x_[i]));
    }
    if constexpr (ZERO == GroupZero::Bias) follow(held(mlx_line(lo, hi)), 1);
    for (int c = 0; c < count; ++c) {
      Line line;
      if constexpr (ZERO == GroupZero::Middle) {
        line = {select(hi > -lo, hi, lo) / widths[c], splat(0)};
      } else {
        line.d = (hi - lo) / widths[c];
        line.z = (lo + hi) / 2.0f - line.d * (top_ / 2.0f);
      }
      follow(held(line), 1);
    }
    follow(best_, 3);
    return best_;
  }

 private:
  struct Sums {
    vf q, qq, xq;
  };

  vf weight(int64_t i) const { return WEIGHTED ? load(w_[i]) : splat(1); }

  // MLX's own: the end of larger magnitude becomes a code's exact value.
  Line mlx_line(vf lo, vf hi) const {
    const vi lower = vmax(lo, -lo) > vmax(hi, -hi);
    vf d = vmax((hi - lo) / top_, splat(1e-7f));
    d = select(lower, d, -d);
    const vf edge = select(lower, lo, hi);
    const vf q0 = vrint(edge / d);
    const vi some = q0 != 0.0f;
    return {select(some, edge / select(some, q0, splat(1)), d), select(some, edge, splat(0))};
  }

  // As a file holds it; z comes as the value of code 0.
  Line held(const Line& line) const {
    const vf d = rounded(grid_, line.d);
    if constexpr (ZERO == GroupZero::Bias) return {d, rounded(grid_, line.z)};
    if constexpr (ZERO == GroupZero::Middle) return {d, splat(grid_.middle())};
    return {d, vrint(vclamp(-line.z * reciprocal_or_zero(line.d), 0, top_))};
  }

  void follow(Line line, int rounds) {
    Sums m = judge(line);
    for (int r = 0; r < rounds; ++r) {
      line = solved(m, line.z);
      m = judge(line);
    }
  }

  // Takes the line where its error is less; sums over its codes.
  Sums judge(const Line& line) {
    const vf inverse = reciprocal_or_zero(line.d);
    vf error = splat(0);
    Sums m = {splat(0), splat(0), splat(0)};
    for (int64_t i = 0; i < block_; ++i) {
      const vf x = load(x_[i]);
      vf t, y;
      if constexpr (ZERO == GroupZero::Bias) {
        t = (x - line.z) * inverse;
      } else {
        t = x * inverse + line.z;
      }
      const vf q = vrint(vclamp(t, 0, top_));
      if constexpr (ZERO == GroupZero::Bias) {
        y = q * line.d + line.z;
      } else {
        y = (q - line.z) * line.d;
      }
      const vf w = weight(i), rest = x - y, wq = w * q;
      error = error + w * (rest * rest);
      m.q = m.q + wq;
      m.qq = m.qq + wq * q;
      m.xq = m.xq + wq * x;
    }
    const vi better = error < least_;
    least_ = select(better, error, least_);
    best_.d = select(better, line.d, best_.d);
    best_.z = select(better, line.z, best_.z);
    return m;
  }

  // The line of least squares for codes with these sums.
  Line solved(const Sums& m, vf zero) const {
    if constexpr (ZERO == GroupZero::Middle) return {alone(m, zero), zero};
    const vf det = sw_ * m.qq - m.q * m.q;
    const vi regular = det > 0.0f;
    const vf inverse = splat(1) / select(regular, det, splat(1));
    const vf s = select(regular, (sw_ * m.xq - sx_ * m.q) * inverse, splat(0));
    if constexpr (ZERO == GroupZero::Bias) {
      const vf r = rounded(grid_, s);
      const vi some = sw_ > 0.0f;
      const vf b = (sx_ - r * m.q) / select(some, sw_, splat(1));
      return {r, rounded(grid_, select(some, b, splat(0)))};
    }
    const vf b = select(regular, (m.qq * sx_ - m.q * m.xq) * inverse, splat(0));
    const vf z = select(regular & (s > 0.0f), held({s, b}).z, zero);
    return {alone(m, z), z};
  }

  // The best scale where the zero is an integer.
  vf alone(const Sums& m, vf z) const {
    const vf square = m.qq - 2.0f * z * m.q + z * z * sw_;
    const vi some = square > 0.0f;
    const vf along = m.xq - z * sx_;
    return rounded(grid_, select(some, along / select(some, square, splat(1)), splat(0)));
  }

  const GroupGrid& grid_;
  const int64_t block_;
  const float top_;
  const float (*x_)[kLanes];
  const float (*w_)[kLanes];
  vf sw_, sx_, least_;
  Line best_;
};

template <GroupZero ZERO, bool WEIGHTED>
void search_all(const GroupGrid& grid, const float* x, const float* w, int64_t weights, int64_t n,
                const float* widths, int count, float* d, float* z) {
  using Row = float[kLanes];
  std::vector<float> tiles(size_t(grid.block * kLanes * (WEIGHTED ? 2 : 1)));
  Row* xt = reinterpret_cast<Row*>(tiles.data());
  Row* wt = WEIGHTED ? xt + grid.block : nullptr;
  for (int64_t k = 0; k < n; k += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const int64_t group = std::min(k + l, n - 1);
      const float* from = x + group * grid.block;
      for (int64_t i = 0; i < grid.block; ++i) xt[i][l] = from[i];
      if (WEIGHTED) {
        const float* by = w + group % weights * grid.block;
        for (int64_t i = 0; i < grid.block; ++i) wt[i][l] = by[i];
      }
    }
    const Line line = Search<ZERO, WEIGHTED>(grid, xt, wt).run(widths, count);
    const int64_t here = std::min<int64_t>(kLanes, n - k);
    for (int64_t l = 0; l < here; ++l) {
      d[k + l] = line.d[l];
      z[k + l] = line.z[l];
    }
  }
}

template <GroupZero ZERO>
void search_zero(const GroupGrid& grid, const float* x, const float* w, int64_t weights, int64_t n,
                 const float* widths, int count, float* d, float* z) {
  if (w) {
    search_all<ZERO, true>(grid, x, w, weights, n, widths, count, d, z);
  } else {
    search_all<ZERO, false>(grid, x, w, weights, n, widths, count, d, z);
  }
}

void search(const GroupGrid& grid, const float* x, const float* w, int64_t weights, int64_t n,
            const float* widths, int count, float* d, float* z) {
  switch (grid.zero) {
    case GroupZero::Bias:
      return search_zero<GroupZero::Bias>(grid, x, w, weights, n, widths, count, d, z);
    case GroupZero::Integer:
      return search_zero<GroupZero::Integer>(grid, x, w, weights, n, widths, count, d, z);
    case GroupZero::Middle:
      return search_zero<GroupZero::Middle>(grid, x, w, weights, n, widths, count, d, z);
  }
}

// The division is a division: MLX's codes depend on its last bit.
template <bool BIAS>
void encode_all(const GroupGrid& grid, const float* x, const float* d, const float* z, int64_t n,
                uint8_t* codes) {
  const float top = grid.most();
  for (int64_t k = 0; k < n; ++k, x += grid.block, codes += grid.block) {
    if (d[k] == 0.0f) {
      const float q = BIAS ? 0.0f : std::min(std::max(std::nearbyint(z[k]), 0.0f), top);
      std::memset(codes, int(q), size_t(grid.block));
      continue;
    }
    const vf scale = splat(d[k]), zero = splat(z[k]);
    int64_t i = 0;
    for (; i + kLanes <= grid.block; i += kLanes) {
      const vf v = load(x + i);
      const vf t = BIAS ? (v - zero) / scale : v / scale + zero;
      store_bytes(codes + i, vnearest(vclamp(t, 0, top)));
    }
    for (; i < grid.block; ++i) {
      const float t = BIAS ? (x[i] - z[k]) / d[k] : x[i] / d[k] + z[k];
      codes[i] = uint8_t(std::nearbyint(std::min(std::max(t, 0.0f), top)));
    }
  }
}

void encode(const GroupGrid& grid, const float* x, const float* d, const float* z, int64_t n,
            uint8_t* codes) {
  if (grid.zero == GroupZero::Bias) {
    encode_all<true>(grid, x, d, z, n, codes);
  } else {
    encode_all<false>(grid, x, d, z, n, codes);
  }
}

// Eight codes become `bits` bytes: first pairs, then pairs of pairs, all inside one word.
void pack(const uint8_t* codes, int bits, int64_t n, uint8_t* out) {
  if (bits == 8) {
    std::memcpy(out, codes, size_t(n));
    return;
  }
  for (int64_t i = 0; i + 8 <= n; i += 8, out += bits) {
    uint64_t v;
    std::memcpy(&v, codes + i, 8);
    v = (v & 0x00ff00ff00ff00ffull) | ((v & 0xff00ff00ff00ff00ull) >> (8 - bits));
    v = (v & 0x0000ffff0000ffffull) | ((v & 0xffff0000ffff0000ull) >> (16 - 2 * bits));
    v = (v & 0x00000000ffffffffull) | ((v & 0xffffffff00000000ull) >> (32 - 4 * bits));
    std::memcpy(out, &v, size_t(bits));
  }
}

}  // namespace

extern const GroupKernels kGroups = {range, search, encode, pack};

}  // namespace kvant::KVANT_ISA
