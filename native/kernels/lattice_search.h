// Scales of codebook packings, and codes under given scales; LatticeGrid in
// src/kvant/packing/lattice.py is the specification.
#pragma once

#include "lattice.h"
#include "plain.h"

namespace kvant::KVANT_ISA {

template <int N>
struct Coordinates;
template <>
struct Coordinates<4> {
  typedef float v __attribute__((vector_size(16)));
};
template <>
struct Coordinates<8> {
  typedef float v __attribute__((vector_size(32)));
};

template <class V>
static inline float pairwise(const V& x) {
  if constexpr (sizeof(V) == 16) return (x[0] + x[1]) + (x[2] + x[3]);
  else return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// One block's weights as the search sees them, and what its sub-blocks come to under a scale.
template <class P>
class LatticeBlock {
 public:
  static constexpr int subs = 256 / P::sub, per = P::sub / P::group, span = Points<P>::span;
  using V = typename Coordinates<P::group>::v;

  struct Sub {
    float error, a, b;
    bool low;
  };

  LatticeBlock(const float* x, const float* w) {
    for (int i = 0; i < 256; i += kLanes) {
      const vf wi = w ? load(w + i) : splat(1.0f);
      vf a = select(wi > 0.0f, load(x + i), splat(0.0f));
      if constexpr (P::signs != Signs::None) a = vmax(a, -a);
      store(a_ + i, a);
      store(w_ + i, wi);
      store(u_ + i, wi * a);
    }
    if constexpr (P::signs == Signs::Even)
      for (int g = 0; g < 32; ++g) {
        int minus = 0;
        for (int i = 0; i < 8; ++i) minus += x[g * 8 + i] < 0.0f;
        odd_[g] = minus & 1;
      }
  }

  // Sum of w x^2, and the root of the mean.
  float energy(int j, float* rms) const {
    V e{}, weight{};
    for (int g = j * per; g < (j + 1) * per; ++g) {
      const V a = coordinates(a_, g), w = coordinates(w_, g);
      e += w * (a * a);
      weight += w;
    }
    const float energy = pairwise(e);
    *rms = std::sqrt(energy * reciprocal_or_zero(pairwise(weight)));
    return energy;
  }

  Sub sub_block(int j, float s) const {
    if constexpr (P::shifted != Shifted::SubBlocks) return sums<false>(j, s);
    const Sub high = sums<false>(j, s), low = sums<true>(j, s);
    return low.error < high.error ? low : high;
  }

 private:
  Group group(int n) const { return {a_ + n * P::group, w_ + n * P::group, u_ + n * P::group}; }

  static inline V coordinates(const float* p, int g) {
    V v;
    std::memcpy(&v, p + g * P::group, sizeof v);
    return v;
  }

  struct Book {
    int8_t high[16], low[16];
  };

  static constexpr Book book() {
    Book b{};
    for (int i = 0; i < P::count; ++i) {
      b.high[i] = int8_t(Points<P>::level(i, false));
      b.low[i] = int8_t(Points<P>::level(i, true));
    }
    return b;
  }

  static inline V levels_of(uint32_t point, bool low) {
    static constexpr Book kBook = book();
#if defined(__AVX2__)
    const __m128i book = _mm_loadu_si128((const __m128i*)(low ? kBook.low : kBook.high));
    const uint64_t digits = P::group == 8 ? _pdep_u64(point, 0x0303030303030303ull)
                                          : _pdep_u64(point, 0x07070707ull);
    const __m128i level = _mm_shuffle_epi8(book, _mm_cvtsi64_si128(int64_t(digits)));
    if constexpr (P::group == 8) return (V)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(level));
    else return (V)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(level));
#else
    V v;
    for (int i = 0; i < P::group; ++i) {
      const int bits = Points<P>::bits, at = int(point >> (bits * i)) & ((1 << bits) - 1);
      v[i] = float(low ? kBook.low[at] : kBook.high[at]);
    }
    return v;
#endif
  }

