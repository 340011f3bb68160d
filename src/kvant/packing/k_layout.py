"""Bit layouts shared by the K-packings. Codes are uint8 [blocks, 256]."""

from __future__ import annotations

import numpy as np

from kvant.packing.spec import Bytes, Codes, Scales

__all__ = [
    "bit_planes",
    "from_bit_planes",
    "from_nibble_runs",
    "from_pair_runs",
    "nibble_runs",
    "pair_runs",
    "read_scales_and_minima",
    "scales_and_minima",
]


def nibble_runs(codes: Codes) -> Bytes:
    """Low nibbles in 128 bytes: each run of 64 codes fills 32 bytes, its first half below."""
    c = (codes & 15).reshape(-1, 4, 2, 32)
    return (c[:, :, 0] | (c[:, :, 1] << 4)).reshape(-1, 128)


def from_nibble_runs(data: Bytes) -> Codes:
    """[n, 128] bytes -> [n, 256] codes of 4 bits."""
    b = data.reshape(-1, 4, 1, 32)
    return np.concatenate([b & 15, b >> 4], 2).reshape(-1, 256)


def pair_runs(codes: Codes) -> Bytes:
    """Low two bits in 64 bytes: a run of 128 codes fills 32 bytes, quarter q at bits 2 q."""
    c = (codes & 3).reshape(-1, 2, 4, 32)
    return (c[:, :, 0] | c[:, :, 1] << 2 | c[:, :, 2] << 4 | c[:, :, 3] << 6).reshape(-1, 64)


def from_pair_runs(data: Bytes) -> Codes:
    """[n, 64] bytes -> [n, 256] codes of 2 bits."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((data.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256)


def bit_planes(codes: Codes, shift: int) -> Bytes:
    """Bit ``shift`` of each code in 32 bytes: bit r of byte i belongs to code 32 r + i."""
    bits = (codes >> shift & 1).reshape(-1, 8, 32)
    return np.packbits(bits, axis=1, bitorder="little").reshape(-1, 32)


def from_bit_planes(data: Bytes, shift: int) -> Codes:
    """[n, 32] bytes -> [n, 256] with the plane's bit at ``shift``."""
    bits = np.unpackbits(data.reshape(-1, 1, 32), axis=1, bitorder="little")
    return (bits << shift).reshape(-1, 256)


def scales_and_minima(scales: Scales) -> Bytes:
    """Eight 6-bit scales and minima in 12 bytes.

    Bytes 0-3 hold scales 0-3 and in their top two bits the high bits of scales 4-7; bytes 4-7 the
    same of the minima; bytes 8-11 the low nibbles of scales 4-7 and, above, of minima 4-7.
    """
    s = scales["sub"][:, :8].astype(np.uint8)
    m = scales["submin"][:, :8]
    return np.concatenate(
        [
            s[:, :4] | s[:, 4:] >> 4 << 6,
            m[:, :4] | m[:, 4:] >> 4 << 6,
            (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4,
        ],
        1,
    )


def read_scales_and_minima(data: Bytes, scales: Scales) -> None:
    """Fill ``sub`` and ``submin`` of ``scales`` from [n, 12] bytes."""
    a, b, c = data[:, :4], data[:, 4:8], data[:, 8:]
    scales["sub"][:, :4] = a & 63
    scales["sub"][:, 4:8] = (c & 15) | a >> 6 << 4
    scales["submin"][:, :4] = b & 63
    scales["submin"][:, 4:8] = c >> 4 | b >> 6 << 4
