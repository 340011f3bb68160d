"""What every method is given and gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant.packing import get, native
from kvant.packing.groups import Groups
from kvant.packing.spec import Codes, Floats, Scales
from kvant.quant.methods.grid import grid_of

__all__ = ["Problem", "Quantised"]


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One linear's weights, and what they are fed.

    What is to become small is ``trace((W - Q) H (W - Q)^T)``, the mean square of the change of the
    linear's outputs.
    """

    packing: str | Groups
    """A packing that says how it is fed back, or groups."""
    weights: Floats
    """W, float32 [rows, columns]; columns are whole blocks of the packing."""
    moments: npt.NDArray[np.float64]
    """H, the second moments E[x x^T] of the inputs: float64 [columns, columns]."""
    threads: int = 1
    """Processors to use; results do not depend on it."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """Weights in a packing: codes, scales, and the weights they stand for."""

    packing: str | Groups
    codes: Codes
    """uint8 [rows, columns]"""
    scales: Scales
    """of dtype SCALES (of groups: GROUP_SCALES), [rows, columns / block]"""
    values: Floats
    """float32 [rows, columns]"""

    @classmethod
    def of(cls, packing: str | Groups, codes: Codes, scales: Scales) -> Quantised:
        """With values as the format decodes them."""
        grid = grid_of(packing)
        flat = grid.decode(codes.reshape(-1, grid.block), scales.reshape(-1))
        return cls(packing, codes, scales, flat.reshape(codes.shape))

    def packed(self) -> npt.NDArray[np.uint8]:
        """Bytes as they stand in a GGUF file: uint8 [rows, row bytes]; not of groups."""
        assert isinstance(self.packing, str)
        block = get(self.packing).block
        data = native.layout(self.packing, self.codes.reshape(-1, block), self.scales.reshape(-1))
        return data.reshape(len(self.codes), -1)

    def loss(self, problem: Problem) -> float:
        """``trace((W - Q) H (W - Q)^T)``."""
        error = self.values.astype(np.float64) - problem.weights
        return float(np.einsum("ij,ij->", error @ problem.moments, error))
