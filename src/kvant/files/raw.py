"""A safetensors tensor of any dtype as NumPy sees it: whole, by rows, or by columns."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError
from kvant.files.source import open_source, quote
from kvant.packing.small_floats import E4M3, E8M0

__all__ = ["RawTensor", "unpacked"]

_DTYPES = {
    "U8": "<u1",
    "I8": "<i1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",
    "F8_E4M3": "<u1",
    "F8_E8M0": "<u1",
    "BOOL": "<u1",
}


def unpacked(words: npt.NDArray[Any], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Integers of ``bits`` bits from the last axis, a stream with its lowest bits first.

    Args:
        words: unsigned integers [..., n], C-contiguous.
        bits: 1 to 8.
        count: integers wanted of each stream.

    Returns:
        uint8 [..., count].
    """
    data: npt.NDArray[np.uint8] = words.view(np.uint8)
    if bits == 8:
        return data[..., :count]
    if bits in (1, 2, 4):
        each = 8 // bits
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        out: npt.NDArray[np.uint8] = data[..., None] >> shifts & np.uint8((1 << bits) - 1)
        return out.reshape(*data.shape[:-1], data.shape[-1] * each)[..., :count]
    stream = np.unpackbits(data, axis=-1, bitorder="little")
    used = stream.shape[-1] // bits * bits
    groups = stream[..., :used].reshape(*stream.shape[:-1], -1, bits)
    placed = groups[..., :count, :] << np.arange(bits, dtype=np.uint8)
    total: npt.NDArray[np.uint8] = placed.sum(-1, dtype=np.uint8)
    return total


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor that lies at ``offset`` of ``path``; the reader has checked that it is all there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def rows_count(self) -> int:
        """Length of the first axis; 1 of a scalar."""
        return self.shape[0] if self.shape else 1

    def part(self, index: int) -> RawTensor:
        """One of the first axis: the tensor ``self[index]``."""
        width = self._row * np.dtype(_DTYPES[self.dtype]).itemsize
        return RawTensor(
            self.name, self.dtype, self.shape[1:], self.path, self.offset + index * width
        )

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype]).itemsize

    @property
    def _row(self) -> int:
        return math.prod(self.shape[1:])

    def read(self) -> npt.NDArray[Any]:
        """All of it, [rows, ...]; floats of 8 and 16 bits as float32."""
        return self.rows(0, self.rows_count).reshape(self.shape)

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows of the first axis. Raises FileFormatError where the file has become shorter."""
        dtype = np.dtype(_DTYPES[self.dtype])
        width = self._row * dtype.itemsize
        data = self._bytes([(self.offset + start * width, (stop - start) * width)])
        return self._values(data.view(dtype).reshape(stop - start, *self.shape[1:]))

    def columns(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Columns of a matrix: [rows, stop - start]."""
        dtype = np.dtype(_DTYPES[self.dtype])
        size, width = dtype.itemsize, self._row
        places = [
            (self.offset + (row * width + start) * size, (stop - start) * size)
            for row in range(self.rows_count)
        ]
        return self._values(self._bytes(places).view(dtype).reshape(-1, stop - start))

    def _values(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        match self.dtype:
            case "BF16":
                data = (data.astype(np.uint32) << 16).view(np.float32)
            case "F16":
                data = data.astype(np.float32)
            case "F8_E4M3":
                data = E4M3[data]
            case "F8_E8M0":
                data = E8M0[data]
        return data

    def _bytes(self, places: list[tuple[int, int]]) -> npt.NDArray[np.uint8]:
        out = np.empty(sum(size for _, size in places), np.uint8)
        at = 0
        with open_source(self.path) as (fd, _):
            for place, size in places:
                done = 0
                while done < size:
                    n = os.preadv(fd, [out[at + done : at + size].data], place + done)
                    if n == 0:
                        raise FileFormatError(
                            f"{self.path}: the file ends inside tensor {quote(self.name)}; it was "
                            "cut short or changed while being read. Fetch it again."
                        )
                    done += n
                at += size
        return out
