"""Codes of a few bits in a stream of bytes, lowest bits first: how most formats lay them out.

`files.raw.unpacked` reads it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant import _core

__all__ = ["packed_bits"]


def packed_bits(codes: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Each row of ``codes`` as a stream.

    Args:
        codes: uint8 [rows, n], below 2^bits; n times bits is a multiple of 8.
        bits: 1 to 8.

    Returns:
        uint8 [rows, n bits / 8].
    """
    out = np.empty((len(codes), codes.shape[1] * bits // 8), np.uint8)
    if codes.shape[1] % 8 == 0:
        _core.pack_bits(np.ascontiguousarray(codes), bits, out)
        return out
    single = codes[:, :, None] >> np.arange(bits, dtype=np.uint8) & np.uint8(1)
    return np.packbits(single.reshape(len(codes), -1), axis=1, bitorder="little")
