"""Full second moments of what linears are fed: E[x x^T], and E[y x^T] with what they should be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["SecondMoments"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


_WAITING = 1 << 24
"""Floats that wait for a product at most: the fewer products, the less often the whole sum is
read and written, which for wide inputs takes longer than the products do."""


class SecondMoments:
    """Grows batch by batch. Products are float32 (of some thousand rows), sums float64."""

    def __init__(self, columns: int) -> None:
        self._sum = np.zeros((columns, columns))
        self._waiting: list[Floats] = []
        self._most = max(1, min(4096, _WAITING // columns))
        self.count = 0
        """Rows so far."""

    def add(self, x: Floats) -> None:
        """Add rows ``x`` [rows, columns]."""
        for start in range(0, len(x), self._most):
            rows = x[start : start + self._most]
            if sum(map(len, self._waiting)) + len(rows) > self._most:
                self._multiply()
            self._waiting.append(rows.copy())  # the caller may use its array again
        self.count += len(x)

    def _multiply(self) -> None:
        if self._waiting:
            x = np.concatenate(self._waiting)
            self._waiting.clear()
            self._sum += x.T @ x

    def mean(self) -> Matrix:
        """E[x x^T], float64 [columns, columns], exactly symmetric."""
        self._multiply()
        found: Matrix = (self._sum + self._sum.T) / (2 * max(1, self.count))
        return found
