"""Rows of weights rounded to few bits in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Blocks", "Codes", "Floats", "quantise_rows"]

_SHRINK = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
_LARGEST, _LARGE = np.float32(3.4028e38), 1e35  # no code times a scale is more: it'd be infinite
_CHUNK = 1 << 18  # values at once: they and what is made of them stay in a cache

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of weights in blocks: value = (code - zero) * scale."""

    codes: Codes
    """[rows, blocks, block], from 0."""
    scales: Floats
    """[rows, blocks]"""
    zeros: Codes
    """[rows, blocks]"""

    def decoded(self, columns: int) -> Floats:
        """The weights as they will be, [rows, columns]."""
        values = (self.codes.astype(np.float32) - self.zeros[..., None]) * self.scales[..., None]
        return np.asarray(values.reshape(len(values), -1)[:, :columns], np.float32)


def quantise_rows(weights: Floats, bits: int, block: int, *, symmetric: bool) -> Blocks:
    """Round ``weights`` [rows, columns] to ``bits`` in blocks along a row.

    Each block's range, from its least to its largest weight and holding zero, is tried whole and
    shrunk in five steps (not at 8 bits, where it gains nothing); the best in squared error stays.
    Rows are padded with zeros.
    """
    rows, columns = weights.shape
    count = -(-columns // block)
    codes = np.empty((rows, count, block), np.uint8)
    scales, zeros = np.empty((rows, count), np.float32), np.empty((rows, count), np.uint8)
    step = max(1, _CHUNK // max(1, count * block))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        padded = np.zeros((len(weights[part]), count * block), np.float32)
        padded[:, :columns] = weights[part]
        values = padded.reshape(-1, count, block)
        codes[part], scales[part], zeros[part] = _best(values, bits, symmetric=symmetric)
    return Blocks(codes, scales, zeros)


def _best(values: Floats, bits: int, *, symmetric: bool) -> tuple[Codes, Floats, Codes]:
    top = 2**bits - 1
    # In double precision, where neither ranges nor squares of large weights overflow.
    low = np.minimum(values.min(-1), 0.0).astype(np.float64)
    high = np.maximum(values.max(-1), 0.0).astype(np.float64)
    least = np.full(low.shape, np.inf)
    best = (
        np.zeros(values.shape, np.uint8),
        np.ones(low.shape, np.float32),
        np.zeros(low.shape, np.uint8),
    )
    middle = 2 ** (bits - 1)
    for shrink in _SHRINK if bits < 8 else _SHRINK[:1]:
        widest = np.maximum(-low / middle, high / (middle - 1)) if symmetric else (high - low) / top
        scale = (widest * shrink).astype(np.float32)
        scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
        zero = np.full_like(scale, middle)
        if not symmetric:
            zero = np.clip(np.rint(-low * shrink / scale), 0, top).astype(np.float32)
        steps = values / scale[..., None] + zero[..., None]
        code = np.clip(np.rint(steps), 0, top)
        wrong = ((code - steps) ** 2).sum(-1) * np.square(scale, dtype=np.float64)
        if scale.max(initial=0) > _LARGE:
            reach = np.abs(code - zero[..., None]).max(-1)
            scale = np.minimum(scale, _LARGEST / np.maximum(reach, 1))
        better = wrong < least
        least = np.where(better, wrong, least)
        best[0][better] = code[better].astype(np.uint8)
        best[1][better] = scale[better]
        best[2][better] = zero[better].astype(np.uint8)
    return best
