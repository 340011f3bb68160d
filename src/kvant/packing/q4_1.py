"""Q4_1: 4-bit codes with one scale and one minimum per 32 weights."""

from __future__ import annotations

import numpy as np

from kvant.packing.plain import (
    PlainAffineGrid,
    from_nibbles,
    halves,
    nibbles,
    read_halves,
)
from kvant.packing.spec import Bytes, Codes, Packing, Scales

__all__ = ["Q4_1"]


class Q4_1(Packing):
    """w = d q + m, q in 0..15."""

    name = "Q4_1"
    bits = 4
    good_for = "4 bits for weights that are not centred on zero; rows of 32"
    block_layout = "half d, half m, 32 nibbles"
    feedback = "even"
    searches = False
    grid = PlainAffineGrid(levels=15)

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate([*halves(scales, "d", "dmin"), nibbles(codes)], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        return from_nibbles(data[:, 4:]), read_halves(data, "d", "dmin")
