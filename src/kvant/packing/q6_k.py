"""Q6_K: signed 6-bit codes, sub-blocks of 16 with signed 8-bit scales, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.search import SymmetricGrid
from kvant.packing.spec import Bytes, Codes, Packing, Scales, SubScales, empty_scales

__all__ = ["Q6_K"]


class Q6_K(Packing):
    """w = (d sub) (q - 32), q in 0..63; sub in -128..127."""

    name = "Q6_K"
    bits = 6
    good_for = "almost no loss; output and embedding tensors of smaller recipes"
    block_layout = "256 nibbles, 256 x 2 high bits, 16 x 8-bit scale, half d"
    feedback = "even"
    sub_scales = (SubScales("sub", 16, -128, 127),)
    grid = SymmetricGrid(
        half=32,
        scale_half=128,
        settled=False,
        refits=0,
        widths=(-32.35, -31.9, -31.0, -30.1, -29.05),
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        c = codes.reshape(-1, 2, 4, 32)
        low = (c[:, :, :2] & 15) | (c[:, :, 2:] & 15) << 4
        high = c[:, :, 0] >> 4 | c[:, :, 1] >> 4 << 2 | c[:, :, 2] >> 4 << 4 | c[:, :, 3] >> 4 << 6
        sub = scales["sub"].view(np.uint8)
        return np.concatenate(
            [low.reshape(-1, 128), high.reshape(-1, 64), sub, half_bytes(scales["d"])], 1
        )

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["sub"] = np.ascontiguousarray(data[:, 192:208]).view(np.int8)
        scales["d"] = half_values(data[:, 208:210])
        low = data[:, :128].reshape(-1, 2, 2, 32)
        shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        high = data[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
        return (np.concatenate([low & 15, low >> 4], 2) | high << 4).reshape(-1, 256), scales
