// Error feedback and coordinate descent for codebook packings: codes of a whole unit of weights (one
// point, or the two that share a count of signs) are chosen together, by the error that they leave
// under the second moments of their inputs. See feedback.h; tests/quant/test_lattice_feedback.py says
// the same in NumPy.
//
// Lanes hold points that are tried: those nearest to what is wanted. Of each the error is
// |(v - t) L|^2, L the group's `inverse`. Turning the sign of weight i changes it by
// c (2 g_i + c M_ii), c = -2 v_i, g = (v - t) M, and turning two by both changes and 2 c_i c_j M_ij:
// so all ways to turn none, one or two signs are looked at without trying them one by one.
#pragma once

#include "feedback.h"
#include "lattice.h"

namespace kvant::KVANT_ISA {

// Which numbers of signs may be turned against those of what is wanted.
enum class Turn { None, UpToTwo, NoneOrTwo, One };

struct PointChoice {
  float error;
  uint32_t point;
  uint32_t turned;  // a bit for each weight whose sign is turned
};

template <class P>
class LatticeFeedback {
 public:
  static constexpr int group = P::group, unit = group * Points<P>::span;

  static void carry(const Scales& scales, const UnitForm* forms, float* w, const float* factor,
                    const float* inverse, uint8_t* codes, float* error) {
    each_unit(scales, [&](int u, const Under& under) {
      float v[8];
      choose(w + u * unit, under, forms[u], codes + u * unit, v);
      for (int i = 0; i < unit; ++i) {
        const int j = u * unit + i;
        const float e = (w[j] - v[i]) * inverse[j];
        error[j] = e;
        const float* row = factor + j * 256;
        for (int k = (j + 1) / kLanes * kLanes; k < 256; k += kLanes)
          store(w + k, load(w + k) - splat(e) * load(row + k));
      }
    });
  }

  static void descend(const Scales& scales, const UnitForm* forms, float* q, float* r,
                      const float* moments, uint8_t* codes, float* change) {
    each_unit(scales, [&](int u, const Under& under) {
      const int at = u * unit;
      float t[8], v[8], d[8];
      uint8_t found[8];
      for (int i = 0; i < unit; ++i) {
        float pull = 0;
        for (int k = 0; k < unit; ++k) pull += r[at + k] * forms[u].solved[k * 8 + i];
        t[i] = q[at + i] - pull;
      }
      choose(t, under, forms[u], found, v);
      float gain = 0;
      for (int i = 0; i < unit; ++i) d[i] = v[i] - q[at + i];
      for (int i = 0; i < unit; ++i) {
        float pull = 2.0f * r[at + i];
        for (int k = 0; k < unit; ++k) pull += d[k] * moments[(at + k) * 256 + at + i];
        gain += d[i] * pull;
      }
      std::fill_n(change + at, unit, 0.0f);
      if (!(gain < 0)) return;
      for (int i = 0; i < unit; ++i) {
        codes[at + i] = found[i];
        q[at + i] = v[i];
        change[at + i] = d[i];
        const float* row = moments + (at + i) * 256;
        for (int k = 0; k < 256; k += kLanes) store(r + k, load(r + k) + splat(d[i]) * load(row + k));
      }
    });
  }

 private:
  // What choosing under a scale takes.
  struct Under {
    float s, inverse;
    bool low;
    Scaled<P> scaled, shifted;

    Under(float scale, bool is_low)
        : s(scale),
          inverse(reciprocal_or_zero(scale)),
          low(P::shifted == Shifted::SubBlocks && is_low),
          scaled(scale, low),
          shifted(P::shifted == Shifted::Groups ? scale : 0.0f, true) {}
  };

  template <class Work>
  static inline void each_unit(const Scales& scales, const Work& work) {
    const float ds = scales.d * P::unit;
    for (int j = 0; j < 256 / P::sub; ++j) {
      const Under under(ds * float(scales.sub[j]), scales.submin[j] != 0);
      for (int k = 0; k < P::sub / unit; ++k) work(j * (P::sub / unit) + k, under);
    }
  }

