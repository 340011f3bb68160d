"""Every weight by itself: the packing's own search for scales, errors weighed by ``diag(H)``."""

from __future__ import annotations

import numpy as np

from kvant.quant.methods.grid import grid_of
from kvant.quant.methods.problem import Problem, Quantised

__all__ = ["search"]


def search(problem: Problem) -> Quantised:
    """Scales of least weighed error, codes nearest to the weights."""
    grid = grid_of(problem.packing)
    diagonal = np.diag(problem.moments)
    mean = diagonal.mean()
    importance = (diagonal / mean if mean > 0 else np.ones_like(diagonal)).astype(np.float32)
    weights = grid.weighed(problem.weights, importance)
    shape = (-1, grid.block)
    x = np.ascontiguousarray(problem.weights, np.float32).reshape(shape)
    scales = grid.fit(x, np.ascontiguousarray(weights).reshape(shape))
    codes = grid.encode(x, scales).reshape(problem.weights.shape)
    return Quantised.of(
        problem.packing, codes, scales.reshape(len(codes), -1).astype(grid.dtype, copy=False)
    )
