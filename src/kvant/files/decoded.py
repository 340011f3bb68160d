"""Tensors that have to be computed from what a file holds: read like any other."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from kvant.files.raw import RawTensor
from kvant.files.tensor import StoredTensor

__all__ = ["DecodedTensor", "in_buffer"]


@dataclass(frozen=True, slots=True)
class DecodedTensor(StoredTensor):
    """A float32 tensor whose rows are computed when they are read.

    ``path`` is where most of it comes from; ``origin`` says what it was, for reports.
    """

    origin: str

    @property
    def stored_as(self) -> str:
        """What it was in the file."""
        return self.origin

    @property
    def quantised(self) -> bool:
        """Whether it is decoded from codes, and not only changed."""
        return any(isinstance(getattr(self, each.name), RawTensor) for each in fields(self))

    @property
    def file_bytes(self) -> int:
        """Bytes of all that it is computed from: codes, scales, offsets."""
        parts = [getattr(self, each.name) for each in fields(self)]
        read = sum(p.nbytes for p in parts if isinstance(p, (RawTensor, np.ndarray)))
        return read + sum(p.file_bytes for p in parts if isinstance(p, StoredTensor))

    @property
    def in_place(self) -> bool:
        """No."""
        return False

    @abstractmethod
    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows ``start`` to ``stop``: float32 [stop - start, row length]."""

    def read_rows(
        self, fd: int, start: int, stop: int, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """As in the base; ``fd`` is not used, the parts are opened as they are needed."""
        values = np.ascontiguousarray(self.decode(start, stop), np.float32)
        data = values.view(np.uint8).reshape(stop - start, self.row_bytes)
        return in_buffer(data, out)


def in_buffer(
    rows: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint8]:
    """``rows``, in the flat buffer ``out`` where there is one, as `StoredTensor.read_rows` gives
    them."""
    if out is None:
        return rows
    place = out[: rows.size].reshape(rows.shape)
    place[:] = rows
    return place
