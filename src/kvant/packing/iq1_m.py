"""IQ1_M: eight weights a point of 2048 and a shift of their own, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.lattice import LatticeGrid
from kvant.packing.lattice_layout import (
    LatticePacking,
    codes_of_points,
)
from kvant.packing.spec import Bytes, Codes, Scales, empty_scales

__all__ = ["IQ1_M"]


class IQ1_M(LatticePacking):
    """w = (d / 8 sub) (8 t + shift), t in -1, 0, 1, shift 1 or -1, sub 1, 3, ... 15 for 16 weights."""

    name = "IQ1_M"
    bits = 3
    good_for = "research: one and three quarter bits; needs importance"
    block_layout = "32 x 8 bits of point, 32 x (3 bits of point, shift), 16 x 3-bit scale, half d in quarters"
    grid = LatticeGrid(
        table="IQ1_S",
        group=8,
        sub=16,
        levels=(-8.0, 0.0, 8.0),
        unit=0.125,
        steps=7,
        signs="none",
        widths=(0.08, 0.095, 0.11, 0.125, 0.14, 0.155, 0.175, 0.20),
        shifted="groups",
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        number = self.grid.numbers(codes.reshape(-1, 8)).reshape(-1, 32)
        high = number >> 8 | (codes.reshape(-1, 32, 8)[:, :, 0] >> 2).astype(np.int64) << 3
        half = half_bytes(scales["d"]).view("<u2").astype(np.int64)
        words = (half >> np.array([0, 4, 8, 12]) & 15) << 12
        steps = (scales["sub"].astype(np.int64) - 1 >> 1 & 7).reshape(-1, 4, 4)
        words |= (steps << np.array([0, 3, 6, 9])).sum(2)
        return np.concatenate(
            [
                (number & 255).astype(np.uint8),
                (high[:, 0::2] | high[:, 1::2] << 4).astype(np.uint8),
                words.astype("<u2").view(np.uint8).reshape(-1, 8),
            ],
            1,
        )

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        words = np.ascontiguousarray(data[:, 48:56]).view("<u2").astype(np.int64)
        half = (words >> 12 << np.array([0, 4, 8, 12])).sum(1)
        scales["d"] = half_values(half.astype("<u2").view(np.uint8).reshape(-1, 2))
        steps = words[:, :, None] >> np.array([0, 3, 6, 9]) & 7
        scales["sub"] = 2 * steps.reshape(-1, 16) + 1
        high = (data[:, 32:48, None].astype(np.int64) >> np.array([0, 4])).reshape(-1, 32)
        codes = codes_of_points(self.grid, data[:, :32] | (high & 7) << 8)
        return codes | np.repeat(high & 8, 8, 1).astype(np.uint8) >> 1, scales
