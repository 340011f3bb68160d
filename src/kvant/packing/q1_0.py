"""Q1_0: signs, with one scale per 128 weights."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values, to_half
from kvant.packing.spec import Bytes, Codes, Floats, Packing, Scales, empty_scales

__all__ = ["Q1_0"]


class Q1_0(Packing):
    """w = d (2 q - 1), q a bit. The best scale is the mean magnitude, whatever the weights are."""

    name = "Q1_0"
    bits = 1
    good_for = "models trained with two values a weight; the least there is"
    block_layout = "half d, 128 bits"
    feedback = "even"
    fast = False  # and for models that were trained so: a search for a budget need not try it

    def fit(self, x: Floats, importance: Floats | None = None) -> Scales:
        size = np.abs(x)
        total, weight = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
        for i in range(self.block):
            if importance is None:
                total, weight = total + size[:, i], weight + np.float32(1)
            else:
                total = total + importance[:, i] * size[:, i]
                weight = weight + importance[:, i]
        some = weight > 0
        scales = empty_scales(len(x))
        mean = total / np.where(some, weight, np.float32(1))
        scales["d"] = to_half(np.where(some & (mean < np.float32(np.inf)), mean, np.float32(0)))
        return scales

    def encode(self, x: Floats, scales: Scales) -> Codes:
        return ((x >= 0) == (scales["d"] >= 0)[:, None]).astype(np.uint8)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        return (2 * codes.astype(np.int32) - 1).astype(np.float32) * scales["d"][:, None]

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        bits = np.packbits(codes, axis=1, bitorder="little")
        return np.concatenate([half_bytes(scales["d"]), bits], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, :2])
        return np.unpackbits(data[:, 2:], axis=1, bitorder="little"), scales
