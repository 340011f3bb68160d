"""Ternary grids: every weight is minus, zero or plus the block's scale.

For a scale d the best codes are those of the weights above d / 2 in magnitude, so the best set of
nonzero codes is one of the largest weights: the first k of them by magnitude, for some k. For each
k the best scale is their mean magnitude P / W (sums of w |x| and of w), which explains P P / W of
the sum of squares. All 256 are tried, so the search is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvant.packing.half import to_half
from kvant.packing.search import codes_of, reciprocal_or_zero
from kvant.packing.spec import Codes, Floats, Scales, empty_scales

__all__ = ["TernaryGrid"]

_ZERO, _ONE = np.float32(0), np.float32(1)
_HUGE = np.float32(3.0e38)


def _exchanges(n: int) -> Iterator[tuple[int, int]]:
    """Pairs of places that a bitonic network of ``n`` compares, the greater value to the first."""
    size = 2
    while size <= n:
        step = size // 2
        while step:
            for i in range(n):
                other = i ^ step
                if other > i:
                    yield (other, i) if i & size else (i, other)
            step //= 2
        size *= 2


class TernaryGrid:
    """w = d (code - 1), codes in 0..2."""

    def fit(self, x: Floats, importance: Floats | None) -> Scales:
        """Scales for blocks ``x`` [blocks, 256].

        Sums run from the greatest magnitude down; of equal ones in the order the network of
        `_exchanges` leaves them in.
        """
        size = np.ascontiguousarray(np.abs(x).T)
        weight = np.ones_like(size) if importance is None else importance.T.copy()
        for a, b in _exchanges(len(size)):
            swap = size[a] < size[b]
            for v in (size, weight):
                v[a], v[b] = np.where(swap, v[b], v[a]), np.where(swap, v[a], v[b])
        p, total, best, best_s = (np.zeros(len(x), np.float32) for _ in range(4))
        for s, w in zip(size, weight, strict=True):
            p, total = p + w * s, total + w
            mean = np.where(total > 0, p / np.where(total > 0, total, _ONE), _ZERO)
            gain = mean * p
            better = (gain > best) & (gain < _HUGE)
            best, best_s = np.where(better, gain, best), np.where(better, mean, best_s)
        scales = empty_scales(len(x))
        scales["d"] = to_half(best_s)
        return scales

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """Codes of blocks ``x`` under ``scales``: the nearest of the three."""
        inverse = reciprocal_or_zero(scales["d"])[:, None]
        return (codes_of(x, _ZERO, inverse, -1, 1).astype(np.int32) + 1).astype(np.uint8)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """Weights of ``codes`` under ``scales``."""
        return (codes.astype(np.int32) - 1).astype(np.float32) * scales["d"][:, None]
