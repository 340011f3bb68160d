"""Codes of a few bits in a stream of bytes, lowest bits first: how most formats lay them out.

`files.raw.unpacked` reads it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant import _core

__all__ = ["packed_bits"]


def packed_bits(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Each row of ``codes`` as a stream, filled up with zeros to whole bytes.

    Args:
        codes: uint8 [..., n], below 2^bits; a row lies along the last axis.
        bits: 1 to 8.

    Returns:
        uint8 [..., n bits / 8, rounded up].
    """
    *lead, count = codes.shape
    if count * bits % 8:
        codes = np.pad(codes, [(0, 0)] * len(lead) + [(0, -count % (8 // math.gcd(bits, 8)))])
    rows = codes.reshape(math.prod(lead), codes.shape[-1])
    out = np.empty((len(rows), rows.shape[1] * bits // 8), np.uint8)
    if rows.shape[1] % 8 == 0:
        _core.pack_bits(np.ascontiguousarray(rows), bits, out)
    else:
        single = rows[:, :, None] >> np.arange(bits, dtype=np.uint8) & np.uint8(1)
        out = np.packbits(single.reshape(len(rows), -1), axis=1, bitorder="little")
    return out.reshape(*lead, -1)[..., : -(-count * bits // 8)]
