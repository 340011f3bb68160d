"""The scale search of the K-packings, in NumPy: the specification of native/kernels/search*.h.

A sub-block of n weights x with importance w is stored as a line: x ~ s q + b, with integer codes
q in [lo, hi], and b <= 0 stored as minus a minimum (or absent). For fixed codes the best s and b
are a weighted least-squares fit in closed form from five sums,

    W = sum w, X = sum w x, Q = sum w q, QQ = sum w q q, XQ = sum w x q,

and what a line explains of sum w x x is its *gain*

    s (2 XQ - s QQ) + b (2 X - b W) - 2 s b Q,

so the line of least squared error is the line of largest gain, and no pass over the errors is
needed. The search tries codes from several stretches of the range ("widths"), solves each, then
twice takes the codes of the best line and solves again (the alternation of Lloyd's algorithm).
After that the scales must become small integers times the block's d (and dmin). Of a few values
of d the one is taken whose multiples lie nearest to the exact scales (`choose_scale`). Then each
sub-block tries the integer nearest its scale and both neighbours, each with the minimum that suits
it, and keeps what really gives the least error (`settle`). With codes and integers known, d and
dmin have a least-squares answer of their own (`refit`); the sub-blocks then settle again, and the
block keeps the better of the rounds.

All sums run over the weights in order, in float32, multiply and add never fused, so that every
implementation that keeps this order gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvant.packing.half import to_half
from kvant.packing.spec import Codes, Floats, Scales, empty_scales

__all__ = [
    "AffineGrid",
    "SymmetricGrid",
    "SymmetricRun",
    "codes_of",
    "reciprocal_or_zero",
    "scales_near",
]

_TINY = np.float32(1e-30)  # below this a scale is zero in half precision; its reciprocal overflows
_ONE, _ZERO, _TWO = np.float32(1), np.float32(0), np.float32(2)
_WORST = np.float32(-3.0e38)
_MORE = np.float32(1.000001)
"""What a candidate has to gain over those before it, so that where several are exact (weights of
two or three levels) rounding does not choose a different one in every sub-block."""
_HUGE = np.float32(3.0e38)  # larger than any sum of squares that is of use; beyond it floats end


def reciprocal_or_zero(s: Floats) -> Floats:
    """1 / s, and 0 where |s| is too small to invert."""
    usable = np.abs(s) > _TINY
    return np.where(usable, _ONE / np.where(usable, s, _ONE), _ZERO)


def codes_of(
    x: Floats, base: Floats | np.float32, inverse: Floats | np.float32, lo: int, hi: int
) -> Floats:
    """rint(clamp((x - base) * inverse, lo, hi)), as float32."""
    t = (x - base) * inverse
    return np.rint(np.minimum(np.maximum(t, np.float32(lo)), np.float32(hi)))


def scales_near(x: Floats) -> Floats:
    """Half-precision scales to try: the nearest ones, or the larger where halves are few.

    Below 128 steps of a subnormal half, a scale rounded down cuts the largest integer (up to 128)
    short by more than rounding does, or vanishes; rounded up, it only leaves the integers smaller.
    """
    h = to_half(x)
    short = (np.abs(h) < np.float32(2.0**-17)) & (np.abs(h) < np.abs(x))
    return np.where(short, h + np.copysign(np.float32(2.0**-24), x), h)


def choose_scale(
    v: Floats, weight: Floats, top: Floats, divisors: Sequence[float], lo: int, hi: int
) -> Floats:
    """For each block that of the scales ``top / divisors`` whose multiples are nearest to ``v``.

    ``v`` [blocks, subs] are the exact scales of the sub-blocks, to become integers lo..hi.
    ``weight``, of the same shape, is the curvature of a sub-block's error, so that the weighted
    sum of squares is the error the integers will cause.
    """
    best_d = best = np.zeros_like(top)
    for i, divisor in enumerate(divisors):
        d = scales_near(top / np.float32(divisor))
        inverse = reciprocal_or_zero(d)
        error = np.zeros_like(top)
        for vj, wj in zip(v.T, weight.T, strict=True):
            rest = vj - d * codes_of(vj, _ZERO, inverse, lo, hi)
            error = error + wj * (rest * rest)
        error = np.where(error < _HUGE, error, _HUGE)  # also where it is not a number
        better = (error < best) | (i == 0)
        best, best_d = np.where(better, error, best), np.where(better, d, best_d)
    return best_d


@dataclass
class _Sums:
    q: Floats
    qq: Floats
    xq: Floats


class _Settled:
    """Integer scale and minimum of each sub-block, their gain and sums; the best so far."""

    def __init__(self, sc: Floats, mc: Floats, gain: np.float32) -> None:
        self.sc, self.mc = sc, mc
        self.gain = np.full(sc.shape, gain, np.float32)
        zero = np.zeros(sc.shape, np.float32)
        self.m = _Sums(zero, zero, zero)

    def offer(self, gain: Floats, sc: Floats, mc: Floats, m: _Sums) -> None:
        better = gain > self.gain
        self.gain = np.where(better, gain, self.gain)
        self.sc, self.mc = np.where(better, sc, self.sc), np.where(better, mc, self.mc)
        self.m = _Sums(
            np.where(better, m.q, self.m.q),
            np.where(better, m.qq, self.m.qq),
            np.where(better, m.xq, self.m.xq),
        )


class _Search:
    """Sub-blocks x [n, subs] (weights first, so that a row is one step of every sum)."""

    lo: int
    hi: int

    def __init__(self, x: Floats, w: Floats | None) -> None:
        self.x = x
        self.w = w

    def nearest(self, t: Floats) -> Floats:
        """The level nearest to ``t``, which is in steps of a scale: here an integer."""
        return codes_of(t, _ZERO, _ONE, self.lo, self.hi)

    def sums(self, base: Floats, inverse: Floats) -> _Sums:
        zero = np.zeros(self.x.shape[1], np.float32)
        s = _Sums(zero.copy(), zero.copy(), zero.copy())
        for i, xi in enumerate(self.x):
            q = self.nearest((xi - base) * inverse)
            wq = q if self.w is None else self.w[i] * q
            s.q = s.q + wq
            s.qq = s.qq + wq * q
            s.xq = s.xq + wq * xi
        return s


def _block_sum(v: Floats, subs: int) -> Floats:
    """Sum over a block's sub-blocks, in order."""
    total = np.zeros(len(v) // subs, np.float32)
    for column in v.reshape(-1, subs).T:
        total = total + column
    return total


def _keep_better(
    out: Scales, best: Floats, fit: _Settled, d: Floats, dmin: Floats, subs: int
) -> None:
    """Take over the blocks that this round serves better."""
    gain = _block_sum(fit.gain, subs)
    better = gain > best
    best[better] = gain[better]
    out["d"][better], out["dmin"][better] = d[better], dmin[better]
    sc, mc = fit.sc.reshape(-1, subs), fit.mc.reshape(-1, subs)
    out["sub"][better, :subs] = sc[better].astype(np.int8)
    out["submin"][better, :subs] = mc[better].astype(np.uint8)


def _blocks_to_subs(a: Floats, n: int) -> Floats:
    """[blocks, 256] -> [n, blocks * 256 / n], sub-blocks side by side."""
    return np.ascontiguousarray(a.reshape(-1, n).T)


@dataclass(frozen=True)
class AffineGrid:
    """x ~ s q + b, q in 0..levels, s >= 0, b <= 0: Q2_K, Q4_K, Q5_K.

    ``n`` weights a sub-block, integer scales and minima up to ``scale_max``, candidate ``widths``
    (codes per range), ``refits`` rounds of refitting d and dmin.
    """

    n: int
    levels: int
    scale_max: int
    refits: int
    widths: tuple[float, ...]

    def fit(self, x: Floats, importance: Floats | None) -> Scales:
        """Scales for blocks ``x`` [blocks, 256]."""
        blocks, subs = len(x), 256 // self.n
        run = _AffineRun(self, _blocks_to_subs(x, self.n), _weights(importance, self.n))
        s, b, qq = run.search()
        d, dmin = self._first_scale(s, qq), self._first_scale(-b, run.sw)
        out, best = empty_scales(blocks), np.full(blocks, _WORST, np.float32)
        for round_ in range(self.refits + 1):
            fit = run.settle(s, b, np.repeat(d, subs), np.repeat(dmin, subs))
            _keep_better(out, best, fit, d, dmin, subs)
            if round_ < self.refits:
                d, dmin = run.refit(fit, d, dmin, subs)
        if run.w is not None:
            self._drop_losses(run.x, run.w, out)
        return out

    def _drop_losses(self, x: Floats, w: Floats, out: Scales) -> None:
        """Sums over weights of very different importance hide the small ones; sub-blocks that lose
        more than zeros would, counted one by one, become zeros."""
        subs = 256 // self.n
        ds = np.repeat(out["d"], subs) * out["sub"][:, :subs].reshape(-1).astype(np.float32)
        m = np.repeat(out["dmin"], subs) * out["submin"][:, :subs].reshape(-1).astype(np.float32)
        inverse, error, energy = reciprocal_or_zero(ds), np.zeros_like(ds), np.zeros_like(ds)
        for xi, wi in zip(x, w, strict=True):
            rest = xi - (ds * codes_of(xi, -m, inverse, 0, self.levels) - m)
            error, energy = error + wi * (rest * rest), energy + wi * (xi * xi)
        worse = (error > energy).reshape(-1, subs)
        out["sub"][:, :subs][worse] = 0
        out["submin"][:, :subs][worse] = 0

    def _first_scale(self, v: Floats, weight: Floats) -> Floats:
        """The largest exact scale becomes an integer about ``scale_max``: up to one above it, or
        as much below as serves the others."""
        by_block = v.reshape(-1, 256 // self.n)
        top = np.maximum(by_block.max(1), _ZERO)
        divisors = [self.scale_max - 6.5 + i / 2 for i in range(16)]
        return choose_scale(
            by_block, weight.reshape(by_block.shape), top, divisors, 0, self.scale_max
        )

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """Codes of blocks ``x`` under ``scales``."""
        subs = 256 // self.n
        ds = scales["d"][:, None] * scales["sub"][:, :subs].astype(np.float32)
        base = -(scales["dmin"][:, None] * scales["submin"][:, :subs].astype(np.float32))
        y = x.reshape(-1, subs, self.n)
        q = codes_of(y, base[..., None], reciprocal_or_zero(ds)[..., None], 0, self.levels)
        return q.astype(np.uint8).reshape(x.shape)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """Weights of ``codes`` under ``scales``: (d sub) q - dmin submin."""
        subs = 256 // self.n
        ds = scales["d"][:, None] * scales["sub"][:, :subs].astype(np.float32)
        m = scales["dmin"][:, None] * scales["submin"][:, :subs].astype(np.float32)
        q = codes.reshape(-1, subs, self.n).astype(np.float32)
        return (ds[..., None] * q - m[..., None]).reshape(codes.shape)


class _AffineRun(_Search):
    def __init__(self, spec: AffineGrid, x: Floats, w: Floats | None) -> None:
        super().__init__(x, w)
        self.spec = spec
        self.lo, self.hi = 0, spec.levels
        n = np.float32(spec.n)
        self.sx = np.zeros(x.shape[1], np.float32)
        self.sw = np.full(x.shape[1], n if w is None else _ZERO, np.float32)
        for i, xi in enumerate(x):
            self.sx = self.sx + (xi if w is None else w[i] * xi)
            if w is not None:
                self.sw = self.sw + w[i]

    def gain(self, m: _Sums, s: Floats, b: Floats) -> Floats:
        return (
            s * (_TWO * m.xq - s * m.qq) + b * (_TWO * self.sx - b * self.sw) - _TWO * s * b * m.q
        )

    def solve(self, m: _Sums) -> tuple[Floats, Floats]:
        det = self.sw * m.qq - m.q * m.q
        regular = det > 0
        inv = _ONE / np.where(regular, det, _ONE)
        s = (self.sw * m.xq - self.sx * m.q) * inv
        b = (m.qq * self.sx - m.q * m.xq) * inv
        through_zero = (b > 0) | ~regular
        some = m.qq > 0
        s0 = np.where(some, m.xq / np.where(some, m.qq, _ONE), _ZERO)
        s = np.maximum(np.where(through_zero, s0, s), _ZERO)
        return s, np.where(through_zero, _ZERO, b)

    def search(self) -> tuple[Floats, Floats, Floats]:
        lo = np.minimum(self.x.min(0), _ZERO)
        step = reciprocal_or_zero(self.x.max(0) - lo)
        best_s, best_b, best_qq = np.zeros_like(lo), lo, np.zeros_like(lo)
        best = _TWO * lo * self.sx - lo * lo * self.sw
        rounds: list[float | None] = [*self.spec.widths, None, None]
        for width in rounds:
            if width is None:
                base, inverse = best_b, reciprocal_or_zero(best_s)
            else:
                base, inverse = lo, np.float32(width) * step
            m = self.sums(base, inverse)
            s, b = self.solve(m)
            gain = self.gain(m, s, b)
            better = gain > best
            best_s, best_b = np.where(better, s, best_s), np.where(better, b, best_b)
            best, best_qq = np.where(better, gain, best), np.where(better, m.qq, best_qq)
        return best_s, best_b, best_qq

    def settle(self, s: Floats, b: Floats, d: Floats, dmin: Floats) -> _Settled:
        top = np.float32(self.spec.scale_max)

        def integer(v: Floats) -> Floats:
            return np.rint(np.minimum(np.maximum(v, _ZERO), top))

        inv_dmin, inv_sw = reciprocal_or_zero(dmin), reciprocal_or_zero(self.sw)
        nearest, first_mc = integer(s * reciprocal_or_zero(d)), integer(-b * inv_dmin)
        # Writing zeros gains nothing, and is better than what rounding can make of few outliers.
        none = np.zeros_like(s)
        best = _Settled(none, none, _ZERO)
        for delta in (0, -1, 1):
            sc = np.minimum(np.maximum(nearest + np.float32(delta), _ZERO), top)
            ds = d * sc
            inverse = reciprocal_or_zero(ds)
            mc = first_mc
            for _ in range(2):
                base = -(dmin * mc)
                m = self.sums(base, inverse)
                best.offer(self.gain(m, ds, base), sc, mc, m)
                mc = integer((ds * m.q - self.sx) * inv_sw * inv_dmin)
        return best

    def refit(self, f: _Settled, d: Floats, dmin: Floats, subs: int) -> tuple[Floats, Floats]:
        ss, mm, sm = (
            _block_sum(f.sc * f.sc * f.m.qq, subs),
            _block_sum(f.mc * f.mc * self.sw, subs),
            _block_sum(f.sc * f.mc * f.m.q, subs),
        )
        sx, mx = _block_sum(f.sc * f.m.xq, subs), _block_sum(f.mc * self.sx, subs)
        det = ss * mm - sm * sm
        regular = det > 0
        alone = np.where(ss > 0, sx / np.where(ss > 0, ss, _ONE), _ZERO)
        new_d = np.where(regular, (sx * mm - sm * mx) / np.where(regular, det, _ONE), alone)
        new_dmin = np.where(regular, (new_d * sm - mx) / np.where(regular, mm, _ONE), _ZERO)
        valid = (new_d > 0) & (new_dmin >= 0)
        return (
            np.where(valid, to_half(new_d), d),
            np.where(valid, to_half(new_dmin), dmin),
        )


def _longest(v: Floats) -> Floats:
    """Along the last axis the value of largest magnitude; of two, the first."""
    return np.take_along_axis(v, np.abs(v).argmax(-1)[..., None], -1)[..., 0]


@dataclass(frozen=True)
class SymmetricGrid:
    """x ~ s q, q in -half..half-1, s of either sign, 16 weights a sub-block: Q3_K, Q6_K.

    Integer scales run from -scale_half to scale_half - 1. ``widths`` say where a candidate puts
    the weight of largest magnitude; negative ones put it at the longer, negative end.

    With ``settled`` the best scale is refined by alternation, neighbours of its integer are tried,
    and d is refitted ``refits`` times. Where integers are as fine as Q6_K's that gains nothing
    that good widths do not: there the longest scale becomes scale_half - 1, the largest integer
    that has a negative, and the others the integers nearest to them.
    """

    half: int
    scale_half: int
    settled: bool
    refits: int
    widths: tuple[float, ...]
    n: int = 16

    def fit(self, x: Floats, importance: Floats | None) -> Scales:
        """Scales for blocks ``x`` [blocks, 256]."""
        blocks, subs = len(x), 256 // self.n
        run = self.run(_blocks_to_subs(x, self.n), _weights(importance, self.n))
        s, qq = run.search()
        out = empty_scales(blocks)
        if not self.settled:
            most = np.float32(self.scale_half - 1)
            out["d"] = scales_near(_longest(s.reshape(blocks, subs)) / most)
            sc = run.integers(s, np.repeat(out["d"], subs))
            out["sub"] = sc.astype(np.int8).reshape(blocks, subs)
            return out
        d = self._first_scale(s.reshape(blocks, subs), qq.reshape(blocks, subs))
        best = np.full(blocks, _WORST, np.float32)
        for round_ in range(self.refits + 1):
            fit = run.settle(s, np.repeat(d, subs))
            _keep_better(out, best, fit, d, np.zeros_like(d), subs)
            if round_ < self.refits:
                ss = _block_sum(fit.sc * fit.sc * fit.m.qq, subs)
                sx = _block_sum(fit.sc * fit.m.xq, subs)
                d = np.where(ss > 0, to_half(sx / np.where(ss > 0, ss, _ONE)), d)
        return out

    def run(self, x: Floats, w: Floats | None) -> SymmetricRun:
        """The search over sub-blocks ``x`` [n, subs]; ``w`` has the same shape."""
        return SymmetricRun(self, x, w)

    def _first_scale(self, v: Floats, weight: Floats) -> Floats:
        """The longest exact scale becomes an integer near one end of the range or the other."""
        lo, hi = -self.scale_half, self.scale_half - 1
        divisors = [*(lo + i for i in range(8)), *(hi - i for i in range(8))]
        return choose_scale(v, weight, _longest(v), divisors, lo, hi)

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """Codes of blocks ``x`` under ``scales``, stored shifted to 0..2 half - 1."""
        ds = scales["d"][:, None] * scales["sub"].astype(np.float32)
        inverse = reciprocal_or_zero(ds)[..., None]
        q = codes_of(x.reshape(-1, 16, 16), _ZERO, inverse, -self.half, self.half - 1)
        return (q.astype(np.int32) + self.half).astype(np.uint8).reshape(x.shape)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """Weights of ``codes`` under ``scales``: (d sub) (code - half)."""
        ds = scales["d"][:, None] * scales["sub"].astype(np.float32)
        q = (codes.reshape(-1, 16, 16).astype(np.int32) - self.half).astype(np.float32)
        return (ds[..., None] * q).reshape(codes.shape)


class SymmetricRun(_Search):
    """Sub-blocks and what is tried on them."""

    def __init__(self, spec: SymmetricGrid, x: Floats, w: Floats | None) -> None:
        super().__init__(x, w)
        self.spec = spec
        self.lo, self.hi = -spec.half, spec.half - 1

    def search(self) -> tuple[Floats, Floats]:
        """The best scale of each sub-block, still exact, and its sum of squared levels."""
        step = reciprocal_or_zero(_longest(self.x.T))
        none = np.zeros_like(step)
        best_s, best, best_qq = none, none, none
        rounds: list[float | None] = [*self.spec.widths, *[None] * (2 * self.spec.settled)]
        for width in rounds:
            inverse = reciprocal_or_zero(best_s) if width is None else np.float32(width) * step
            m = self.sums(none, inverse)
            some = m.qq > 0
            s = np.where(some, m.xq / np.where(some, m.qq, _ONE), _ZERO)
            gain = s * m.xq
            better = (gain > best * _MORE) & (gain < _HUGE)
            best_s, best = np.where(better, s, best_s), np.where(better, gain, best)
            best_qq = np.where(better, m.qq, best_qq)
        return best_s, best_qq

    def integers(self, s: Floats, d: Floats) -> Floats:
        """The integer nearest to each exact scale under its block's d."""
        half = self.spec.scale_half
        return codes_of(s, _ZERO, reciprocal_or_zero(d), -half, half - 1)

    def settle(self, s: Floats, d: Floats) -> _Settled:
        """The integer near ``s / d`` that leaves the least error."""
        lo, hi = np.float32(-self.spec.scale_half), np.float32(self.spec.scale_half - 1)
        nearest = self.integers(s, d)
        none = np.zeros_like(s)
        best = _Settled(nearest, none, _WORST)
        for delta in (0, -1, 1):
            sc = np.minimum(np.maximum(nearest + np.float32(delta), lo), hi)
            ds = d * sc
            m = self.sums(none, reciprocal_or_zero(ds))
            best.offer(ds * (_TWO * m.xq - ds * m.qq), sc, none, m)
        return best


def _weights(importance: Floats | None, n: int) -> Floats | None:
    return None if importance is None else _blocks_to_subs(importance, n)