  // Codes of a unit for wanted weights t, and the weights v that they stand for.
  static inline void choose(const float* t, const Under& under, const UnitForm& form, uint8_t* codes,
                            float* v) {
    if constexpr (Points<P>::span == 2) {
      choose_pair(t, under, form, codes, v);
    } else {
      const Wanted one(t, under, under.low);
      if constexpr (P::signs == Signs::None) {
        PointChoice f = best<Turn::None>(one, under.scaled, form.group[0]);
        bool low = under.low;
        if constexpr (P::shifted == Shifted::Groups) {
          const Wanted other(t, under, true);
          const PointChoice g = best<Turn::None>(other, under.shifted, form.group[0]);
          if (g.error < f.error) f = g, low = true;
        }
        put(f, one, under.s, low, codes, v);
        if (P::shifted == Shifted::Groups && low) Points<P>::add_signs(255, codes, group);
      } else {
        put(best_signed<P::signs == Signs::Free>(one, one.odd(), under, form.group[0]), one, under.s, false,
            codes, v);
      }
    }
  }

  // Two points under one count of signs: the first with an even and with an odd number, and what each
  // leaves the second to make up for.
  static inline void choose_pair(const float* t, const Under& under, const UnitForm& form,
                                 uint8_t* codes, float* v) {
    const Wanted one(t, under, false);
    float least = kHuge;
    for (int odd = 0; odd < 2; ++odd) {
      uint8_t c[8];
      float x[8], rest[4];
      const PointChoice f = best_signed<false>(one, one.odd() != (odd == 1), under, form.group[0]);
      put(f, one, under.s, false, c, x);
      for (int i = 0; i < 4; ++i) rest[i] = t[4 + i];
      for (int j = 0; j < 4; ++j) {
        float e = 0;
        for (int i = 0; i <= j; ++i) e += (x[i] - t[i]) * form.group[0].inverse[i * 8 + j];
        for (int i = 0; i < 4; ++i) rest[i] += e * form.cross[j * 4 + i];
      }
      const Wanted two(rest, under, false);
      const PointChoice g = best_signed<false>(two, two.odd() != (odd == 1), under, form.group[1]);
      if (odd == 1 && !(f.error + g.error < least)) break;
      least = f.error + g.error;
      put(g, two, under.s, false, c + 4, x + 4);
      std::memcpy(codes, c, 8);
      std::memcpy(v, x, sizeof x);
    }
  }

  // Wanted weights of a group, their signs, and the points near them.
  struct Wanted {
    float t[8], sign[8];
    uint32_t minus = 0;
    const uint16_t* list;

    Wanted(const float* wanted, const Under& under, bool low) {
      alignas(64) float a[16] = {};
      alignas(64) uint8_t levels[16];
      for (int i = 0; i < group; ++i) {
        const bool negative = P::signs != Signs::None && wanted[i] < 0;
        t[i] = wanted[i];
        sign[i] = negative ? -1.0f : 1.0f;
        a[i] = negative ? -wanted[i] : wanted[i];
        minus |= uint32_t(negative) << i;
      }
      round_levels<P, 16>(a, under.inverse, low, levels);
      list = Points<P>::near_points(Points<P>::tuple(levels));
    }

    bool odd() const { return __builtin_popcount(minus) & 1; }
  };

  template <bool FREE>
  static inline PointChoice best_signed(const Wanted& t, bool odd, const Under& under, const GroupForm& form) {
    if constexpr (FREE) return best<Turn::UpToTwo>(t, under.scaled, form);
    else if (odd) return best<Turn::One>(t, under.scaled, form);
    else return best<Turn::NoneOrTwo>(t, under.scaled, form);
  }

