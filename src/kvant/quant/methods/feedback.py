"""Error feedback (GPTQ, arXiv 2210.17323) through the blocks of a packing.

Columns are rounded from left to right. What rounding a column leaves is taken off the columns still
to come, as far as their inputs can make up for it: with H^-1 = U^T U, U upper, column j's error
e = (w_j - q_j) / U_jj changes column i > j by -e U_ji. A packing's scales belong to blocks of
columns. A block's are fitted when its turn comes, to the weights as they have been corrected by
then, and its codes follow under fixed scales.

Scales are fitted for the least error weighed by 1 / U_jj^2, what an error in column j costs after
the columns to come have made up for it (and by the size of weights where that pays, as a search
without feedback does: `quant.weighting`). The factor is found without inverting H: U is the inverse
of the upper R in H = R R^T, which is the Cholesky factor of H read backwards.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kvant.packing.spec import Floats, Scales
from kvant.quant.methods.grid import Grid, grid_of
from kvant.quant.methods.problem import Problem, Quantised

__all__ = ["DAMPING", "damped", "feedback", "inverse_factor"]

Matrix = npt.NDArray[np.float64]

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: what a finite text says of rare directions is noise."""


_WORTH_A_THREAD = 64  # rows


def feedback(problem: Problem, *, damping: float = DAMPING) -> Quantised:
    """Scales block by block and codes column by column, each correcting what follows."""
    grid = grid_of(problem.packing)
    size = grid.block
    moments = damped(problem.moments, damping)
    factor = inverse_factor(moments).astype(np.float32)
    inverse = 1 / np.diag(factor)
    importance = _importance(factor)
    w = problem.weights.astype(np.float32)  # a copy
    codes = np.empty(w.shape, np.uint8)
    scales = np.empty((len(w), w.shape[1] // size), grid.dtype)
    for start in range(0, w.shape[1], size):
        here, later = slice(start, start + size), slice(start + size, None)
        scales[:, start // size] = fitted(grid, w[:, here], importance[here], problem.threads)
        codes[:, here], error = grid.carry(
            w,
            start,
            np.ascontiguousarray(scales[:, start // size]),
            np.triu(factor[here, here], 1),
            inverse[here],
            problem.threads,
        )
        if start + size < w.shape[1]:
            w[:, later] -= error @ factor[here, later]
    return Quantised.of(problem.packing, codes, scales)


def damped(moments: Matrix, damping: float) -> Matrix:
    """H with ``damping`` times the mean of its diagonal added to the diagonal."""
    mean = float(np.diag(moments).mean())
    found: Matrix = moments + np.eye(len(moments)) * (damping * mean if mean > 0 else 1.0)
    return found


def inverse_factor(moments: Matrix) -> Matrix:
    """Upper U with H^-1 = U^T U, for a positive definite H."""
    backwards = np.linalg.cholesky(moments[::-1, ::-1])
    return _upper_inverse(np.ascontiguousarray(backwards[::-1, ::-1]))


def _upper_inverse(r: Matrix) -> Matrix:
    """Inverse of an upper triangular matrix, by halves: almost all of it is products."""
    n = len(r)
    if n <= 64:
        return np.triu(np.linalg.inv(r))
    half = n // 2
    out = np.zeros_like(r)
    out[:half, :half] = _upper_inverse(r[:half, :half])
    out[half:, half:] = _upper_inverse(r[half:, half:])
    out[:half, half:] = -(out[:half, :half] @ r[:half, half:]) @ out[half:, half:]
    return out


def fitted(grid: Grid, x: Floats, importance: Floats, threads: int = 1) -> Scales:
    """Scales of one block in every row, its columns weighed by ``importance`` [block]."""
    parts = min(threads, max(1, len(x) // _WORTH_A_THREAD))

    def fit(rows: Floats) -> Scales:
        rows = np.ascontiguousarray(rows)
        return grid.fit(rows, grid.weighed(rows, importance))

    if parts == 1:
        return fit(x)
    with ThreadPoolExecutor(parts) as pool:
        return np.concatenate(list(pool.map(fit, np.array_split(x, parts))))


def _importance(factor: Floats) -> Floats:
    """What a squared error in each column costs after the columns to come have made up for it."""
    left = 1 / np.square(np.diag(factor).astype(np.float64))
    found: Floats = (left / left.mean()).astype(np.float32)
    return found
