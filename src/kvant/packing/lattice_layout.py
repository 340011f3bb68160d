"""What the files of the codebook packings share: signs beside points, odd scales in four bits."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from kvant.packing.lattice import LatticeGrid, points_of
from kvant.packing.spec import Bytes, Codes, Floats, Packing, PrecisionClass, Scales, SubScales

__all__ = [
    "LatticePacking",
    "add_signs",
    "codes_of_points",
    "even_signs",
    "from_nibbles",
    "from_words",
    "nibbles",
    "sign_bytes",
    "words_of",
]

Ints = npt.NDArray[np.int64]


class LatticePacking(Packing):
    """A packing whose codes are points of a table; importance takes part in encoding."""

    fast = False  # codebooks are looked up, which takes processors longer than reading the bytes
    feedback = "units"
    grid: ClassVar[LatticeGrid]

    def __init_subclass__(cls) -> None:
        cls.sub_scales = (SubScales("sub", cls.grid.sub, 1, 2 * cls.grid.steps + 1, 2),)

    @property
    def precision_class(self) -> PrecisionClass:
        """By the bits of storage: codes here are levels, of which not all combinations exist."""
        return "ultra-low" if self.bits_per_weight < 3 else "low"

    def encode_weighted(self, x: Floats, scales: Scales, importance: Floats | None) -> Codes:
        return self.grid.encode(x, scales, importance)


def codes_of_points(grid: LatticeGrid, numbers: Ints) -> Codes:
    """Numbers of points [blocks, groups] -> codes [blocks, 256] without signs."""
    points = points_of(grid.table, grid.group)
    return points[numbers].astype(np.uint8).reshape(len(numbers), -1)


def sign_bytes(codes: Codes, above: int) -> Bytes:
    """Bit ``above`` of 256 codes in 32 bytes, the first lowest."""
    return np.packbits(codes >> above & 1, axis=1, bitorder="little")


def add_signs(codes: Codes, signs: Bytes, above: int) -> Codes:
    """Codes with the bits of ``signs`` [blocks, 32] at ``above``."""
    return codes | np.unpackbits(signs, axis=1, bitorder="little") << above


def even_signs(seven: Ints) -> Bytes:
    """Seven stored signs -> eight, the last of which makes the number of minus signs even."""
    s = seven ^ seven >> 4
    s = s ^ s >> 2
    return (seven | ((s ^ s >> 1) & 1) << 7).astype(np.uint8)


def words_of(signs: Bytes, scales: Scales) -> Bytes:
    """Four times seven signs and, on top, an odd scale in each of eight words: [blocks, 32]."""
    seven = (signs & 127).astype(np.uint32).reshape(-1, 8, 4)
    words = (seven << np.array([0, 7, 14, 21], np.uint32)).sum(2, dtype=np.uint32)
    words |= (scales["sub"][:, :8].view(np.uint8).astype(np.uint32) - 1 >> 1 & 15) << 28
    return words.astype("<u4").view(np.uint8).reshape(-1, 32)


def from_words(data: Bytes, scales: Scales) -> Bytes:
    """Signs [blocks, 32] of eight words [blocks, 32]; their scales go to ``scales``."""
    words = np.ascontiguousarray(data).view("<u4").astype(np.int64)
    scales["sub"][:, :8] = 2 * (words >> 28) + 1
    return even_signs((words[:, :, None] >> np.array([0, 7, 14, 21]) & 127).reshape(-1, 32))


def nibbles(scales: Scales, subs: int) -> Bytes:
    """``subs`` odd scales, 1 to 31, in four bits each, the first below."""
    k = scales["sub"][:, :subs].view(np.uint8) - 1 >> 1 & 15
    return k[:, 0::2] | k[:, 1::2] << 4


def from_nibbles(data: Bytes, scales: Scales, subs: int) -> None:
    """Fill ``sub`` from [blocks, subs / 2] bytes."""
    scales["sub"][:, 0:subs:2] = 2 * (data & 15) + 1
    scales["sub"][:, 1:subs:2] = 2 * (data >> 4) + 1
