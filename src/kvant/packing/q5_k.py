"""Q5_K: 5-bit codes, sub-blocks of 32 with 6-bit scales and minima, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.k_layout import (
    bit_planes,
    from_bit_planes,
    from_nibble_runs,
    nibble_runs,
    read_scales_and_minima,
    scales_and_minima,
)
from kvant.packing.search import AffineGrid
from kvant.packing.spec import Bytes, Codes, Packing, Scales, SubScales, empty_scales

__all__ = ["Q5_K"]


class Q5_K(Packing):
    """w = (d sub) q - dmin submin, q in 0..31."""

    name = "Q5_K"
    bits = 5
    good_for = "productivity: a loss that is hard to notice at a third of 16 bits"
    block_layout = (
        "half d, half dmin, 8 x (6-bit scale, 6-bit minimum), 256 fifth bits, 256 nibbles"
    )
    feedback = "even"
    sub_scales = (SubScales("sub", 32, 0, 63), SubScales("submin", 32, 0, 63))
    grid = AffineGrid(
        n=32,
        levels=31,
        scale_max=63,
        refits=1,
        widths=(29.4, 29.9, 30.3, 30.6, 30.9, 31.2, 31.5, 31.9, 32.4),
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate(
            [
                half_bytes(scales["d"]),
                half_bytes(scales["dmin"]),
                scales_and_minima(scales),
                bit_planes(codes, 4),
                nibble_runs(codes),
            ],
            1,
        )

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"], scales["dmin"] = half_values(data[:, :2]), half_values(data[:, 2:4])
        read_scales_and_minima(data[:, 4:16], scales)
        return from_nibble_runs(data[:, 48:]) | from_bit_planes(data[:, 16:48], 4), scales
