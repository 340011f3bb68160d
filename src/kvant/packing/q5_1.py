"""Q5_1: 5-bit codes with one scale and one minimum per 32 weights."""

from __future__ import annotations

import numpy as np

from kvant.packing.plain import (
    PlainAffineGrid,
    fifth_bits,
    from_nibbles,
    halves,
    nibbles,
    read_halves,
    with_fifth_bits,
)
from kvant.packing.spec import Bytes, Codes, Packing, Scales

__all__ = ["Q5_1"]


class Q5_1(Packing):
    """w = d q + m, q in 0..31."""

    name = "Q5_1"
    bits = 5
    good_for = "fallback of Q5_K where rows are not a multiple of 256"
    block_layout = "half d, half m, 32 fifth bits, 32 nibbles"
    feedback = "even"
    searches = False
    grid = PlainAffineGrid(levels=31)

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate([*halves(scales, "d", "dmin"), fifth_bits(codes), nibbles(codes)], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        codes = with_fifth_bits(from_nibbles(data[:, 8:]), data[:, 4:8])
        return codes, read_halves(data, "d", "dmin")
