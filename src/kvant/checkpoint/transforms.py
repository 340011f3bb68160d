"""Stored tensors whose numbers differ from the canonical ones, seen as if they did not.

What Hugging Face stores differently is undone while rows are read, run by run as of any other
tensor, so that nobody else has to know: readers, exporters and the engine all ask for rows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.names import HfValues
from kvant.files.decoded import DecodedTensor, in_buffer
from kvant.files.source import open_source
from kvant.files.tensor import StoredTensor
from kvant.packing import dequantize
from kvant.packing.types import BY_NAME

__all__ = ["OneLess", "Transposed", "canonical"]

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Transposed(StoredTensor):
    """A matrix of floats stored the other way round: its rows are the columns of ``base``."""

    base: StoredTensor

    @property
    def in_place(self) -> bool:
        """No."""
        return False

    def read_rows(self, fd: int, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        """As in the base, by a short read from every stored row."""
        size = self.type.block_bytes  # of an element: only floats are transposed
        count, stored = stop - start, self.base
        found = np.empty((stored.rows, count * size), np.uint8)
        first = stored.offset + start * size
        for row, piece in enumerate(found):
            place = first + row * stored.row_bytes
            if os.preadv(fd, [piece.data], place) != len(piece):
                # Cut short, or interrupted: the slow way says which.
                part = StoredTensor(self.name, self.type, (1, count), self.path, place)
                part.read_rows(fd, 0, 1, piece)
        turned = found.reshape(stored.rows, count, size).swapaxes(0, 1)
        return in_buffer(np.ascontiguousarray(turned).reshape(count, self.row_bytes), out)


@dataclass(frozen=True, slots=True)
class OneLess(DecodedTensor):
    """Gains stored less one: Gemma's norms multiply with ``1 + weight``, in single precision."""

    base: StoredTensor

    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See the base class."""
        with open_source(self.base.path) as (fd, _):
            values = dequantize(self.base.type.name, self.base.read_rows(fd, start, stop))
        return values + np.float32(1)


def canonical(stored: StoredTensor, values: HfValues) -> StoredTensor:
    """``stored`` with its numbers as they are canonically, given how they differ."""
    s = stored
    if values == "one less":
        return OneLess(s.name, BY_NAME["F32"], s.shape, s.path, s.offset, s.stored_as, s)
    if values == "transposed" and len(s.shape) == 2:
        return Transposed(s.name, s.type, s.shape[::-1], s.path, s.offset, s)
    return s
