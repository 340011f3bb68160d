"""IQ4_XS: 4-bit codes of uneven levels, sub-blocks of 32 with signed 6-bit scales, 256 a block."""

from __future__ import annotations

import numpy as np

from kvant.packing.book import IQ4, BookGrid
from kvant.packing.half import half_bytes, half_values
from kvant.packing.iq4_nl import WIDTHS
from kvant.packing.plain import from_nibbles, nibbles
from kvant.packing.spec import Bytes, Codes, Packing, Scales, SubScales, empty_scales

__all__ = ["IQ4_XS"]

_HIGH = np.arange(0, 16, 2, dtype=np.uint16)
"""Where the top two bits of each scale lie in their 16-bit word."""


class IQ4_XS(Packing):
    """w = (d sub) level[q], q in 0..15; sub in -32..31."""

    name = "IQ4_XS"
    bits = 4
    good_for = "nearly Q4_K's quality in less; the smallest good 4 bits"
    block_layout = "half d, 8 x 6-bit scale, 256 nibbles"
    feedback = "listed"
    sub_scales = (SubScales("sub", 32, -32, 31),)
    grid = BookGrid(0, 32, settled=True, refits=1, widths=WIDTHS, n=32, book=IQ4)
    levels = IQ4.levels

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        v = (scales["sub"][:, :8].astype(np.int32) + 32).astype(np.uint16)
        high = ((v >> 4) << _HIGH).sum(1).astype("<u2").view(np.uint8).reshape(-1, 2)
        low = ((v[:, 0::2] & 15) | (v[:, 1::2] & 15) << 4).astype(np.uint8)
        runs = nibbles(codes.reshape(-1, 32)).reshape(-1, 128)
        return np.concatenate([half_bytes(scales["d"]), high, low, runs], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, :2])
        high = np.ascontiguousarray(data[:, 2:4]).view("<u2") >> _HIGH & 3
        low = np.stack([data[:, 4:8] & 15, data[:, 4:8] >> 4], 2).reshape(-1, 8)
        scales["sub"][:, :8] = (low | high << 4).astype(np.int32) - 32
        return from_nibbles(data[:, 8:].reshape(-1, 16)).reshape(-1, 256), scales
