"""A tensor as it lies in a file: where, how packed, what shape. No data until asked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError, InputError
from kvant.files.source import open_source, quote
from kvant.packing.types import StorageType

__all__ = ["StackedTensor", "StoredTensor"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a container file.

    ``shape`` is in row-major order: the last entry is the row length, rows are contiguous.
    ``offset`` is absolute in ``path``. The reader that made it has checked that
    ``offset + nbytes`` lies inside the file and that ``nbytes`` follows from shape and type.
    """

    name: str
    type: StorageType
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def stored_as(self) -> str:
        """What it is in the file, for reports: its type, or what was decoded to it."""
        return self.type.name

    @property
    def row_length(self) -> int:
        """Elements in one row (1 for a scalar)."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Number of rows: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.type.row_bytes(self.row_length)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.rows * self.row_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes that it takes in the file, whatever it is read as."""
        return self.nbytes

    @property
    def in_place(self) -> bool:
        """Whether the rows lie one after another in the file, as they are read."""
        return True

    def matrix(self, index: int) -> StoredTensor:
        """One matrix of a stack of them: the tensor ``self[index]``."""
        rows = math.prod(self.shape[1:-1])
        offset = self.offset + index * rows * self.row_bytes
        return replace(self, shape=self.shape[1:], offset=offset)

    def read_rows(
        self, fd: int, start: int, stop: int, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Read rows ``start`` to ``stop`` by positioned reads from the open descriptor ``fd``.

        Returns a uint8 array [stop - start, row_bytes]: the start of ``out``, a flat buffer that
        is large enough, or a fresh one. Positioned reads share nothing, so any number of threads
        may use one descriptor.

        Raises:
            FileFormatError: the file has shrunk since it was opened.
            InputError: the disk failed.
        """
        shape = (stop - start, self.row_bytes)
        if out is not None:
            out = out[: shape[0] * shape[1]].reshape(shape)
        else:
            out = np.empty(shape, np.uint8)
        view = out.data.cast("B") if out.size else memoryview(b"")
        position = self.offset + start * self.row_bytes
        done = 0
        while done < len(view):
            try:
                n = os.preadv(fd, [view[done:]], position + done)
            except OSError as error:
                raise InputError(
                    f"{self.path}: reading tensor {quote(self.name)} failed: {error.strerror}. "
                    "Check the disk or fetch the file again."
                ) from None
            if n == 0:
                raise FileFormatError(
                    f"{self.path}: the file ends inside tensor {quote(self.name)}; "
                    "it was cut short or changed while being read. Fetch it again."
                )
            done += n
        return out

    def read(self) -> npt.NDArray[np.uint8]:
        """Read the whole tensor: uint8 [rows, row_bytes]. Raises as ``read_rows``."""
        with open_source(self.path) as (fd, _):
            return self.read_rows(fd, 0, self.rows)


@dataclass(frozen=True, slots=True)
class StackedTensor(StoredTensor):
    """Matrices of one shape and type that lie anywhere, read as one tensor [parts, ...].

    ``path`` and ``offset`` are those of the first. A file that is not ``path`` is opened for the
    length of a read, so that one descriptor is enough for whoever reads.
    """

    parts: tuple[StoredTensor, ...]

    @classmethod
    def of(cls, name: str, parts: Sequence[StoredTensor]) -> StackedTensor:
        """Stack ``parts``; ValueError where their shapes or types differ."""
        first = parts[0]
        if any((p.shape, p.type) != (first.shape, first.type) for p in parts):
            raise ValueError("parts of a stack have one shape and type")
        shape = (len(parts), *first.shape)
        return cls(name, first.type, shape, first.path, first.offset, tuple(parts))

    @property
    def file_bytes(self) -> int:
        """Bytes of all parts in their files."""
        return sum(part.file_bytes for part in self.parts)

    @property
    def in_place(self) -> bool:
        """No."""
        return False

    def matrix(self, index: int) -> StoredTensor:
        """The part."""
        return self.parts[index]

    def read_rows(
        self, fd: int, start: int, stop: int, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """As in the base; the rows may lie in several parts."""
        size = (stop - start) * self.row_bytes
        flat = np.empty(size, np.uint8) if out is None else out[:size]
        each = self.rows // len(self.parts)
        at = start
        while at < stop:
            part, row = self.parts[at // each], at % each
            count = min(each - row, stop - at)
            room = flat[(at - start) * self.row_bytes :]
            if part.path == self.path:
                part.read_rows(fd, row, row + count, room)
            else:
                with open_source(part.path) as (other, _):
                    part.read_rows(other, row, row + count, room)
            at += count
        return flat.reshape(stop - start, self.row_bytes)
