"""Q2_K: 2-bit codes, sub-blocks of 16 with 4-bit scales and minima, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.k_layout import from_pair_runs, pair_runs
from kvant.packing.search import AffineGrid
from kvant.packing.spec import Bytes, Codes, Packing, Scales, SubScales, empty_scales

__all__ = ["Q2_K"]


class Q2_K(Packing):
    """w = (d sub) q - dmin submin, q in 0..3."""

    name = "Q2_K"
    bits = 2
    good_for = "extreme limits and research: when nothing larger fits"
    block_layout = "16 x (4-bit scale, 4-bit minimum), 256 x 2 bits, half d, half dmin"
    feedback = "even"
    sub_scales = (SubScales("sub", 16, 0, 15), SubScales("submin", 16, 0, 15))
    grid = AffineGrid(
        n=16,
        levels=3,
        scale_max=15,
        refits=2,
        widths=(1.4, 1.7, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.7),
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        sub = scales["sub"].astype(np.uint8) | scales["submin"] << 4
        return np.concatenate(
            [sub, pair_runs(codes), half_bytes(scales["d"]), half_bytes(scales["dmin"])], 1
        )

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["sub"], scales["submin"] = data[:, :16] & 15, data[:, :16] >> 4
        scales["d"], scales["dmin"] = half_values(data[:, 80:82]), half_values(data[:, 82:84])
        return from_pair_runs(data[:, 16:80]), scales
