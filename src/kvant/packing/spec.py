"""What a packing is: four parts, each usable alone.

A packing stores weights in blocks. Quantising a block is three steps, and keeping them apart is
what lets error feedback, learned rounding and searches stand between them:

- ``fit``: weights (and, if given, the importance of each) -> scales;
- ``encode``: weights and *fixed* scales -> integer codes;
- ``layout``: codes and scales -> the bytes of the file.

``unlayout`` and ``decode`` go the other way. ``pack`` and ``unpack`` are the compositions.

The classes beside this file say all of it in NumPy, plainly and slowly: they are the
specification. :mod:`kvant.packing.native` does the same in the core, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from kvant.packing.types import BY_NAME, StorageType

__all__ = [
    "SCALES",
    "Bytes",
    "Codes",
    "Feedback",
    "Floats",
    "Grid",
    "Packing",
    "PrecisionClass",
    "Scales",
    "SubScales",
    "empty_scales",
]

Floats = npt.NDArray[Any]  # float32; NumPy types float32 arithmetic too loosely to say so
Codes = npt.NDArray[Any]  # uint8
Bytes = npt.NDArray[Any]  # uint8
Scales = npt.NDArray[Any]  # of dtype SCALES
PrecisionClass = Literal["ultra-low", "low", "medium", "full"]
Feedback = Literal["even", "listed", "units"]
"""How methods choose codes one after the other (`kvant.packing.feedback`): weight by weight, on
levels of which two tell all or that are listed, or several weights together, by kernels of the
packing's own."""

SCALES = np.dtype(
    [("d", "<f4"), ("dmin", "<f4"), ("sub", "i1", (16,)), ("submin", "u1", (16,))], align=False
)
"""The scales of one block: ``d`` and ``dmin`` of the block, integer multiples of them for each
sub-block. Packings without sub-blocks leave ``sub`` and ``submin`` zero. The same 40 bytes as
``struct Scales`` in native/kernels/packing.h."""


@dataclass(frozen=True, slots=True)
class SubScales:
    """Integer scales of sub-blocks, as a format allows them: weights are linear in each."""

    field: Literal["sub", "submin"]
    """Of `SCALES`."""
    n: int
    """Weights of a sub-block."""
    least: int
    most: int
    step: int = 1


class Grid(Protocol):
    """How codes under scales stand for weights: three of a packing's four parts."""

    def fit(self, x: Floats, importance: Floats | None) -> Scales:
        """See `Packing.fit`."""
        ...

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """See `Packing.encode`."""
        ...

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """See `Packing.decode`."""
        ...


class Packing(ABC):
    """One way to store weights in blocks: a grid, and a layout of its codes and scales in bytes.

    All arrays are [blocks, block length] (weights float32, codes uint8), scales are [blocks] of
    dtype :data:`SCALES`, packed bytes are uint8 [blocks, block bytes].
    """

    name: ClassVar[str]
    bits: ClassVar[int]
    """Bits of one code."""
    good_for: ClassVar[str]
    """One line for people choosing."""
    block_layout: ClassVar[str]
    """One line on what a block holds, in file order."""
    fast: ClassVar[bool] = True
    """Whether the common runtimes run it, on common processors, about as fast as its bytes allow;
    searches for a budget use only those unless told otherwise."""
    searches: ClassVar[bool] = True
    """Whether scales are searched for, so that the importance of weights makes a difference;
    otherwise a formula gives them."""
    feedback: ClassVar[Feedback | None] = None
    """How methods that correct errors choose codes; None where they cannot, or gain nothing."""
    refits: ClassVar[bool] = True
    """Whether ``d`` (and ``dmin``) may become any half for fixed codes."""
    sub_scales: ClassVar[tuple[SubScales, ...]] = ()
    """Integer scales that may be chosen anew for fixed codes."""
    levels: ClassVar[tuple[int, ...] | None] = None
    """What each code stands for, in steps of its scale, where that is not evenly spaced."""
    grid: ClassVar[Grid]
    """Not needed where a class has ``fit``, ``encode`` and ``decode`` of its own."""

    @property
    def storage(self) -> StorageType:
        """Block length and bytes, and the type number in GGUF files."""
        return BY_NAME[self.name]

    @property
    def block(self) -> int:
        """Weights in a block."""
        return self.storage.block

    @property
    def code_count(self) -> int:
        """Codes that stand for something, from 0."""
        return 1 << self.bits

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage for one weight, scales included."""
        return self.storage.bits_per_weight

    @property
    def precision_class(self) -> PrecisionClass:
        """Class by the bits of a code: 1-2 ultra-low, 3-4 low, 5-8 medium, above full."""
        if self.bits <= 2:
            return "ultra-low"
        if self.bits <= 4:
            return "low"
        return "medium" if self.bits <= 8 else "full"

    def fit(self, x: Floats, importance: Floats | None = None) -> Scales:
        """Scales for weights ``x`` [blocks, block]; ``importance`` has the same shape, >= 0."""
        return self.grid.fit(x, importance)

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """Codes of ``x`` under fixed ``scales``: the nearest level of each weight."""
        return self.grid.encode(x, scales)

    def encode_weighted(self, x: Floats, scales: Scales, importance: Floats | None) -> Codes:
        """`encode` where weights share a code, so that their importance decides; else `encode`."""
        return self.encode(x, scales)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """Weights that ``codes`` under ``scales`` stand for, in the format's own arithmetic."""
        return self.grid.decode(codes, scales)

    @abstractmethod
    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        """Bytes of the blocks as they stand in a file."""

    @abstractmethod
    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        """Codes and scales of packed blocks."""

    def pack(self, x: Floats, importance: Floats | None = None) -> Bytes:
        """Quantise: fit, encode, layout."""
        scales = self.fit(x, importance)
        return self.layout(self.encode_weighted(x, scales, importance), scales)

    def unpack(self, data: Bytes) -> Floats:
        """Dequantise: unlayout, decode."""
        return self.decode(*self.unlayout(data))


def empty_scales(blocks: int) -> Scales:
    """All-zero scales for ``blocks`` blocks."""
    return np.zeros(blocks, SCALES)
