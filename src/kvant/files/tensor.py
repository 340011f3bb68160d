"""A tensor as it lies in a file: where, how packed, what shape. No data until asked."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError, InputError
from kvant.files.source import open_source, quote
from kvant.packing.types import StorageType

__all__ = ["StoredTensor"]


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
