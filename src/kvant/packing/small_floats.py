"""Floats of 4 and 8 bits (OCP Microscaling Formats 1.0): their values, and the nearest of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "E2M1",
    "E4M3",
    "E8M0",
    "nearest_e2m1",
    "nearest_e4m3",
    "nearest_e8m0",
    "nearest_of",
    "power_above",
]

Floats = npt.NDArray[Any]
Codes = npt.NDArray[Any]


def _e4m3() -> npt.NDArray[np.float32]:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    )
    values = (np.where(code & 128, -1.0, 1.0) * size).astype(np.float32)
    values[(code & 127) == 127] = np.nan
    return values


def _e8m0() -> npt.NDArray[np.float32]:
    values = np.full(256, np.nan, np.float32)
    values[:255] = np.ldexp(np.float32(1), np.arange(255) - 127)
    return values


E2M1: npt.NDArray[np.float32] = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32
)
"""The 16 values of FP4."""

E4M3 = _e4m3()
"""The 256 values of F8_E4M3: 4 bits of exponent, no infinity, NaN at all ones."""

E8M0 = _e8m0()
"""The 256 values of F8_E8M0: powers of two, NaN at all ones."""

_E2M1_BOUNDS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)


def nearest_e2m1(x: Floats) -> Codes:
    """Codes of the nearest FP4 values, of two the one nearer zero, as MLX takes them: uint8 of
    ``x``'s shape. Zero is positive, and what is beyond 6 becomes 6."""
    code = np.searchsorted(_E2M1_BOUNDS, np.abs(x), "left").astype(np.uint8)
    result: Codes = np.where((code > 0) & (x < 0), code | 8, code).astype(np.uint8)
    return result


def nearest_e4m3(x: Floats) -> Codes:
    """Codes of the nearest F8_E4M3 values, ties to even codes, cut at 448: uint8."""
    size = np.minimum(np.abs(np.asarray(x, np.float32)), np.float32(448))
    exponent = np.where(size > 0, np.maximum(np.frexp(size)[1] - 1, -6), -6)
    step = np.ldexp(np.float32(1), exponent - 3)
    units = np.rint(size / step).astype(np.int32)  # 8 to 16, below that subnormal
    code = np.where(units == 16, (exponent + 8) << 3, ((exponent + 6) << 3) + units)
    result: Codes = (code | (np.signbit(x).astype(np.int32) << 7)).astype(np.uint8)
    return result


def nearest_e8m0(x: Floats) -> Floats:
    """The power of two nearest to ``x`` (by ratio's error of the scaled weights), float32."""
    size = np.maximum(np.abs(np.asarray(x, np.float32)), np.float32(2.0**-126))
    exponent = np.clip(np.rint(np.log2(size)), -127, 127).astype(np.int32)
    return np.ldexp(np.float32(1), exponent)


def power_above(x: Floats) -> Floats:
    """The least power of two that is not below ``x``, float32; the least there is for zero."""
    fraction, exponent = np.frexp(np.maximum(np.asarray(x, np.float32), np.float32(2.0**-126)))
    whole = np.clip(exponent - (fraction == 0.5), -127, 127)
    return np.ldexp(np.float32(1), whole)


def nearest_of(levels: str, x: Floats) -> Codes:
    """Codes of the nearest values of ``"E2M1"`` or ``"E4M3"``."""
    return nearest_e2m1(x) if levels == "E2M1" else nearest_e4m3(x)
