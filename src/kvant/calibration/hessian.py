"""Full second moments of what linears are fed: E[x x^T], and E[y x^T] with what they should be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["SecondMoments"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


class SecondMoments:
    """Grows batch by batch. Products are float32 (a batch is some hundred rows), sums float64."""

    def __init__(self, columns: int) -> None:
        self._sum = np.zeros((columns, columns))
        self.count = 0
        """Rows so far."""

    def add(self, x: Floats) -> None:
        """Add rows ``x`` [rows, columns]."""
        self._sum += x.T @ x
        self.count += len(x)

    def mean(self) -> Matrix:
        """E[x x^T], float64 [columns, columns], exactly symmetric."""
        found: Matrix = (self._sum + self._sum.T) / (2 * max(1, self.count))
        return found
