"""IQ2_S: eight weights a point of 1024, all signs stored, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.lattice import TERNARY, LatticeGrid
from kvant.packing.lattice_layout import (
    LatticePacking,
    add_signs,
    codes_of_points,
    from_nibbles,
    nibbles,
    sign_bytes,
)
from kvant.packing.spec import Bytes, Codes, Scales, empty_scales

__all__ = ["IQ2_S"]


class IQ2_S(LatticePacking):
    """w = (d / 8 sub) level with its sign; levels 8, 25, 43, sub 1, 3, ... 31 for 16 weights."""

    name = "IQ2_S"
    bits = 3
    good_for = "two and a half bits with importance"
    block_layout = "half d, 32 x 8 + 2 bits of point, 256 signs, 16 x 4-bit scale"
    grid = LatticeGrid(
        table="IQ2_S",
        group=8,
        sub=16,
        levels=TERNARY,
        unit=0.125,
        steps=15,
        signs="free",
        widths=(0.029, 0.034, 0.039, 0.045, 0.052, 0.06),
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        number = self.grid.numbers(codes.reshape(-1, 8)).reshape(-1, 8, 4)
        high = (number >> 8 << np.array([0, 2, 4, 6])).sum(2).astype(np.uint8)
        low = (number & 255).astype(np.uint8).reshape(-1, 32)
        return np.concatenate(
            [half_bytes(scales["d"]), low, sign_bytes(codes, 2), high, nibbles(scales, 16)], 1
        )

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, :2])
        from_nibbles(data[:, 74:82], scales, 16)
        high = data[:, 66:74, None].astype(np.int64) >> np.array([0, 2, 4, 6]) & 3
        codes = codes_of_points(self.grid, data[:, 2:34] | high.reshape(-1, 32) << 8)
        return add_signs(codes, data[:, 34:66], 2), scales
