"""Q4_K: 4-bit codes, sub-blocks of 32 with 6-bit scales and minima, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.k_layout import (
    from_nibble_runs,
    nibble_runs,
    read_scales_and_minima,
    scales_and_minima,
)
from kvant.packing.search import AffineGrid
from kvant.packing.spec import Bytes, Codes, Packing, Scales, SubScales, empty_scales

__all__ = ["Q4_K"]


class Q4_K(Packing):
    """w = (d sub) q - dmin submin, q in 0..15."""

    name = "Q4_K"
    bits = 4
    good_for = "phones and balance: most of the quality at under a third of 16 bits"
    block_layout = "half d, half dmin, 8 x (6-bit scale, 6-bit minimum), 256 nibbles"
    feedback = "even"
    sub_scales = (SubScales("sub", 32, 0, 63), SubScales("submin", 32, 0, 63))
    grid = AffineGrid(
        n=32,
        levels=15,
        scale_max=63,
        refits=1,
        widths=(13.8, 14.1, 14.4, 14.7, 15.0, 15.3, 15.6, 15.9, 16.2, 16.6),
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate(
            [
                half_bytes(scales["d"]),
                half_bytes(scales["dmin"]),
                scales_and_minima(scales),
                nibble_runs(codes),
            ],
            1,
        )

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"], scales["dmin"] = half_values(data[:, :2]), half_values(data[:, 2:4])
        read_scales_and_minima(data[:, 4:16], scales)
        return from_nibble_runs(data[:, 16:]), scales