  template <bool LOW>
  Sub sums(int j, float s) const {
    const float inverse = reciprocal_or_zero(s);
    const Scaled<P> scaled(s, LOW);
    alignas(64) uint8_t q[P::sub], q_low[P::sub];
    round_levels<P, P::sub>(a_ + j * P::sub, inverse, LOW, q);
    constexpr bool choose = P::shifted == Shifted::Groups;
    const Scaled<P> scaled_low(choose ? s : 0.0f, true);
    if constexpr (choose) round_levels<P, P::sub>(a_ + j * P::sub, inverse, true, q_low);
    V a{}, b{};
    float error = 0, turned = 0;
    const auto list = [](const uint8_t* levels) {
      return Points<P>::near_points(Points<P>::tuple(levels));
    };
    const auto add = [&](int n, const Found& f, bool low, bool turn) {
      const V level = levels_of(f.point, low), ul = coordinates(u_, n) * level;
      a += ul;
      b += coordinates(w_, n) * (level * level);
      error += f.error;
      if (!turn) return;
      float least = ul[0];
      for (int i = 1; i < P::group; ++i) least = ul[i] < least ? ul[i] : least;
      turned += least;
    };
    for (int g = 0; g < per; g += span) {
      const int n = j * per + g;
      if constexpr (span == 2) {
        const bool odd = odd_[n / 2];
        const Pair f = best_pair<P, kNear>(group(n), group(n + 1), odd, scaled, list(q + g * P::group),
                                           list(q + (g + 1) * P::group));
        add(n, f.one, false, odd && f.first);
        add(n + 1, f.two, false, odd && !f.first);
      } else {
        const bool odd = P::signs == Signs::Even && odd_[n];
        Found f = nearest<P, kNear>(group(n), odd, scaled, list(q + g * P::group));
        bool low = LOW;
        if constexpr (choose) {
          const Found other = nearest<P, kNear>(group(n), false, scaled_low, list(q_low + g * P::group));
          if (other.error < f.error) f = other, low = true;
        }
        add(n, f, low, odd);
      }
    }
    return {error, pairwise(a) - 2.0f * turned, pairwise(b), LOW};
  }

  alignas(64) float a_[256], w_[256], u_[256];
  bool odd_[32] = {};
};

template <class P>
struct Lattice {
  using Block = LatticeBlock<P>;
  using Sub = typename Block::Sub;
  static constexpr int subs = Block::subs;
  static constexpr int unit = P::group * Points<P>::span;  // weights encoded together
  static constexpr float most = float(2 * P::steps + 1);

