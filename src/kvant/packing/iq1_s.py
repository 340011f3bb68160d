"""IQ1_S: eight weights a point of 2048, a shift for 32 weights, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.lattice import LatticeGrid
from kvant.packing.lattice_layout import (
    LatticePacking,
    codes_of_points,
)
from kvant.packing.spec import Bytes, Codes, Scales, empty_scales

__all__ = ["IQ1_S"]


class IQ1_S(LatticePacking):
    """w = (d / 8 sub) (8 t + shift), t in -1, 0, 1, shift 1 or -1, sub 1, 3, ... 15 for 32 weights."""

    name = "IQ1_S"
    bits = 2
    good_for = "research: one and a half bits; needs importance"
    block_layout = "half d, 32 x 8 bits of point, 8 x (4 x 3 bits of point, 3-bit scale, shift)"
    grid = LatticeGrid(
        table="IQ1_S",
        group=8,
        sub=32,
        levels=(-8.0, 0.0, 8.0),
        unit=0.125,
        steps=7,
        signs="none",
        widths=(0.08, 0.095, 0.11, 0.125, 0.14, 0.155, 0.175, 0.20),
        shifted="sub-blocks",
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        number = self.grid.numbers(codes.reshape(-1, 8)).reshape(-1, 8, 4)
        words = (number >> 8 << np.array([0, 3, 6, 9])).sum(2)
        words |= (scales["sub"][:, :8].astype(np.int64) - 1 >> 1 & 7) << 12
        words |= (scales["submin"][:, :8] != 0).astype(np.int64) << 15
        low = (number & 255).astype(np.uint8).reshape(-1, 32)
        stored = words.astype("<u2").view(np.uint8).reshape(-1, 16)
        return np.concatenate([half_bytes(scales["d"]), low, stored], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, :2])
        words = np.ascontiguousarray(data[:, 34:50]).view("<u2").astype(np.int64)
        scales["sub"][:, :8] = 2 * (words >> 12 & 7) + 1
        scales["submin"][:, :8] = words >> 15
        high = words[:, :, None] >> np.array([0, 3, 6, 9]) & 7
        return codes_of_points(self.grid, data[:, 2:34] | high.reshape(-1, 32) << 8), scales
