"""IQ3_XXS: four weights a point of 256, signs even in eight weights, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.lattice import LatticeGrid
from kvant.packing.lattice_layout import (
    LatticePacking,
    from_words,
    words_of,
    add_signs,
    codes_of_points,
    sign_bytes,
)
from kvant.packing.spec import Bytes, Codes, Scales, empty_scales

__all__ = ["IQ3_XXS"]


class IQ3_XXS(LatticePacking):
    """w = (d / 4 sub) level with its sign; levels 4, 12, ... 52, 62, sub 1, 3, ... 31 for 32 weights."""

    name = "IQ3_XXS"
    bits = 4
    good_for = "three bits, the smaller choice; needs importance"
    block_layout = "half d, 64 x 8-bit point, 8 x (4 x 7 signs, 4-bit scale)"
    grid = LatticeGrid(
        table="IQ3_XXS",
        group=4,
        sub=32,
        levels=(4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0),
        unit=0.25,
        steps=15,
        signs="even",
        widths=(0.0235, 0.0285, 0.034, 0.041, 0.0495, 0.062),
        near=16,
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        number = self.grid.numbers(codes.reshape(-1, 4)).reshape(-1, 64)
        words = words_of(sign_bytes(codes, 3), scales)
        return np.concatenate([half_bytes(scales["d"]), number.astype(np.uint8), words], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, :2])
        signs = from_words(data[:, 66:98], scales)
        codes = codes_of_points(self.grid, data[:, 2:66].astype(np.int64))
        return add_signs(codes, signs, 3), scales