  static void fit(const float* x, const float* w, Scales* scales, int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k) fit_block(x + k * 256, w ? w + k * 256 : nullptr, scales + k);
  }

  static void encode(const float* x, const Scales* scales, uint8_t* codes, int64_t blocks) {
    encode_weighted(x, nullptr, scales, codes, blocks);
  }

  static void encode_weighted(const float* x, const float* w, const Scales* scales, uint8_t* codes,
                              int64_t blocks) {
    for (int64_t k = 0; k < blocks; ++k) {
      const float ds = scales[k].d * P::unit;
      for (int j = 0; j < subs; ++j) {
        const float s = ds * float(scales[k].sub[j]);
        const bool low = scales[k].submin[j] != 0;
        const int64_t at = k * 256 + j * P::sub;
        encode_run<P::sub>(x + at, w ? w + at : nullptr, Under(s, low), P::sub / unit, codes + at);
      }
    }
  }

  static void encode_groups(const float* x, const float* w, const float* s, const uint8_t* low,
                            uint8_t* codes, int64_t groups) {
    alignas(64) float xx[16] = {}, ww[16] = {};
    for (int64_t g = 0; g < groups; ++g) {
      for (int i = 0; i < unit; ++i) xx[i] = x[g * unit + i], ww[i] = w ? w[g * unit + i] : 1.0f;
      encode_run<16>(xx, ww, Under(s[g], low[g] != 0), 1, codes + g * unit);
    }
  }

  static void decode(const uint8_t* codes, const Scales* scales, float* y, int64_t blocks) {
    constexpr int above = Points<P>::above;
    float book[2 << above] = {};
    for (int i = 0; i < P::count; ++i) {
      book[i] = Points<P>::level(i, false);
      book[(1 << above) + i] =
          P::signs == Signs::None ? Points<P>::level(i, true) : -Points<P>::level(i, false);
    }
    for (int64_t k = 0; k < blocks; ++k) {
      const float ds = scales[k].d * P::unit;
      for (int j = 0; j < subs; ++j) {
        const float s = ds * float(scales[k].sub[j]);
        const int shift = P::shifted == Shifted::SubBlocks && scales[k].submin[j] ? 1 << above : 0;
        for (int64_t i = k * 256 + j * P::sub; i < k * 256 + (j + 1) * P::sub; ++i)
          y[i] = s * book[(codes[i] | shift) & ((2 << above) - 1)];
      }
    }
  }

 private:
  static inline vf odd_near(vf s, vf inverse) {
    const vf k = vrint(vclamp((s * inverse - 1.0f) * 0.5f, 0, P::steps));
    return k + k + 1.0f;
  }

  static inline float odd_near(float s, float inverse) { return odd_near(splat(s), splat(inverse))[0]; }

  // Best scales of the sub-blocks, and B under them; returns the block's sum of w x^2.
  static float exact_scales(const Block& block, float* s, float* b) {
    float total = 0;
    for (int j = 0; j < subs; ++j) {
      float rms, best = 0;
      total += block.energy(j, &rms);
      s[j] = b[j] = 0;
      for (int i = 0; i <= P::width_count; ++i) {
        const Sub found = block.sub_block(j, i < P::width_count ? rms * P::widths[i] : s[j]);
        if (!(found.a > 0 && found.b > 0)) continue;
        const float exact = found.a / found.b, gain = exact * found.a;
        if (gain > best * kMore && gain < kHuge) best = gain, s[j] = exact, b[j] = found.b;
      }
    }
    return total;
  }

  static float first_scale(const float* s, const float* b) {
    struct alignas(64) Divisors {
      float v[kCandidates];
    };
    static constexpr Divisors kDivisors = [] {
      Divisors d{};
      for (int i = 0; i < kCandidates; ++i) d.v[i] = float((2 * P::steps + 1) * (1 - i / 40.0));
      return d;
    }();
    alignas(64) float d[kCandidates], error[kCandidates];
    float top = s[0];
    for (int j = 1; j < subs; ++j) top = s[j] > top ? s[j] : top;
    vf least = splat(kHuge);
    for (int c = 0; c < kCandidates; c += kLanes) {
      const vf scale = scales_near(splat(top) / load(kDivisors.v + c) * (1.0f / P::unit));
      const vf ds = scale * P::unit, inverse = reciprocal_or_zero(ds);
      vf e = splat(0);
      for (int j = 0; j < subs; ++j) {
        const vf rest = splat(s[j]) - ds * odd_near(splat(s[j]), inverse);
        e += splat(b[j]) * (rest * rest);
      }
      e = select(e < kHuge, e, splat(kHuge));
      least = vmin(least, e);
      store(d + c, scale);
      store(error + c, e);
    }
    const vf lowest = splat(vleast(least));
    for (int c = 0; c < kCandidates; c += kLanes)
      if (const uint32_t found = lanes(load(error + c) == lowest)) return d[c + __builtin_ctz(found)];
    return d[0];
  }

  // The best integer: the nearest, or one of its neighbours.
  static float settle(const Block& block, int j, float s, float ds, bool neighbours, Sub* best) {
    const float nearest = odd_near(s, reciprocal_or_zero(ds));
    float best_q = nearest;
    *best = block.sub_block(j, ds * nearest);
    if (!neighbours) return nearest;
    for (const float delta : {-2.0f, 2.0f}) {
      const float q = nearest + delta;
      if (q < 1.0f || q > most) continue;  // cut to the range it is the nearest again
      const Sub found = block.sub_block(j, ds * q);
      if (found.error < best->error) *best = found, best_q = q;
    }
    return best_q;
  }

  static void fit_block(const float* x, const float* w, Scales* out) {
    const Block block(x, w);
    float s[subs], b[subs];
    float best = exact_scales(block, s, b);
    float d = first_scale(s, b);
    clear(out);
    for (int j = 0; j < subs; ++j) out->sub[j] = 1;
    for (int round = 0; round < 2; ++round) {
      float q[subs], error = 0, qa = 0, qqb = 0;
      Sub found[subs];
      for (int j = 0; j < subs; ++j) {
        q[j] = settle(block, j, s[j], d * P::unit, round > 0, found + j);
        error += found[j].error;
        qa += q[j] * found[j].a;
        qqb += (q[j] * q[j]) * found[j].b;
      }
      if (error < best) {
        best = error;
        out->d = d;
        for (int j = 0; j < subs; ++j) {
          out->sub[j] = int8_t(q[j]);
          out->submin[j] = P::shifted == Shifted::SubBlocks && found[j].low;
        }
      }
      if (qqb > 0 && qa > 0) d = round_to_half(qa / qqb * (1.0f / P::unit));
    }
  }

  // What encoding under a scale takes. Where signs are stored, a negative scale turns them all.
  struct Under {
    float s, inverse;
    bool turned, low;
    Scaled<P> scaled, shifted;

    Under(float scale, bool is_low)
        : s(P::signs != Signs::None && scale < 0 ? -scale : scale),
          inverse(reciprocal_or_zero(s)),
          turned(P::signs != Signs::None && scale < 0),
          low(P::shifted == Shifted::SubBlocks && is_low),
          scaled(s, low),
          shifted(P::shifted == Shifted::Groups ? s : 0.0f, true) {}
  };

  // `units` times the point or the two points of weights that are encoded together, of N weights.
  template <int N>
  static inline void encode_run(const float* x, const float* w, const Under& under, int units,
                                uint8_t* codes) {
    alignas(64) float a[N], ww[N], u[N];
    alignas(64) uint8_t q[N], q_low[N];
    uint32_t minus = 0;
    for (int i = 0; i < N; i += kLanes) {
      const vf xi = load(x + i), wi = w ? load(w + i) : splat(1.0f);
      vf ai = select(wi > 0.0f, xi, splat(0.0f));
      if constexpr (P::signs != Signs::None) ai = vmax(ai, -ai);
      store(a + i, ai);
      store(ww + i, wi);
      store(u + i, wi * ai);
      minus |= lanes(xi < 0.0f) << i;
    }
    if (under.turned) minus = ~minus;
    round_levels<P, N>(a, under.inverse, under.low, q);
    if constexpr (P::shifted == Shifted::Groups) round_levels<P, N>(a, under.inverse, true, q_low);
    for (int k = 0; k < units; ++k) {
      const int i = k * unit;
      const uint32_t signs = minus >> i & ((1u << unit) - 1);
      const bool odd = P::signs == Signs::Even && __builtin_popcount(signs) & 1;
      encode_unit({a + i, ww + i, u + i}, under, q + i, q_low + i, signs, odd, codes + i);
    }
  }

  static const uint16_t* list(const uint8_t* levels) {
    return Points<P>::near_points(Points<P>::tuple(levels));
  }

  static inline void encode_unit(const Group& g, const Under& under, const uint8_t* q,
                                 const uint8_t* q_low, uint32_t signs, bool odd, uint8_t* codes) {
    bool shift = false;
    int from = 0;  // where a sign may be turned
    if constexpr (Points<P>::span == 2) {
      const Group second = {g.a + P::group, g.w + P::group, g.u + P::group};
      const Pair f = best_pair<P, P::near>(g, second, odd, under.scaled, list(q), list(q + P::group));
      Points<P>::to_codes(f.one.point, codes);
      Points<P>::to_codes(f.two.point, codes + P::group);
      from = f.first ? 0 : P::group;
    } else {
      Found f = nearest<P, P::near>(g, odd, under.scaled, list(q));
      if constexpr (P::shifted == Shifted::Groups) {
        const Found other = nearest<P, P::near>(g, false, under.shifted, list(q_low));
        shift = other.error < f.error;
        if (shift) f = other;
      }
      Points<P>::to_codes(f.point, codes);
    }
    if (odd) {
      int turned = from;
      float least = 0;
      for (int i = from; i < from + P::group; ++i) {
        const float cost = g.u[i] * ((4.0f * under.s) * Points<P>::level(codes[i], false));
        if (i == from || cost < least) least = cost, turned = i;
      }
      signs ^= 1u << turned;
    }
    if constexpr (P::signs != Signs::None)
      Points<P>::add_signs(signs, codes, unit);
    else if (shift)
      Points<P>::add_signs(255, codes, unit);
  }
};

}  // namespace kvant::KVANT_ISA
