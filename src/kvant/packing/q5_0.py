"""Q5_0: signed 5-bit codes with one scale per 32 weights."""

from __future__ import annotations

import numpy as np

from kvant.packing.plain import (
    PlainSymmetricGrid,
    fifth_bits,
    from_nibbles,
    halves,
    nibbles,
    read_halves,
    with_fifth_bits,
)
from kvant.packing.spec import Bytes, Codes, Packing, Scales

__all__ = ["Q5_0"]


class Q5_0(Packing):
    """w = d (q - 16), q in 0..31."""

    name = "Q5_0"
    bits = 5
    good_for = "fallback of Q4_K where rows are not a multiple of 256"
    block_layout = "half d, 32 fifth bits, 32 nibbles"
    feedback = "even"
    searches = False
    grid = PlainSymmetricGrid(half=16)

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate([*halves(scales, "d"), fifth_bits(codes), nibbles(codes)], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        codes = with_fifth_bits(from_nibbles(data[:, 6:]), data[:, 2:6])
        return codes, read_halves(data, "d")
