"""Codes of a few bits in a stream of bytes, lowest bits first: how most formats lay them out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["packed_bits"]


def packed_bits(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Each row of ``codes`` as a stream.

    Args:
        codes: uint8 [rows, n], below 2^bits; n times bits is a multiple of 8.
        bits: 1 to 8.

    Returns:
        uint8 [rows, n bits / 8].
    """
    rows, count = codes.shape
    if bits == 8:
        return np.ascontiguousarray(codes, np.uint8)
    if 8 % bits == 0:
        each = 8 // bits
        parts = codes.reshape(rows, count // each, each)
        out = np.zeros(parts.shape[:2], np.uint8)
        for i in range(each):
            out |= parts[:, :, i] << np.uint8(i * bits)
        return out
    single = codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & np.uint8(1)
    return np.packbits(single.reshape(rows, count * bits), axis=1, bitorder="little")
