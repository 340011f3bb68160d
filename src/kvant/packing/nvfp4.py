"""NVFP4: 4-bit floats with an 8-bit float for every 16 weights, as ggml lays it out.

NVIDIA's format has one float32 for a whole tensor besides; where a file has one, it is a tensor of
its own. The 8-bit float is E4M3 without a sign.
"""

from __future__ import annotations

import numpy as np

from kvant.packing.book import FP4
from kvant.packing.search import reciprocal_or_zero
from kvant.packing.spec import Bytes, Codes, Floats, Packing, Scales, empty_scales

__all__ = ["NVFP4"]

_SUB = 16
_TRIED = (1, 0, 2, -1, 3, -2, 4, 5)
"""Scale codes tried, counted from the one at or below that which puts the largest weight at the
largest level."""


def _scale(code: Codes) -> Floats:
    """What scale bytes stand for, for levels of twice the floats' values: float32."""
    c = code.astype(np.uint32) & np.uint32(127)
    small = c.astype(np.float32) * np.float32(2.0**-10)
    large = ((c << np.uint32(20)) + np.uint32(119 << 23)).view(np.float32)
    return np.where(code == 127, np.float32(0), np.where(c < 8, small, large))


class NVFP4(Packing):
    """w = e4m3(submin) level[q], levels being twice a 4-bit float's values; d is one."""

    name = "NVFP4"
    bits = 4
    good_for = "models published in this format, for NVIDIA's Blackwell"
    block_layout = "4 x e4m3, 4 x 16 nibbles"
    feedback = "listed"
    refits = False
    fast = False  # IQ4_NL leaves less error in as many bytes
    levels = FP4.levels

    def fit(self, x: Floats, importance: Floats | None = None) -> Scales:
        sub = x.reshape(-1, _SUB)
        weight = None if importance is None else importance.reshape(-1, _SUB)
        top = np.abs(sub).max(1).astype(np.float32) * np.float32(1 / 12)
        bits = top.view(np.uint32) >> np.uint32(20)
        small = np.rint(np.minimum(top, np.float32(1)) * np.float32(1024)).astype(np.int32)
        first = np.where(top < np.float32(2.0**-7), small, bits.astype(np.int32) - 119 * 8)
        first = np.clip(first, 0, 126)
        best, code = np.zeros(len(sub), np.float32), np.zeros(len(sub), np.uint8)
        for delta in _TRIED:
            tried = np.clip(first + delta, 0, 126).astype(np.uint8)
            gain = self._gain(sub, weight, _scale(tried))
            better = gain > best
            best, code = np.where(better, gain, best), np.where(better, tried, code)
        scales = empty_scales(len(x))
        scales["d"] = 1
        scales["submin"][:, :4] = code.reshape(-1, 4)
        return scales

    def _gain(self, x: Floats, w: Floats | None, d: Floats) -> Floats:
        inverse = reciprocal_or_zero(d)
        qq, xq = np.zeros_like(d), np.zeros_like(d)
        for i, xi in enumerate(x.T):
            q = FP4.values[FP4.codes(xi * inverse)]
            wq = q if w is None else w[:, i] * q
            qq, xq = qq + wq * q, xq + wq * xi
        return d * (np.float32(2) * xq - d * qq)

    def encode(self, x: Floats, scales: Scales) -> Codes:
        inverse = reciprocal_or_zero(self._scales(scales))
        return FP4.codes(x * inverse)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        return self._scales(scales) * FP4.values[codes]

    def _scales(self, scales: Scales) -> Floats:
        return np.repeat(_scale(scales["submin"][:, :4]), _SUB, axis=1)

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        halves = codes.reshape(-1, 4, 2, 8)
        packed = halves[:, :, 0] | halves[:, :, 1] << 4
        return np.concatenate([scales["submin"][:, :4], packed.reshape(-1, 32)], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = 1
        scales["submin"][:, :4] = data[:, :4]
        packed = data[:, 4:].reshape(-1, 4, 8)
        codes = np.stack([packed & 15, packed >> 4], 2)
        return codes.reshape(-1, self.block), scales
