"""Joint refinement: codes under fixed scales, then block scales under fixed codes, by turns.

Codes: coordinate descent. With G = (Q - W) H, half the gradient, the best value of weight j with
all others fixed is q_j - G_j / H_jj; the level nearest to it is taken. Unlike error feedback, which
rounds each column once before it knows those to come, every column sees what all others became.

Scales: with codes fixed, the weights of a sub-block are linear in its integer scale, so the error
under H is a parabola in it, and the integer nearest to its lowest point is the best; one sub-block
after the other. Then the weights of a block are linear in the block's d and dmin: the least squared
error has a closed form of two unknowns for each row and block. They are rounded to half precision,
and kept where the error really falls.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvant.packing.spec import Codes, Floats, Scales, SubScales
from kvant.quant.methods.feedback import DAMPING, damped
from kvant.quant.methods.grid import Grid, grid_of
from kvant.quant.methods.problem import Problem, Quantised

__all__ = ["refine", "resized"]

Matrix = npt.NDArray[np.float64]


def refine(
    problem: Problem,
    start: Quantised,
    *,
    sweeps: int = 2,
    scales: bool = True,
    damping: float = DAMPING,
) -> Quantised:
    """Lower the error of ``start``; it never rises but by rounding.

    Args:
        problem: the weights and their inputs.
        start: of the same packing.
        sweeps: passes over all columns.
        scales: after the codes of a block, its scales too.
        damping: as for `feedback`.
    """
    grid = grid_of(problem.packing)
    size = grid.block
    moments = damped(problem.moments, damping).astype(np.float32)
    inverse = 1 / np.diag(moments)
    codes, found = start.codes.copy(), start.scales.copy()
    q = start.values.copy()
    r = (q - problem.weights) @ moments
    for _ in range(sweeps):
        for at in range(0, q.shape[1], size):
            here = slice(at, at + size)
            block = np.ascontiguousarray(moments[here, here])
            own = np.ascontiguousarray(found[:, at // size])
            mine = np.ascontiguousarray(codes[:, here])
            before = r[:, here].copy()
            change = grid.descend(
                q,
                r,
                at,
                own,
                block,
                np.ascontiguousarray(inverse[here]),
                mine,
                problem.threads,
            )
            codes[:, here] = mine
            r[:, here] = before
            if scales:
                gradient = before + change @ block
                shift = resized(grid, mine, own, gradient, block)
                better, moved = _refitted(grid, mine, own, gradient, block)
                shift += moved
                found[:, at // size] = better
                q[:, here] += shift
                change += shift
            r += change @ moments[here]
    return Quantised.of(problem.packing, codes, found)


def resized(grid: Grid, codes: Codes, scales: Scales, gradient: Floats, moments: Floats) -> Floats:
    """How weights change by the integer scales of least error, chosen one after the other.

    ``scales`` and ``gradient`` (half of it, [rows, block]) are updated.
    """
    shift = np.zeros_like(gradient)
    for kind in grid.sub_scales:
        own = scales[kind.field]
        unit = _per_step(grid, codes, scales, kind)
        for j in range(gradient.shape[1] // kind.n):
            here = slice(j * kind.n, (j + 1) * kind.n)
            u = unit[:, here]
            a = np.einsum("ij,ij->i", u @ moments[here, here], u)
            wanted = -np.einsum("ij,ij->i", gradient[:, here], u) / np.where(a > 0, a, 1)
            old = own[:, j].astype(np.float32)
            steps = np.rint((old + wanted - kind.least) / kind.step)
            new = np.clip(kind.least + kind.step * steps, kind.least, kind.most)
            delta = np.where(a > 0, new - old, 0).astype(np.float32)
            own[:, j] = (old + delta).astype(own.dtype)
            change = delta[:, None] * u
            shift[:, here] += change
            gradient += change @ moments[here]
    return shift


def _per_step(grid: Grid, codes: Codes, scales: Scales, kind: SubScales) -> Floats:
    """What weights change by when each integer scale of a kind grows by one: [rows, block]."""
    some, none = scales.copy(), scales.copy()
    some[kind.field], none[kind.field] = 1, 0
    return grid.decode(codes, some) - grid.decode(codes, none)


def _refitted(
    grid: Grid, codes: Codes, scales: Scales, gradient: Floats, moments: Floats
) -> tuple[Scales, Floats]:
    """Block scales of least error for fixed codes, and how the weights change by them.

    ``codes`` and ``gradient`` (half of it) are [rows, block], ``moments`` [block, block].
    """
    along = grid.directions(codes, scales)
    if not along:
        return scales, np.zeros_like(gradient)
    pulled = [u @ moments for u in along]
    rows = np.einsum
    a = rows("ij,ij->i", pulled[0], along[0])
    g = -rows("ij,ij->i", gradient, along[0])
    step = [g / np.where(a > 0, a, 1), np.zeros_like(g)]
    if len(along) == 2:
        b = rows("ij,ij->i", pulled[0], along[1])
        c = rows("ij,ij->i", pulled[1], along[1])
        h = -rows("ij,ij->i", gradient, along[1])
        det = a * c - b * b
        regular = det > 1e-6 * a * c
        safe = np.where(regular, det, 1)
        step[0] = np.where(regular, (g * c - h * b) / safe, step[0])
        step[1] = np.where(regular, (a * h - b * g) / safe, 0)
    new = grid.moved(scales, step[: len(along)])
    shift = grid.decode(codes, new) - grid.decode(codes, scales)
    gain = rows("ij,ij->i", shift, 2 * gradient + shift @ moments)
    worse = ~((gain < 0) & (np.sign(new["d"]) == np.sign(scales["d"])))
    new[worse] = scales[worse]
    shift[worse] = 0
    return new, shift
