"""Codebook packings (IQ1, IQ2, IQ3) in NumPy: the specification of native/kernels/lattice*.h.

Four or eight weights together are one *point* of a table: each coordinate has one of a few levels,
and only some combinations of levels are in the table, so that its number takes fewer bits than the
levels would. Signs are stored beside the point (``even``: seven of eight weights, the last makes the
number of minus signs even), or the levels are signed and may all be shifted by an eighth up or down. A
sub-block has an odd integer scale under the half scale of the block of 256:

    w = (d unit) sub level,    sub in 1, 3, ..., 2 steps + 1.

Codes are kept a weight each (level, and a bit for the sign or the shift above it), as in the other
packings; `LatticeGrid.numbers` turns a group of them into the number that the file holds.

The search: for a scale, each weight is rounded to a level by itself. The combination need not be in
the table; the points nearest to it, found once for every combination, are tried, and the one of
least weighted error is taken (where signs must be even and are not, the sign that costs least to
turn is turned, and its cost is part of the point's; of two points under the same signs, it is turned
in that where it costs less). For fixed points the best scale has a closed
form, A / B with A = sum w x level, B = sum w level^2. A sub-block tries scales in several relations
to its root mean square, solves each, and once more takes the points of the best and solves again.
Of a few values of d that one is taken whose odd multiples lie nearest to the exact scales; with the
points and integers that gives, d has a closed form too; under that d each sub-block tries the nearest
integer and its neighbours. The better of the two rounds is kept.

Everything is float32, in the order written here, multiply and add never fused, so that every
implementation gives the same bits. `sums` add group to group coordinate by coordinate and then the
coordinates in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.packing.half import to_half
from kvant.packing.search import reciprocal_or_zero, scales_near
from kvant.packing.spec import Codes, Floats, Scales, empty_scales
from kvant.packing.types import BY_NAME

__all__ = ["TERNARY", "LatticeGrid", "points_of"]

Ints = npt.NDArray[np.int64]

_ZERO, _ONE, _TWO, _HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
_HUGE = np.float32(3.0e38)
_MORE = np.float32(1.000001)  # see kvant.packing.search
_NEAR = 16
"""How many points are tried while scales are searched."""

TERNARY = (8.0, 25.0, 43.0)
"""The three magnitudes of all IQ2 packings, in eighths."""


@cache
def points_of(table: str, group: int) -> Ints:
    """The points of packing ``table``, as indices of levels [points, group].

    The core holds the tables: a number a point, ``group`` digits of two bits (of three where there
    are four), the first weight's lowest; ascending.
    """
    keys = np.array(_core.grid_points(BY_NAME[table].id), np.int64)
    bits = 16 // group if group == 8 else 3
    return keys[:, None] >> (bits * np.arange(group)) & ((1 << bits) - 1)


@cache
def _near_points(table: str, group: int, levels: tuple[float, ...], near: int) -> Ints:
    """[len(levels) ** group, near]: for each combination of levels, first weight's lowest, the
    points at the least distance; of equals the first."""
    points = np.array(levels)[points_of(table, group)]
    every = np.arange(len(levels) ** group)
    digits = every[:, None] // len(levels) ** np.arange(group) % len(levels)
    x = np.array(levels)[digits]
    near_points = np.empty((len(every), near), np.int64)
    for i in range(0, len(every), 256):  # whole numbers, so distances are exact
        part = x[i : i + 256]
        distance = (part**2).sum(1)[:, None] - 2 * part @ points.T + (points**2).sum(1)
        near_points[i : i + 256] = np.argsort(distance, 1, kind="stable")[:, :near]
    return near_points


def _pairwise(v: Floats) -> Floats:
    """Sum of the last axis: neighbours first, then their sums."""
    while v.shape[-1] > 1:
        v = v[..., 0::2] + v[..., 1::2]
    return v[..., 0]


@dataclass
class _Groups:
    """Groups of weights [groups, group] as the search sees them: magnitudes where signs are stored,
    and whether a sign has to be turned in these eight weights."""

    a: Floats
    w: Floats
    odd: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.a)


@dataclass
class _Found:
    """Of each group the best point's error, the levels of its weights as indices, the shift, and
    whether a sign is turned."""

    error: Floats
    levels: Ints
    low: npt.NDArray[np.bool_]
    turned: npt.NDArray[np.bool_]

    def or_where(self, better: npt.NDArray[np.bool_], other: _Found) -> _Found:
        return _Found(
            np.where(better, other.error, self.error),
            np.where(better[:, None], other.levels, self.levels),
            np.where(better, other.low, self.low),
            np.where(better, other.turned, self.turned),
        )


@dataclass
class _Sub:
    """Of each sub-block the error, A and B, and the shift."""

    error: Floats
    a: Floats
    b: Floats
    low: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LatticeGrid:
    """Fit, encode and decode of a codebook packing.

    Attributes:
        table: the packing whose points these are.
        group: weights of a point.
        sub: weights under one integer scale.
        levels: ascending; of the weights' magnitudes where ``signs`` are stored.
        unit: what d is multiplied with.
        steps: largest integer scale is ``2 steps + 1``.
        signs: stored for each weight, stored but for the last (``even``), or part of the levels.
        shifted: who has a bit that shifts its levels by +1 or -1.
        widths: scales to try, times the root mean square of a sub-block.
        near: points tried when encoding.
    """

    table: str
    group: int
    sub: int
    levels: tuple[float, ...]
    unit: float
    steps: int
    signs: Literal["free", "even", "none"]
    widths: Sequence[float]
    shifted: Literal["nobody", "sub-blocks", "groups"] = "nobody"
    near: int = 2 * _NEAR

    # ---- what a group can be ------------------------------------------------------------------

    @property
    def level_bits(self) -> int:
        """Bits of a code that are the level; the sign's, or the shift's, is above them."""
        return 2 if self.group == 8 else 3

    def _levels(self, low: bool = False) -> Floats:
        """[levels] as they are multiplied."""
        shift = 0.0 if self.shifted == "nobody" else -1.0 if low else 1.0
        return np.array(self.levels, np.float32) + np.float32(shift)

    def _book(self) -> Floats:
        """Level by code; codes that no file can hold stand for zero."""
        size = 1 << self.level_bits
        book = np.zeros(2 * size, np.float32)
        n = len(self.levels)
        book[:n] = self._levels()
        book[size : size + n] = self._levels(low=True) if self.signs == "none" else -self._levels()
        return book

    def numbers(self, codes: Codes) -> Ints:
        """Numbers of the points of ``codes`` [groups, group].

        Raises:
            ValueError: codes that are no point of the table.
        """
        bits = 2 if self.group == 8 else 3
        levels = codes.astype(np.int64) & ((1 << self.level_bits) - 1)
        keys = np.array(_core.grid_points(BY_NAME[self.table].id), np.int64)
        wanted = (levels << (bits * np.arange(self.group))).sum(1)
        found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        if not np.array_equal(keys[found], wanted):
            raise ValueError(f"codes that are no point of {self.table}'s table")
        return found

    def _groups(self, x: Floats, importance: Floats | None, negative: Floats | None) -> _Groups:
        w = np.ones_like(x) if importance is None else importance
        x, w = x.reshape(-1, self.group), w.reshape(-1, self.group)
        a = np.where(w > 0, x, _ZERO)  # what does not matter does not choose which points are tried
        minus = x < 0
        if negative is not None:
            minus = minus ^ negative[:, None]
        odd = np.repeat(minus.reshape(-1, 8).sum(1) % 2 == 1, 8 // self.group)
        return _Groups(a if self.signs == "none" else np.abs(a), w, odd & (self.signs == "even"))

    # ---- the nearest point --------------------------------------------------------------------

    def _nearest(
        self, g: _Groups, s: Floats, near: int, low: bool, turned: npt.NDArray[np.bool_]
    ) -> _Found:
        """The best of the ``near`` points around each group [groups] under scale ``s``; a sign has to
        be turned where ``turned`` [groups] says so."""
        levels = self._levels(low)
        step = np.float32((self.levels[-1] - self.levels[0]) / (len(self.levels) - 1))
        t = (g.a * reciprocal_or_zero(s)[:, None] - levels[0]) * (_ONE / step)
        q = np.rint(np.minimum(np.maximum(t, _ZERO), np.float32(len(levels) - 1))).astype(np.int64)
        tuples = (q * len(levels) ** np.arange(self.group)).sum(1)
        tried = _near_points(self.table, self.group, self.levels, near)[tuples]
        tried_levels = points_of(self.table, self.group)[tried]  # [groups, near, group]
        r = g.a[..., None] - s[:, None, None] * levels
        costs = (r * r) * g.w[..., None]  # [groups, group, levels]

        def of_points(by_level: Floats) -> Floats:
            return np.take_along_axis(by_level[:, None], tried_levels[..., None], 3)[..., 0]

        error = _pairwise(of_points(costs))
        if turned.any():
            turn = (g.w * g.a)[..., None] * ((np.float32(4) * s)[:, None, None] * levels)
            error = np.where(turned[:, None], error + of_points(turn).min(2), error)
        error = np.where(error < _HUGE, error, _HUGE)
        best = error.argmin(1)
        rows = np.arange(len(g))
        return _Found(error[rows, best], tried_levels[rows, best], np.full(len(g), low), turned)

    def _best(self, g: _Groups, s: Floats, near: int) -> _Found:
        """`_nearest` under both shifts, or with either of two groups having a sign turned, where a
        group is free to choose."""
        none = np.zeros(len(g), np.bool_)
        if self.shifted == "groups":
            high = self._nearest(g, s, near, False, none)
            low = self._nearest(g, s, near, True, none)
            return high.or_where(low.error < high.error, low)
        if self.signs != "even" or self.group == 8:
            return self._nearest(g, s, near, False, g.odd)
        kept = self._nearest(g, s, near, False, none)
        turned = self._nearest(g, s, near, False, ~none)
        first = turned.error[0::2] + kept.error[1::2] <= kept.error[0::2] + turned.error[1::2]
        return kept.or_where(g.odd & np.stack([first, ~first], 1).ravel(), turned)

    def _sums(self, g: _Groups, f: _Found) -> tuple[Floats, Floats, Floats]:
        """Error, A and B of each sub-block."""
        per = self.sub // self.group
        levels = np.where(f.low[:, None], self._levels(True)[f.levels], self._levels()[f.levels])
        ul = (g.w * g.a) * levels
        wll = g.w * (levels * levels)
        turned = np.where(f.turned, ul.min(1), _ZERO)
        error, a, b, m = (_in_order(v, per) for v in (f.error, ul, wll, turned))
        return error, _pairwise(a) - _TWO * m, _pairwise(b)

    def _sub_blocks(self, g: _Groups, s: Floats) -> _Sub:
        """What sub-blocks come to under scales ``s`` [sub-blocks]."""
        per = self.sub // self.group
        spread = np.repeat(s, per)
        none = np.zeros(len(s), np.bool_)
        high = _Sub(*self._sums(g, self._best(g, spread, _NEAR)), none)
        if self.shifted != "sub-blocks":
            return high
        shifted = self._nearest(g, spread, _NEAR, True, np.zeros(len(g), np.bool_))
        low = _Sub(*self._sums(g, shifted), ~none)
        better = low.error < high.error
        return _Sub(
            np.where(better, low.error, high.error),
            np.where(better, low.a, high.a),
            np.where(better, low.b, high.b),
            better,
        )

    # ---- fit ----------------------------------------------------------------------------------

    def fit(self, x: Floats, importance: Floats | None) -> Scales:
        """Scales for blocks ``x`` [blocks, 256]."""
        blocks, subs = len(x), 256 // self.sub
        g = self._groups(x, importance, None)
        energy, s, b = self._exact_scales(g)
        d = self._first_scale(s.reshape(blocks, subs), b.reshape(blocks, subs))
        out = empty_scales(blocks)
        out["sub"][:, :subs] = 1
        best = _in_order(energy, subs)  # a block that nothing improves is zeros
        for round_ in range(2):
            q, found = self._settle(g, s, np.repeat(d * np.float32(self.unit), subs), round_ > 0)
            error = _in_order(found.error, subs)
            better = error < best
            best = np.where(better, error, best)
            out["d"] = np.where(better, d, out["d"])
            out["sub"][better, :subs] = q.reshape(-1, subs)[better].astype(np.int8)
            out["submin"][better, :subs] = found.low.reshape(-1, subs)[better] & (
                self.shifted == "sub-blocks"
            )
            if round_ == 0:
                qa, qqb = _in_order(q * found.a, subs), _in_order((q * q) * found.b, subs)
                some = (qqb > 0) & (qa > 0)
                refit = qa / np.where(some, qqb, _ONE) * np.float32(1 / self.unit)
                d = np.where(some, to_half(refit), d)
        return out

    def _exact_scales(self, g: _Groups) -> tuple[Floats, Floats, Floats]:
        """Of each sub-block sum w x^2, the best scale found, and B under it."""
        per = self.sub // self.group
        energy = _pairwise(_in_order(g.w * (g.a * g.a), per))
        weight = _pairwise(_in_order(g.w, per))
        rms = np.sqrt(energy * reciprocal_or_zero(weight))
        best_s, best_b, best = np.zeros_like(rms), np.zeros_like(rms), np.zeros_like(rms)
        for width in (*self.widths, None):
            found = self._sub_blocks(g, best_s if width is None else rms * np.float32(width))
            some = (found.a > 0) & (found.b > 0)
            s = np.where(some, found.a / np.where(some, found.b, _ONE), _ZERO)
            gain = s * found.a
            better = (gain > best * _MORE) & (gain < _HUGE)
            best_s, best_b = np.where(better, s, best_s), np.where(better, found.b, best_b)
            best = np.where(better, gain, best)
        return energy, best_s, best_b

    def _first_scale(self, s: Floats, b: Floats) -> Floats:
        """d whose odd multiples are nearest to the exact scales, weighted by their curvature."""
        top = s.max(1)
        best_d = best = np.zeros_like(top)
        unit = np.float32(self.unit)
        for i in range(16):
            divisor = np.float32((2 * self.steps + 1) * (1 - i / 40))
            d = scales_near(top / divisor * np.float32(1 / self.unit))
            ds = d * unit
            error = np.zeros_like(top)
            for sj, bj in zip(s.T, b.T, strict=True):
                rest = sj - ds * self._odd(sj, reciprocal_or_zero(ds))
                error = error + bj * (rest * rest)
            error = np.where(error < _HUGE, error, _HUGE)
            better = (error < best) | (i == 0)
            best, best_d = np.where(better, error, best), np.where(better, d, best_d)
        return best_d

    def _odd(self, s: Floats, inverse: Floats) -> Floats:
        """The odd integer nearest to each scale."""
        k = (s * inverse - _ONE) * _HALF
        k = np.rint(np.minimum(np.maximum(k, _ZERO), np.float32(self.steps)))
        return k + k + _ONE

    def _settle(
        self, g: _Groups, s: Floats, ds: Floats, neighbours: bool
    ) -> tuple[Floats, _Sub]:
        """Each sub-block's nearest integer, or the best of it and its neighbours, and what it
        comes to."""
        nearest = self._odd(s, reciprocal_or_zero(ds))
        best_q, best = nearest, self._sub_blocks(g, ds * nearest)
        for delta in (-2, 2) if neighbours else ():
            q = nearest + np.float32(delta)
            q = np.minimum(np.maximum(q, _ONE), np.float32(2 * self.steps + 1))
            found = self._sub_blocks(g, ds * q)
            better = found.error < best.error
            best_q = np.where(better, q, best_q)
            best = _Sub(
                np.where(better, found.error, best.error),
                np.where(better, found.a, best.a),
                np.where(better, found.b, best.b),
                np.where(better, found.low, best.low),
            )
        return best_q, best

    # ---- encode and decode --------------------------------------------------------------------

    def encode(self, x: Floats, scales: Scales, importance: Floats | None = None) -> Codes:
        """Codes of blocks ``x`` [blocks, 256] under ``scales``: group by group the best point."""
        s, low = self._scales_of_groups(scales)
        codes = self._encode_groups(x.reshape(-1, self.group), s, low, importance)
        return codes.reshape(x.shape)

    def _encode_groups(
        self, x: Floats, s: Floats, low: npt.NDArray[np.bool_], importance: Floats | None
    ) -> Codes:
        negative = s < 0
        if self.signs == "none":
            g = self._groups(x, importance, None)
        else:
            g, s = self._groups(x, importance, negative), np.abs(s)
        f = self._best(g, s, self.near)
        if self.shifted == "sub-blocks":
            other = self._nearest(g, s, self.near, True, np.zeros(len(g), np.bool_))
            f.levels = np.where(low[:, None], other.levels, f.levels)
        codes = f.levels.astype(np.uint8)
        above = np.uint8(self.level_bits)
        if self.signs == "none":
            return codes | (f.low[:, None].astype(np.uint8) << above)
        minus = (x < 0) ^ negative[:, None]
        turn = (g.w * g.a) * ((np.float32(4) * s)[:, None] * self._levels()[f.levels])
        minus[np.flatnonzero(f.turned), turn.argmin(1)[f.turned]] ^= True
        return codes | (minus.astype(np.uint8) << above)

    def _scales_of_groups(self, scales: Scales) -> tuple[Floats, npt.NDArray[np.bool_]]:
        subs, per = 256 // self.sub, self.sub // self.group
        ds = scales["d"] * np.float32(self.unit)
        s = ds[:, None] * scales["sub"][:, :subs].astype(np.float32)
        return np.repeat(s.ravel(), per), np.repeat(scales["submin"][:, :subs].ravel() != 0, per)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """Weights of ``codes`` [blocks, 256] under ``scales``."""
        s, low = self._scales_of_groups(scales)
        c = codes.reshape(-1, self.group)
        if self.shifted == "sub-blocks":
            c = c | low[:, None].astype(np.uint8) << np.uint8(self.level_bits)
        return (s[:, None] * self._book()[c]).reshape(codes.shape)


def _in_order(v: Floats, per: int) -> Floats:
    """[n * per, ...] -> [n, ...]: runs of ``per`` added up first to last."""
    runs = v.reshape(-1, per, *v.shape[1:])
    total = np.zeros_like(runs[:, 0])
    for i in range(per):
        total = total + runs[:, i]
    return total
