"""TQ2_0: ternary codes in two bits with one scale per 256 weights."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.k_layout import from_pair_runs, pair_runs
from kvant.packing.spec import Bytes, Codes, Packing, Scales, empty_scales
from kvant.packing.ternary import TernaryGrid

__all__ = ["TQ2_0"]


class TQ2_0(Packing):
    """w = d (q - 1), q in 0..2; a file may hold 3 as well."""

    name = "TQ2_0"
    bits = 2
    good_for = "models trained with three values a weight; fast"
    block_layout = "256 x 2 bits, half d"
    feedback = "even"
    fast = False  # and for models that were trained so: a search for a budget need not try it
    grid = TernaryGrid()

    @property
    def code_count(self) -> int:
        """Three, in two bits."""
        return 3

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate([pair_runs(codes), half_bytes(scales["d"])], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, 64:66])
        return from_pair_runs(data[:, :64]), scales
