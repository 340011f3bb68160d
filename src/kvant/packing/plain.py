"""What the 32-weight packings share: the plain formulas of ggml's reference quantisers.

Byte for byte: the scale is kept as the float32 quotient while codes are computed with it, and
rounded to half precision only when it is written (and when it is used to decode).
Importance is not used: the formula fixes the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.spec import Bytes, Codes, Floats, Scales, empty_scales

__all__ = [
    "PlainAffineGrid",
    "PlainSymmetricGrid",
    "fifth_bits",
    "from_nibbles",
    "halves",
    "nibbles",
    "read_halves",
    "scaled",
    "signed_max",
    "with_fifth_bits",
]

_ONE, _ZERO = np.float32(1), np.float32(0)


def inverse_or_zero(d: Floats) -> Floats:
    """1 / d, and 0 for 0; infinite where d is too small to invert (see `scaled`)."""
    with np.errstate(over="ignore"):
        return np.where(d != 0, _ONE / np.where(d != 0, d, _ONE), _ZERO)


def scaled(x: Floats, d: Floats, offset: float = 0.0) -> Floats:
    """x (1 / d) + offset; zeros in blocks without codes.

    The reciprocal overflows for a scale so small that the file holds it as zero: every code
    decodes alike then, and zeros are what ggml writes on x86.
    """
    inverse = inverse_or_zero(d)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):  # under scales that are not the block's own
        return np.where(np.isfinite(inverse), x * inverse + np.float32(offset), _ZERO)


def signed_max(x: Floats) -> Floats:
    """Per row the value of largest magnitude, sign kept; of equals the first; zero is positive."""
    return _first(x, np.abs(x).argmax(1)) + _ZERO


def _first(x: Floats, index: Floats) -> Floats:
    return np.take_along_axis(x, index[:, None], 1)[:, 0]


@dataclass(frozen=True)
class PlainSymmetricGrid:
    """w = d (code - half), codes in 0..2 half - 1: Q4_0, Q5_0."""

    half: int

    def fit(self, x: Floats, importance: Floats | None) -> Scales:
        """d = (value of largest magnitude) / -half, so that it becomes code 0."""
        scales = empty_scales(len(x))
        scales["d"] = signed_max(x) / np.float32(-self.half)
        return scales

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """trunc(x / d + half + 0.5), at most 2 half - 1."""
        t = scaled(x, scales["d"], self.half + 0.5)
        return np.clip(np.trunc(t), 0, 2 * self.half - 1).astype(np.uint8)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """(code - half) d."""
        d = scales["d"].astype(np.float16).astype(np.float32)
        return (codes.astype(np.int32) - self.half).astype(np.float32) * d[:, None]


@dataclass(frozen=True)
class PlainAffineGrid:
    """w = d code + m, codes in 0..levels: Q4_1, Q5_1."""

    levels: int

    def fit(self, x: Floats, importance: Floats | None) -> Scales:
        """d = (max - min) / levels; ``dmin`` is the minimum, of zeros of both signs the first."""
        scales = empty_scales(len(x))
        lo = _first(x, x.argmin(1))
        scales["d"] = (_first(x, x.argmax(1)) - lo) / np.float32(self.levels)
        scales["dmin"] = lo
        return scales

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """trunc((x - min) / d + 0.5), at most ``levels``."""
        t = scaled(x - scales["dmin"][:, None], scales["d"], 0.5)
        return np.clip(np.trunc(t), 0, self.levels).astype(np.uint8)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """Code d + min."""
        d = scales["d"].astype(np.float16).astype(np.float32)
        m = scales["dmin"].astype(np.float16).astype(np.float32)
        return codes.astype(np.float32) * d[:, None] + m[:, None]


def nibbles(codes: Codes) -> Bytes:
    """[n, 32] codes -> [n, 16] bytes: the first half in the low nibbles."""
    return (codes[:, :16] & 15) | ((codes[:, 16:] & 15) << 4)


def from_nibbles(data: Bytes) -> Codes:
    """[n, 16] bytes -> [n, 32] codes."""
    return np.concatenate([data & 15, data >> 4], 1)


def fifth_bits(codes: Codes) -> Bytes:
    """[n, 32] codes -> [n, 4] bytes: bit 4 of code i at bit i."""
    return np.packbits((codes >> 4) & 1, axis=1, bitorder="little")


def with_fifth_bits(codes: Codes, data: Bytes) -> Codes:
    """Add [n, 4] bytes of fifth bits to [n, 32] codes."""
    return codes | (np.unpackbits(data, axis=1, bitorder="little") << 4)


def halves(scales: Scales, *fields: str) -> list[Bytes]:
    """Header fields as bytes of half precision."""
    return [half_bytes(scales[f]) for f in fields]


def read_halves(data: Bytes, *fields: str) -> Scales:
    """Scales whose ``fields`` lie as half precision at the start of each block."""
    scales = empty_scales(len(data))
    for i, f in enumerate(fields):
        scales[f] = half_values(data[:, 2 * i : 2 * i + 2])
    return scales
