"""Groups: a few codes of a row share a scale, and perhaps a zero. What MLX, compressed-tensors and
ONNX store, where codes and scales lie apart; how they lie is each format's own matter.

Unlike `Packing` this is a family with parameters: how many bits, how many weights in a group, what
the zero is, and the type scales are rounded to. A code q stands for

    "bias"      d q + z            z a float of the scales' type (MLX)
    "integer"   d (q - z)          z an integer among the codes (asymmetric)
    "middle"    d (q - 2^(b-1))    (symmetric; the codes of files are often signed, q - 2^(b-1))
    "none"      d level[q]         levels of a small float (FP4, FP8)

`search` looks for the scales of least weighed squared error. For fixed codes the best line is a
least-squares fit in closed form (`packing/search.py` has the derivation); every candidate is
rounded to what a file can hold before it is judged, by its codes' real error. Sums run over the
weights of a group in order, in float32, never fused: native/kernels/groups.cc gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvant.packing.half import bf16_to_float, float_to_bf16, to_half
from kvant.packing.search import reciprocal_or_zero
from kvant.packing.small_floats import (
    E2M1,
    E4M3,
    nearest_e4m3,
    nearest_e8m0,
    nearest_of,
    power_above,
)

__all__ = ["GROUP_SCALES", "Groups", "ScaleType", "Zero"]

Floats = npt.NDArray[Any]
Codes = npt.NDArray[Any]
Scales = npt.NDArray[Any]

GROUP_SCALES = np.dtype([("d", "<f4"), ("z", "<f4")])
"""The scale and the zero of one group, as `Groups` defines them."""

Zero = Literal["bias", "integer", "middle", "none"]
ScaleType = Literal["F32", "F16", "BF16", "E8M0", "E4M3"]

_EPS = np.float32(1e-7)
_ONE, _ZERO, _TWO = np.float32(1), np.float32(0), np.float32(2)
_HUGE = np.float32(3.0e38)
_MAX_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Groups:
    """A grid of groups. ``levels`` names the float a code is, with ``zero="none"``."""

    name: str
    bits: int
    block: int
    """Weights in a group."""
    zero: Zero = "bias"
    scale: ScaleType = "BF16"
    levels: Literal["even", "E2M1", "E4M3"] = "even"

    @property
    def most(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The code of zero in a symmetric grid."""
        return 1 << (self.bits - 1)

    @property
    def table(self) -> Floats | None:
        """What each code stands for under a scale of one, float32; None where evenly spaced."""
        return {"even": None, "E2M1": E2M1, "E4M3": E4M3}[self.levels]

    def rounded(self, x: Floats) -> Floats:
        """``x`` as the type of the scales holds it, float32."""
        match self.scale:
            case "F16":
                return to_half(x)
            case "BF16":
                return bf16_to_float(float_to_bf16(x))
            case "E8M0":
                return nearest_e8m0(x)
            case "E4M3":
                return np.asarray(E4M3[nearest_e4m3(x)], np.float32)
        return np.asarray(x, np.float32)

    def with_scale(self, scale: ScaleType) -> Groups:
        """The same grid with scales of another type."""
        return Groups(self.name, self.bits, self.block, self.zero, scale, self.levels)

    def scales(self, d: Floats, z: Floats) -> Scales:
        """Scale and zero side by side, of dtype `GROUP_SCALES`."""
        out = np.empty(d.shape, GROUP_SCALES)
        out["d"], out["z"] = d, z
        return out

    # ---- plain formulas -------------------------------------------------------------------------

    def plain(self, x: Floats) -> Scales:
        """The formula of the format's own tools, for groups ``x`` float32 [groups, block].

        Scales are as they are while codes are chosen: MLX's are not yet rounded for the file.
        """
        return self.formula(x.min(1), x.max(1))

    def formula(self, lo: Floats, hi: Floats) -> Scales:
        """`plain`, given the least and the greatest weight of each group."""
        if self.zero == "bias":
            return self.scales(*_mlx_affine(lo, hi, self.most))
        if self.zero == "integer":  # compressed-tensors' calculate_qparams
            lo, hi = np.minimum(lo, _ZERO), np.maximum(hi, _ZERO)
            d = self.rounded((hi - lo) / np.float32(self.most))
            d = np.where(d == 0, self.rounded(np.full(1, _EPS)), d)
            z = np.clip(np.rint(-lo / d), 0, self.most)
            return self.scales(d, z.astype(np.float32))
        top = np.maximum(np.abs(lo), np.abs(hi))
        if self.zero == "middle":
            d = self.rounded(top / np.float32(self.most / 2))
            d = np.where(d == 0, self.rounded(np.full(1, _EPS)), d)
            return self.scales(d, np.full(len(d), self.middle, np.float32))
        assert self.table is not None
        d = top / np.nanmax(self.table)
        # A power of two must not cut the longest weight, a fine scale may.
        d = power_above(np.where(top > 0, d, _ONE)) if self.scale == "E8M0" else self.rounded(d)
        return self.scales(d, np.zeros(len(d), np.float32))

    # ---- codes ----------------------------------------------------------------------------------

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """The nearest code of each weight of ``x`` [groups, block] under ``scales`` [groups]."""
        d, z = scales["d"][:, None], scales["z"][:, None]
        safe = np.where(d == 0, _ONE, d)
        if self.table is not None:
            return nearest_of(self.levels, np.where(d == 0, _ZERO, x / safe))
        t = (x - z) / safe if self.zero == "bias" else x / safe + z
        t = np.where(d == 0, z if self.zero != "bias" else _ZERO, t)
        q = np.minimum(np.maximum(np.rint(t), _ZERO), np.float32(self.most))
        return q.astype(np.uint8)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """The weights that ``codes`` [groups, block] under ``scales`` stand for, float32."""
        d, z = scales["d"][:, None], scales["z"][:, None]
        if self.table is not None:
            return np.asarray(self.table[codes] * d, np.float32)
        q = codes.astype(np.float32)
        if self.zero == "bias":
            return np.asarray(q * d + z, np.float32)
        return np.asarray((q - z) * d, np.float32)

    # ---- the search -----------------------------------------------------------------------------

    def search(self, x: Floats, importance: Floats | None = None) -> Scales:
        """Scales of least squared error for groups ``x`` float32 [groups, block].

        ``importance``, of the same shape, weighs the errors. Scales are what a file holds.
        """
        if self.table is not None:
            return _ListedSearch(self, x, importance).run()
        return _EvenSearch(self, x, importance).run()

    # ---- for methods that choose code by code (`quant.methods`) ---------------------------------

    def directions(self, codes: Codes, scales: Scales) -> list[Floats]:
        """What the weights change by when d (and a free z) grows by one, [groups, block] each."""
        if self.table is not None:
            return [np.asarray(self.table[codes], np.float32)]
        q = codes.astype(np.float32)
        if self.zero == "bias":
            return [q, np.ones_like(q)]
        return [q - scales["z"][:, None]]

    def moved(self, scales: Scales, steps: list[Floats]) -> Scales:
        """``scales`` with d and a free z moved by ``steps``, as a file holds them."""
        new = scales.copy()
        new["d"] = self.rounded(scales["d"] + steps[0])
        if self.zero == "bias" and len(steps) > 1:
            new["z"] = self.rounded(scales["z"] + steps[1])
        return new


