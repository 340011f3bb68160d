"""Q8_0: signed 8-bit codes with one scale per 32 weights."""

from __future__ import annotations

import numpy as np

from kvant.packing.plain import halves, read_halves, scaled
from kvant.packing.spec import Bytes, Codes, Floats, Packing, Scales, empty_scales

__all__ = ["Q8_0"]


class Q8_0(Packing):
    """w = d q, q in -127..127. Codes are the bytes of the signed values."""

    name = "Q8_0"
    bits = 8
    good_for = "near the original; the reference to compare smaller levels with"
    block_layout = "half d, 32 signed bytes"
    searches = False

    def fit(self, x: Floats, importance: Floats | None = None) -> Scales:
        scales = empty_scales(len(x))
        scales["d"] = np.abs(x).max(1) / np.float32(127)
        return scales

    def encode(self, x: Floats, scales: Scales) -> Codes:
        t = np.clip(scaled(x, scales["d"]), -127, 127)
        whole = np.trunc(t)
        rest = t - whole  # exact, so that halves round away from zero without a second rounding
        q = whole + (rest >= 0.5) - (rest <= -0.5)
        return q.astype(np.int8).view(np.uint8)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        d = scales["d"].astype(np.float16).astype(np.float32)
        return codes.view(np.int8).astype(np.float32) * d[:, None]

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return np.concatenate([*halves(scales, "d"), codes], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        return data[:, 2:].copy(), read_halves(data, "d")
