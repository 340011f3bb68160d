"""Stored tensors whose numbers differ from the canonical ones, seen as if they did not.

What Hugging Face stores differently is undone while rows are read, run by run as of any other
tensor, so that nobody else has to know: readers, exporters and the engine all ask for rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.names import HfValues
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
        piece = StoredTensor(self.name, self.type, (1, count), self.path, stored.offset)
        for row in range(stored.rows):
            place = stored.offset + row * stored.row_bytes + start * size
            replace(piece, offset=place).read_rows(fd, 0, 1, found[row])
        turned = found.reshape(stored.rows, count, size).swapaxes(0, 1)
        return _given(np.ascontiguousarray(turned).reshape(count, self.row_bytes), out)


@dataclass(frozen=True, slots=True)
class OneLess(StoredTensor):
    """Gains stored less one: Gemma's norms multiply with ``1 + weight``, in single precision."""

    base: StoredTensor

    @property
    def in_place(self) -> bool:
        """No."""
        return False

    def read_rows(self, fd: int, start: int, stop: int, out: Bytes | None = None) -> Bytes:
        """As in the base, with one added."""
        values = dequantize(self.base.type.name, self.base.read_rows(fd, start, stop))
        return _given(np.ascontiguousarray(values + np.float32(1)).view(np.uint8), out)


def _given(rows: Bytes, out: Bytes | None) -> Bytes:
    """``rows``, in the caller's buffer where there is one."""
    if out is None:
        return rows
    place = out[: rows.size].reshape(rows.shape)
    place[:] = rows
    return place


def canonical(stored: StoredTensor, values: HfValues) -> StoredTensor:
    """``stored`` with its numbers as they are canonically, given how they differ."""
    s = stored
    if values == "one less":
        return OneLess(s.name, BY_NAME["F32"], s.shape, s.path, s.offset, s)
    if values == "transposed" and len(s.shape) == 2:
        return Transposed(s.name, s.type, s.shape[::-1], s.path, s.offset, s)
    return s
