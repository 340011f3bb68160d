"""Q3_K: signed 3-bit codes, sub-blocks of 16 with signed 6-bit scales, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.k_layout import bit_planes, from_bit_planes, from_pair_runs, pair_runs
from kvant.packing.search import SymmetricGrid
from kvant.packing.spec import Bytes, Codes, Packing, Scales, SubScales, empty_scales

__all__ = ["Q3_K"]


class Q3_K(Packing):
    """w = (d sub) (q - 4), q in 0..7; sub in -32..31."""

    name = "Q3_K"
    bits = 3
    good_for = "small devices that must give up some quality for size"
    block_layout = "256 third bits, 256 x 2 bits, 16 x 6-bit scale, half d"
    feedback = "even"
    sub_scales = (SubScales("sub", 16, -32, 31),)
    grid = SymmetricGrid(
        half=4,
        scale_half=32,
        settled=True,
        refits=1,
        widths=(
            -5.0,
            -4.6,
            -4.3,
            -4.0,
            -3.7,
            -3.4,
            -3.1,
            -2.8,
            -2.5,
            -2.2,
            2.2,
            2.5,
            2.8,
            3.1,
            3.4,
            3.7,
            4.0,
            4.3,
        ),
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        v = (scales["sub"].astype(np.int32) + 32).astype(np.uint8)
        high = (v >> 4).reshape(-1, 4, 4)
        packed = [
            (v[:, :8] & 15) | (v[:, 8:] & 15) << 4,
            high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6,
        ]
        return np.concatenate(
            [bit_planes(codes, 2), pair_runs(codes), *packed, half_bytes(scales["d"])], 1
        )

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, 108:110])
        low = np.concatenate([data[:, 96:104] & 15, data[:, 96:104] >> 4], 1)
        shifts = np.repeat(np.array([0, 2, 4, 6], np.uint8), 4)
        high = np.tile(data[:, 104:108], 4) >> shifts & 3
        scales["sub"] = (low | high << 4).astype(np.int32) - 32
        return from_pair_runs(data[:, 32:96]) | from_bit_planes(data[:, :32], 2), scales
