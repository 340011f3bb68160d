"""Slow searches whose answer is certain, to judge the fast ones by. All in double precision.

For fixed codes the best scale is a least-squares fit, and for a fixed scale the best codes are the
nearest levels. Codes change only where some (x - b) / s crosses the middle between two levels, so
trying one scale from each interval between such crossings tries every assignment of codes that
can be the best one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["best_line", "best_scale", "round_to_nearest"]

Doubles = npt.NDArray[Any]


def _assignments(x: Doubles, lo: int, hi: int) -> Doubles:
    """Every assignment of codes lo..hi to x that some scale of either sign makes, [many, n]."""
    nonzero = x[x != 0]
    middles = np.arange(lo, hi) + 0.5
    crossings = np.unique(middles[:, None] / nonzero[None])
    inside = (crossings[1:] + crossings[:-1]) / 2
    ends = [crossings[0] - 1, crossings[-1] + 1] if len(crossings) else [0.0]
    inverse = np.concatenate([inside, ends])
    return np.clip(np.rint(x[None] * inverse[:, None]), lo, hi)


def best_scale(x: Doubles, w: Doubles, lo: int, hi: int) -> float:
    """Least sum of w (x - s q)^2 over every real s and integers q in lo..hi: exact."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    energy = float((w * x * x).sum())
    if energy == 0:
        return 0.0
    q = _assignments(x, lo, hi)
    qq = (w * q * q).sum(1)
    xq = (w * q * x).sum(1)
    gain = np.divide(xq * xq, qq, out=np.zeros_like(qq), where=qq > 0)
    return max(energy - float(gain.max()), 0.0)


def best_line(x: Doubles, w: Doubles, levels: int, offsets: int = 160) -> float:
    """Least sum of w (x - s q - b)^2 over s >= 0, b <= 0 and q in 0..levels.

    Exact in s for each offset of a dense grid; for the codes so found b too is solved for.
    """
    x, w = x.astype(np.float64), w.astype(np.float64)
    least, span = min(float(x.min()), 0.0), float(np.ptp(x))
    energy, total, sx = float((w * x * x).sum()), float(w.sum()), float((w * x).sum())
    best = energy
    grid = np.unique(np.concatenate([np.linspace(least - 0.3 * span, 0, offsets), [least]]))
    for b in grid[grid <= 0]:
        q = _assignments(x - b, 0, levels)
        q1, qq, xq = (w * q).sum(1), (w * q * q).sum(1), (w * q * x).sum(1)
        det = total * qq - q1 * q1
        regular = det > 1e-12 * total * np.maximum(qq, 1e-300)
        safe = np.where(regular, det, 1.0)
        s = np.where(regular, (total * xq - sx * q1) / safe, -1.0)
        offset = np.where(regular, (qq * sx - q1 * xq) / safe, 1.0)
        free = (s >= 0) & (offset <= 0)
        error = energy - s * xq - offset * sx
        if free.any():
            best = min(best, float(error[free].min()))
        through_zero = np.divide(xq * xq, qq, out=np.zeros_like(qq), where=(qq > 0) & (xq > 0))
        best = min(best, energy - float(through_zero.max()))
    return max(best, 0.0)


def round_to_nearest(x: Doubles, levels: int, *, minimum: bool) -> Doubles:
    """The first thing one would write: levels spread evenly over each row's range."""
    x = x.astype(np.float64)
    if minimum:
        lo = np.minimum(x.min(1, keepdims=True), 0)
        s = (x.max(1, keepdims=True) - lo) / levels
        q = np.clip(np.rint((x - lo) / np.where(s > 0, s, 1)), 0, levels)
        return s * q + lo
    half = (levels + 1) // 2
    s = np.abs(x).max(1, keepdims=True) / (half - 1)
    return s * np.clip(np.rint(x / np.where(s > 0, s, 1)), -half, half - 1)
