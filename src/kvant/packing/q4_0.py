"""Q4_0: signed 4-bit codes with one scale per 32 weights."""

from __future__ import annotations

import numpy as np

from kvant.packing.plain import (
    PlainSymmetricGrid,
    from_nibbles,
    halves,
    nibbles,
    read_halves,
)
from kvant.packing.spec import Bytes, Codes, Packing, Scales

__all__ = ["Q4_0"]


class Q4_0(Packing):
    """w = d (q - 8), q in 0..15."""

    name = "Q4_0"
    bits = 4
    good_for = "the simplest 4 bits; runtimes with only basic kernels; rows of 32"
    block_layout = "half d, 32 nibbles"
    feedback = "even"
    searches = False
    grid = PlainSymmetricGrid(half=8)

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate([*halves(scales, "d"), nibbles(codes)], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        return from_nibbles(data[:, 2:]), read_halves(data, "d")
