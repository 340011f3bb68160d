"""MXFP4: 4-bit floats with one power of two per 32 weights (OCP Microscaling Formats 1.0)."""

from __future__ import annotations

import numpy as np

from kvant.packing.book import FP4
from kvant.packing.plain import from_nibbles, nibbles
from kvant.packing.search import reciprocal_or_zero
from kvant.packing.spec import Bytes, Codes, Floats, Packing, Scales, empty_scales

__all__ = ["MXFP4"]

_TRIED = (0, 1, -1, -2)
"""Exponents tried, counted from the one that puts the largest weight at a level of 8 to 16."""


def _power(e: Codes) -> Floats:
    """2^(e - 128) as float32, exact down to the least."""
    wide = e.astype(np.uint32)
    small = np.uint32(0x00200000) << (wide & np.uint32(1))
    return np.where(wide < 2, small, (wide - np.uint32(1)) << np.uint32(23)).view(np.float32)


def _exponent(d: Floats) -> Codes:
    bits = np.ascontiguousarray(d, np.float32).view(np.uint32)
    small = bits >= np.uint32(0x00400000)
    return np.where(bits < np.uint32(0x00800000), small, (bits >> np.uint32(23)) + 1).astype(
        np.uint8
    )


class MXFP4(Packing):
    """w = 2^(e - 128) level[q], levels being twice a 4-bit float's values; d is that power."""

    name = "MXFP4"
    bits = 4
    good_for = "experts of models published in this format"
    block_layout = "exponent byte, 32 nibbles"
    feedback = "listed"
    refits = False
    fast = False  # IQ4_XS leaves less error in as many bytes: a search for a budget need not try it
    levels = FP4.levels

    def fit(self, x: Floats, importance: Floats | None = None) -> Scales:
        top = np.abs(x).max(1).astype(np.float32).view(np.uint32) >> np.uint32(23)
        first = top.astype(np.int32) - 2
        scales = empty_scales(len(x))
        best = np.full(len(x), -1, np.float32)
        for delta in _TRIED:
            d = _power(np.clip(first + delta, 0, 254))
            gain = self._gain(x, importance, d)
            better = gain > best
            best, scales["d"] = np.where(better, gain, best), np.where(better, d, scales["d"])
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
        return FP4.codes(x * reciprocal_or_zero(scales["d"])[:, None])

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        return scales["d"][:, None] * FP4.values[codes]

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate([_exponent(scales["d"])[:, None], nibbles(codes)], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = _power(data[:, 0])
        return from_nibbles(data[:, 1:]), scales
