"""IQ2_XS: eight weights a point of 512, an even number of minus signs, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.lattice import TERNARY, LatticeGrid
from kvant.packing.lattice_layout import (
    LatticePacking,
    add_signs,
    codes_of_points,
    even_signs,
    from_nibbles,
    nibbles,
    sign_bytes,
)
from kvant.packing.spec import Bytes, Codes, Scales, empty_scales

__all__ = ["IQ2_XS"]


class IQ2_XS(LatticePacking):
    """w = (d / 8 sub) level with its sign; levels 8, 25, 43, sub 1, 3, ... 31 for 16 weights."""

    name = "IQ2_XS"
    bits = 3
    good_for = "two bits; needs importance"
    block_layout = "half d, 32 x (9-bit point, 7 signs), 16 x 4-bit scale"
    grid = LatticeGrid(
        table="IQ2_XS",
        group=8,
        sub=16,
        levels=TERNARY,
        unit=0.125,
        steps=15,
        signs="even",
        widths=(0.029, 0.034, 0.039, 0.045, 0.052, 0.06),
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        number = self.grid.numbers(codes.reshape(-1, 8)).reshape(-1, 32)
        words = number | (sign_bytes(codes, 2) & 127).astype(np.int64) << 9
        stored = words.astype("<u2").view(np.uint8).reshape(-1, 64)
        return np.concatenate([half_bytes(scales["d"]), stored, nibbles(scales, 16)], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, :2])
        from_nibbles(data[:, 66:74], scales, 16)
        words = np.ascontiguousarray(data[:, 2:66]).view("<u2").astype(np.int64)
        codes = codes_of_points(self.grid, words & 511)
        return add_signs(codes, even_signs(words >> 9), 2), scales
