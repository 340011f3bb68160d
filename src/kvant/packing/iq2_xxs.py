"""IQ2_XXS: eight weights a point of 256, an even number of minus signs, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.lattice import TERNARY, LatticeGrid
from kvant.packing.lattice_layout import (
    LatticePacking,
    from_words,
    words_of,
    add_signs,
    codes_of_points,
    sign_bytes,
)
from kvant.packing.spec import Bytes, Codes, Scales, empty_scales

__all__ = ["IQ2_XXS"]


class IQ2_XXS(LatticePacking):
    """w = (d / 8 sub) level with its sign; levels 8, 25, 43, sub 1, 3, ... 31 for 32 weights."""

    name = "IQ2_XXS"
    bits = 3
    good_for = "two bits, the smallest; needs importance"
    block_layout = "half d, 8 x (4 x 8-bit point, 4 x 7 signs, 4-bit scale)"
    grid = LatticeGrid(
        table="IQ2_XXS",
        group=8,
        sub=32,
        levels=TERNARY,
        unit=0.125,
        steps=15,
        signs="even",
        widths=(0.029, 0.034, 0.039, 0.045, 0.052, 0.06),
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        number = self.grid.numbers(codes.reshape(-1, 8)).astype(np.uint8).reshape(-1, 8, 4)
        words = words_of(sign_bytes(codes, 2), scales).reshape(-1, 8, 4)
        both = np.concatenate([number, words], 2).reshape(-1, 64)
        return np.concatenate([half_bytes(scales["d"]), both], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, :2])
        both = data[:, 2:].reshape(-1, 8, 8)
        signs = from_words(both[:, :, 4:].reshape(-1, 32), scales)
        codes = codes_of_points(self.grid, both[:, :, :4].reshape(-1, 32).astype(np.int64))
        return add_signs(codes, signs, 2), scales