  template <Turn TURN>
  static inline PointChoice best(const Wanted& x, const Scaled<P>& scaled, const GroupForm& form) {
    vf errors[P::near / kLanes], least = splat(kHuge);
    for (int k = 0; k < P::near / kLanes; ++k) {
      const vi p = widen_points(x.list + k * kLanes);
      vf v[group];
      for (int i = 0; i < group; ++i)
        v[i] = look(scaled.first, p >> (Points<P>::bits * i)) * splat(x.sign[i]);
      errors[k] = error_of<TURN>(v, x, form, [](int, int, vf) {});
      least = vmin(least, errors[k]);
    }
    const float found = vleast(least);
    PointChoice choice = {kHuge, x.list[0], 0};
    for (int k = P::near / kLanes - 1; k >= 0; --k)
      if (const uint32_t where = lanes(errors[k] == splat(found)))
        choice = {found, x.list[k * kLanes + __builtin_ctz(where)], 0};
    if constexpr (TURN != Turn::None) choice.turned = turned<TURN>(choice.point, x, scaled, form);
    return choice;
  }

  // Which signs are turned in the best way for one point.
  template <Turn TURN>
  static inline uint32_t turned(uint32_t point, const Wanted& x, const Scaled<P>& scaled,
                                const GroupForm& form) {
    alignas(64) float entries[16];
    std::memcpy(entries, scaled.first.part, sizeof entries);
    vf v[group];
    for (int i = 0; i < group; ++i)
      v[i] = splat(entries[point >> (Points<P>::bits * i) & ((1u << Points<P>::bits) - 1)] * x.sign[i]);
    float least = TURN == Turn::One ? kHuge : 0.0f;
    uint32_t best = TURN == Turn::One ? 1 : 0;
    error_of<TURN>(v, x, form, [&](int i, int j, vf more) {
      if (more[0] < least) least = more[0], best = 1u << i | 1u << j;
    });
    return best;
  }

  // The least error of each lane's point; `seen` is told of each way to turn signs, and what it adds.
  template <Turn TURN, class Seen>
  static inline vf error_of(const vf* v, const Wanted& x, const GroupForm& form, const Seen& seen) {
    vf e[group], d[group];
    for (int i = 0; i < group; ++i) d[i] = v[i] - splat(x.t[i]);
    vf error = splat(0);
    for (int j = 0; j < group; ++j) {
      e[j] = d[0] * splat(form.inverse[j]);
      for (int i = 1; i <= j; ++i) e[j] = e[j] + d[i] * splat(form.inverse[i * 8 + j]);
      error = error + e[j] * e[j];
    }
    if constexpr (TURN == Turn::None) return error;
    vf c[group], one[group], least = splat(TURN == Turn::One ? kHuge : 0.0f);
    for (int i = 0; i < group; ++i) {
      vf g = e[i] * splat(form.inverse[i * 8 + i]);
      for (int j = i + 1; j < group; ++j) g = g + e[j] * splat(form.inverse[i * 8 + j]);
      c[i] = splat(-2.0f) * v[i];
      one[i] = c[i] * (g + g + c[i] * splat(form.square[i * 8 + i]));
      if constexpr (TURN == Turn::NoneOrTwo) continue;
      least = vmin(least, one[i]);
      seen(i, i, one[i]);
    }
    if constexpr (TURN != Turn::One)
      for (int i = 0; i < group; ++i)
        for (int j = i + 1; j < group; ++j) {
          const vf two = (one[i] + one[j]) + (c[i] * c[j]) * splat(2.0f * form.square[i * 8 + j]);
          least = vmin(least, two);
          seen(i, j, two);
        }
    return error + least;
  }

  static inline void put(const PointChoice& f, const Wanted& x, float s, bool low, uint8_t* codes, float* v) {
    const uint32_t minus = x.minus ^ f.turned;
    Points<P>::to_codes(f.point, codes);
    for (int i = 0; i < group; ++i) {
      const float level = Points<P>::level(codes[i], low);
      v[i] = s * (minus >> i & 1 ? -level : level);
    }
    if constexpr (P::signs != Signs::None) Points<P>::add_signs(minus, codes, group);
  }
};

}  // namespace kvant::KVANT_ISA
