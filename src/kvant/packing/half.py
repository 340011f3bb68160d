"""Half precision and bfloat16 as files hold them, as NumPy float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvant.packing.spec import Bytes, Floats

__all__ = ["HALF_MAX", "bf16_to_float", "float_to_bf16", "half_bytes", "half_values", "to_half"]

HALF_MAX = np.float32(65504.0)
"""Largest magnitude half precision holds."""


def to_half(x: Floats) -> Floats:
    """Round to half precision (ties to even), cut at its largest value, as float32."""
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)


def half_bytes(x: Floats) -> Bytes:
    """[n] floats -> [n, 2] bytes of half precision."""
    return np.ascontiguousarray(x.astype("<f2")).view(np.uint8).reshape(-1, 2)


def half_values(data: Bytes) -> Floats:
    """[n, 2] bytes of half precision -> [n] floats."""
    return np.ascontiguousarray(data).view("<f2").reshape(-1).astype(np.float32)


def float_to_bf16(x: Floats) -> npt.NDArray[np.uint16]:
    """Round to bfloat16, ties to even; a NaN stays a NaN."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (u >> np.uint32(16)) | np.uint32(64), rounded).astype(np.uint16)


def bf16_to_float(b: npt.NDArray[np.uint16]) -> Floats:
    """bfloat16 bits as float32."""
    return (b.astype(np.uint32) << np.uint32(16)).view(np.float32)
