"""TQ1_0: ternary codes, five to a byte, with one scale per 256 weights."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.spec import Bytes, Codes, Packing, Scales, empty_scales
from kvant.packing.ternary import TernaryGrid

__all__ = ["TQ1_0"]

_RUNS = ((32, 5), (16, 5), (4, 4))
"""Bytes that lie together, and codes in each: code n of byte m is the run's code n x bytes + m."""

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


class TQ1_0(Packing):
    """w = d (q - 1), q in 0..2.

    The codes of a byte are the digits after the point of byte / 256 in base three, so that each
    comes out by a multiplication: bytes are rounded up.
    """

    name = "TQ1_0"
    bits = 2
    good_for = "models trained with three values a weight; the smallest"
    block_layout = "240 codes five to a byte, 16 four to a byte, half d"
    feedback = "even"
    fast = False  # and for models that were trained so: a search for a budget need not try it
    grid = TernaryGrid()

    @property
    def code_count(self) -> int:
        """Three, in two bits."""
        return 3

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        parts, at = [], 0
        for width, digits in _RUNS:
            run = codes[:, at : at + width * digits].reshape(-1, digits, width).astype(np.uint16)
            weights = np.uint16(81) // _POWERS[:digits].astype(np.uint16)
            value = (run * weights[None, :, None]).sum(1, dtype=np.uint16)
            parts.append(((value * np.uint32(256) + 242) // 243).astype(np.uint8))
            at += width * digits
        return np.concatenate([*parts, half_bytes(scales["d"])], 1)

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, 52:54])
        parts, at = [], 0
        for width, digits in _RUNS:
            rest = data[:, None, at : at + width] * _POWERS[None, :digits, None]  # modulo 256
            digit = (rest.astype(np.uint16) * 3 >> 8).astype(np.uint8)
            parts.append(digit.reshape(-1, digits * width))
            at += width
        return np.concatenate(parts, 1), scales