def _mlx_affine(lo: Floats, hi: Floats, most: int) -> tuple[Floats, Floats]:
    """MLX's scale and bias: the end of larger magnitude becomes a code's exact value."""
    lower = np.abs(lo) > np.abs(hi)
    d = np.maximum((hi - lo) / np.float32(most), _EPS)
    d = np.where(lower, d, -d)
    edge = np.where(lower, lo, hi)
    q0 = np.rint(edge / d)
    some = q0 != 0
    d = np.where(some, edge / np.where(some, q0, _ONE), d)
    return d.astype(np.float32), np.where(some, edge, _ZERO).astype(np.float32)


class _EvenSearch:
    """Groups x [block, groups], weights first, so that a row is one step of every sum."""

    def __init__(self, grid: Groups, x: Floats, w: Floats | None) -> None:
        self.grid = grid
        self.x = np.ascontiguousarray(x.T)
        self.w = None if w is None else np.ascontiguousarray(w.T)
        self.sw = np.zeros(len(x), np.float32)
        self.sx = np.zeros(len(x), np.float32)
        for i, xi in enumerate(self.x):
            wi = _ONE if self.w is None else self.w[i]
            self.sw, self.sx = self.sw + wi, self.sx + wi * xi
        self.d = self.z = np.zeros(len(x), np.float32)
        self.least = np.full(len(x), _HUGE, np.float32)

    def run(self) -> Scales:
        """Stretches of the range first, then what follows from the best."""
        top = np.float32(self.grid.most)
        lo, hi = self.x.min(0), self.x.max(0)
        if self.grid.zero == "bias":
            self.follow(*_mlx_affine(lo, hi, self.grid.most), 1)
        for width in widths(self.grid):
            stretch = np.float32(width)
            if self.grid.zero == "middle":
                longer = np.where(hi > -lo, hi, lo)
                d, z = longer / stretch, np.zeros_like(lo)
            else:
                d = (hi - lo) / stretch
                z = (lo + hi) / _TWO - d * (top / _TWO)
            self.follow(d, z, 1)
        self.follow(self.d, self.z, _MAX_ROUNDS, again=True)
        return self.grid.scales(self.d, self.z)

    def held(self, d: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Scale and zero as a file holds them; ``z`` comes as the value of code 0."""
        g = self.grid
        r = g.rounded(d)
        if g.zero == "bias":
            return r, g.rounded(z)
        if g.zero == "middle":
            return r, np.full_like(r, g.middle)
        zero = np.rint(np.minimum(np.maximum(-z * reciprocal_or_zero(d), _ZERO), g.most))
        return r, zero.astype(np.float32)

    def follow(self, d: Floats, z: Floats, rounds: int, *, again: bool = False) -> None:
        """Judge a line, and ``rounds`` times the line that suits its codes best."""
        r, zero = (d, z) if again else self.held(d, z)
        q, qq, xq = self.judge(r, zero)
        for _ in range(rounds):
            r, zero = self.solved(q, qq, xq, zero)
            q, qq, xq = self.judge(r, zero)

    def judge(self, d: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Take the line where its error is less; sums over its codes."""
        bias, top = self.grid.zero == "bias", np.float32(self.grid.most)
        inverse = reciprocal_or_zero(d)
        error, q_, qq, xq = (np.zeros_like(d) for _ in range(4))
        for i, xi in enumerate(self.x):
            t = (xi - z) * inverse if bias else xi * inverse + z
            q = np.rint(np.minimum(np.maximum(t, _ZERO), top))
            y = q * d + z if bias else (q - z) * d
            wi = _ONE if self.w is None else self.w[i]
            rest = xi - y
            wq = wi * q
            error = error + wi * (rest * rest)
            q_, qq, xq = q_ + wq, qq + wq * q, xq + wq * xi
        better = error < self.least
        self.least = np.where(better, error, self.least)
        self.d, self.z = np.where(better, d, self.d), np.where(better, z, self.z)
        return q_, qq, xq

    def solved(self, q: Floats, qq: Floats, xq: Floats, zero: Floats) -> tuple[Floats, Floats]:
        """The line of least squares for codes with these sums, as a file holds it."""
        g = self.grid
        if g.zero == "middle":
            return self.scale_alone(q, qq, xq, zero), zero
        det = self.sw * qq - q * q
        regular = det > 0
        inverse = _ONE / np.where(regular, det, _ONE)
        s = np.where(regular, (self.sw * xq - self.sx * q) * inverse, _ZERO)
        some = self.sw > 0
        if g.zero == "bias":
            r = g.rounded(s)
            b = (self.sx - r * q) / np.where(some, self.sw, _ONE)
            return r, g.rounded(np.where(some, b, _ZERO))
        b = np.where(regular, (qq * self.sx - q * xq) * inverse, _ZERO)
        _, z = self.held(s, b)
        z = np.where(regular & (s > 0), z, zero)
        return self.scale_alone(q, qq, xq, z), z

    def scale_alone(self, q: Floats, qq: Floats, xq: Floats, z: Floats) -> Floats:
        """The best scale where the zero is an integer."""
        square = qq - _TWO * z * q + z * z * self.sw
        some = square > 0
        along = xq - z * self.sx
        return self.grid.rounded(np.where(some, along / np.where(some, square, _ONE), _ZERO))


def widths(grid: Groups) -> tuple[float, ...]:
    """How many steps the range of a group is stretched over, in the candidates of `search`."""
    top = grid.most
    if grid.zero == "middle":
        # Either end may be the longer: below zero there is one level more.
        half = grid.middle
        ups = (half - 1, half - 0.6, half - 0.2, half + 0.3, half + 0.9)
        share = 0.3 if grid.bits <= 3 else 1.0
        return (
            *(half - 1 + (u - half + 1) * share for u in ups),
            *(-u for u in (half, half + 0.5)),
        )
    if grid.bits >= 6:
        return (top, top + 1.0)
    if grid.bits == 2:
        return (2.6, 3.0, 3.5, 4.1, 4.8)
    return (top - 0.6, top, top + 0.6, top + 1.3, top + 2.1, top + 3.2)


class _ListedSearch:
    """Levels of a small float: only the scale is to be found."""

    def __init__(self, grid: Groups, x: Floats, w: Floats | None) -> None:
        self.grid, self.x = grid, x
        self.w = np.ones_like(x) if w is None else w

    def run(self) -> Scales:
        """Scales about the one that just holds the longest weight, and what follows from each."""
        g = self.grid
        assert g.table is not None
        top = np.abs(self.x).max(1) / np.nanmax(g.table)
        best, least = np.zeros_like(top), np.full(len(top), _HUGE, np.float32)
        starts = (0.5, 1.0, 2.0) if g.scale == "E8M0" else (0.7, 0.8, 0.9, 1.0, 1.15, 1.33)
        for share in starts:
            d = g.rounded(top * np.float32(share))
            for _ in range(1 if g.scale == "E8M0" else 2):
                level = g.table[g.encode(self.x, g.scales(d, np.zeros_like(d)))]
                rest = self.x - level * d[:, None]
                error = (self.w * (rest * rest)).sum(1)
                better = error < least
                least, best = np.where(better, error, least), np.where(better, d, best)
                square = (self.w * level * level).sum(1)
                along = (self.w * level * self.x).sum(1)
                d = g.rounded(np.where(square > 0, along / np.where(square > 0, square, 1), 0))
        return g.scales(best, np.zeros_like(best))
