"""How weights lie in the data file, and jobs that put them there by runs of rows.

Floats of linears lie [inputs, outputs], as MatMul takes them; tables lie in rows. Blocks of
integers lie as one of

- ``nbits``: codes uint8 [outputs, blocks, block bytes] with the low bits first, scales [outputs,
  blocks], zeros uint8 [outputs, bytes], each row's packed by itself (MatMulNBits and
  GatherBlockQuantized of ONNX Runtime);
- ``rows`` and ``columns``: integers of 2, 4 or 8 bits [outputs, inputs], or [inputs, outputs],
  packed as one run, scales and zeros alike (DequantizeLinear of the standard). Without zeros the
  integers are signed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Weight
from kvant.errors import DataError
from kvant.export.onnx.model import Blob
from kvant.graph.ops import Rope
from kvant.packing.bits import packed_bits
from kvant.packing.groups import GROUP_SCALES, Groups
from kvant.packing.quantise_groups import quantise_groups

__all__ = ["Array", "BlockRows", "FloatRows", "Job", "Layout", "RopeTable", "Write"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Layout = Literal["nbits", "rows", "columns"]
Write = Callable[[Array, int], None]
"""Puts bytes at an offset of the data file."""

RUN_BYTES = 2 << 20
"""Bytes of float32 that a thread works on at a time."""

_WIDE_RUN = 8 << 20
"""The same where the result is written column by column: pieces should not be too short."""

_TOGETHER = 8
"""Rows that are packed together, so that runs of 2 and 4 bits begin at a byte."""


class Job(ABC):
    """A tensor of the data file; made by runs of rows, each by itself and in any order."""

    name: str

    @property
    def columnwise(self) -> bool:
        """Whether it lies [inputs, outputs]."""
        return False

    @property
    @abstractmethod
    def elements(self) -> int:
        """Numbers in all, for progress."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows that `runs` cuts."""

    @abstractmethod
    def runs(self) -> Iterator[tuple[int, int]]:
        """First and last (exclusive) row of each run."""

    @abstractmethod
    def write(self, start: int, stop: int, write: Write) -> None:
        """Make and write a run."""


@dataclass(frozen=True, slots=True)
class FloatRows(Job):
    """A weight as floats, ``transposed`` or in rows."""

    name: str
    weight: Weight
    blob: Blob
    transposed: bool = False

    @property
    def columnwise(self) -> bool:
        """See the base."""
        return self.transposed

    @property
    def elements(self) -> int:
        """See the base."""
        return self.weight.stored.elements

    @property
    def rows(self) -> int:
        """See the base."""
        return self.weight.stored.rows

    def runs(self) -> Iterator[tuple[int, int]]:
        """See the base."""
        room = _WIDE_RUN if self.transposed else RUN_BYTES
        return _runs(self.weight, room, self.weight.row_step)

    def write(self, start: int, stop: int, write: Write) -> None:
        """See the base."""
        with self.weight.open() as fd:
            rows = self.weight.read_rows_f32(fd, start, stop)
        values = _held(self.name, rows, self.blob.type, start)
        size = values.itemsize
        if not self.transposed:
            write(values, self.blob.offset + start * rows.shape[1] * size)
            return
        pitch = self.weight.stored.rows * size
        for column, piece in enumerate(np.ascontiguousarray(values.T)):
            write(piece, self.blob.offset + column * pitch + start * size)


@dataclass(frozen=True, slots=True)
class BlockRows(Job):
    """A weight in blocks of integers. ``importance`` is float32 [columns]."""

    name: str
    weight: Weight
    grid: Groups
    layout: Layout
    codes: Blob
    scales: Blob
    zeros: Blob | None
    importance: Floats | None = None

    @property
    def columnwise(self) -> bool:
        """See the base."""
        return self.layout == "columns"

    @property
    def elements(self) -> int:
        """See the base."""
        return self.weight.stored.elements

    @property
    def rows(self) -> int:
        """See the base."""
        return self.weight.stored.rows

    @property
    def blocks(self) -> int:
        """Blocks in a row, the last one perhaps padded."""
        return -(-self.weight.stored.row_length // self.grid.block)

    def runs(self) -> Iterator[tuple[int, int]]:
        """See the base."""
        room = _WIDE_RUN if self.layout == "columns" else RUN_BYTES
        return _runs(self.weight, room, math.lcm(self.weight.row_step, _TOGETHER))

    def write(self, start: int, stop: int, write: Write) -> None:
        """Search scales, encode, write."""
        with self.weight.open() as fd:
            rows = self.weight.read_rows_f32(fd, start, stop)
        importance = None if self.importance is None else self.padded(self.importance[None])
        codes, scales = quantise_groups(self.grid, self.padded(rows), importance, plain=False)
        self.place(codes, scales, start, write)

    def padded(self, rows: Floats) -> Floats:
        """Rows with zeros up to whole blocks."""
        missing = self.blocks * self.grid.block - rows.shape[1]
        return np.pad(rows, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(rows)

    def place(self, codes: Array, scales: Array, start: int, write: Write) -> None:
        """Write rows from ``start`` on: codes uint8 [rows, whole blocks], scales [rows, blocks]."""
        assert scales.dtype == GROUP_SCALES
        d, z, bits = scales["d"], scales["z"].astype(np.uint8), self.grid.bits
        self._check(d, start)
        half = d.astype(np.float16)
        if self.layout == "nbits":
            _put(write, self.codes, start, len(codes), packed_bits(codes, bits))
            _put(write, self.scales, start, len(codes), half)
            if self.zeros is not None:
                _put(write, self.zeros, start, len(codes), packed_bits(z, bits))
            return
        codes = codes[:, : self.weight.stored.row_length]
        if self.zeros is None:
            codes = codes ^ np.uint8(self.grid.middle)  # two's complement of so many bits
        rows = self.weight.stored.rows
        self._spread(codes, bits, self.codes, rows, start, write)
        self._spread(half, 16, self.scales, rows, start, write)
        if self.zeros is not None:
            self._spread(z, bits, self.zeros, rows, start, write)

    def _spread(
        self, values: Array, bits: int, blob: Blob, rows: int, start: int, write: Write
    ) -> None:
        """Rows from ``start`` on of a matrix that lies as one run of numbers of ``bits`` bits."""
        if self.layout == "rows":
            flat = values.reshape(-1)
            data = packed_bits(flat, bits) if bits < 8 else flat
            write(data, blob.offset + start * values.shape[1] * bits // 8)
            return
        columns = np.ascontiguousarray(values.T)
        if bits < 8:
            columns = packed_bits(columns, bits)
        for number, piece in enumerate(columns):
            write(piece, blob.offset + (number * rows + start) * bits // 8)

    def _check(self, d: Floats, start: int) -> None:
        bad = np.argwhere(~(np.abs(d) <= 65504))
        if len(bad):
            row, block = bad[0]
            raise DataError(
                f"Tensor {self.name}: block {block} of row {start + row} needs the scale "
                f"{d[row, block]:g}, expected at most 65504, which half precision holds. Leave "
                f"it as floats: --tensor '{self.name}=float'."
            )


@dataclass(frozen=True, slots=True)
class RopeTable(Job):
    """Cosines and sines of every position, [positions, pairs] each; by way of float64."""

    name: str
    op: Rope
    length: int
    cos: Blob
    sin: Blob

    @property
    def elements(self) -> int:
        """None of the model's."""
        return 0

    @property
    def rows(self) -> int:
        """Positions."""
        return self.cos.shape[0]

    def runs(self) -> Iterator[tuple[int, int]]:
        """See the base."""
        step = max(1, RUN_BYTES // (4 * self.op.turned))
        return ((at, min(self.rows, at + step)) for at in range(0, self.rows, step))

    def write(self, start: int, stop: int, write: Write) -> None:
        """See the base."""
        angles = np.arange(start, stop)[:, None] * self.op.frequencies(self.length)
        for blob, turn in ((self.cos, np.cos), (self.sin, np.sin)):
            values = (turn(angles) * self.op.magnitude).astype(_DTYPES[blob.type])
            _put(write, blob, start, stop - start, values)


_DTYPES: dict[str, npt.DTypeLike] = {"FLOAT": np.float32, "FLOAT16": np.float16}


def _put(write: Write, blob: Blob, start: int, rows: int, data: Array) -> None:
    """Rows of a blob whose first axis they are."""
    data = np.ascontiguousarray(data)
    write(data, blob.offset + start * (data.nbytes // rows))


def _held(name: str, values: Floats, kind: str, start: int) -> Array:
    """Values in the type of the file."""
    if kind == "FLOAT16":
        beyond = np.argwhere(np.abs(values) > 65504)
        if len(beyond):
            row, column = beyond[0]
            raise DataError(
                f"Tensor {name} has the weight {values[row, column]:g} at [{start + row}, "
                f"{column}], which float16 cannot hold (at most 65504). Use --dtype float32."
            )
    return np.ascontiguousarray(values, _DTYPES[kind])


def _runs(weight: Weight, room: int, step: int) -> Iterator[tuple[int, int]]:
    rows = weight.stored.rows
    height = max(1, room // (4 * weight.stored.row_length * step)) * step
    return ((at, min(rows, at + height)) for at in range(0, rows, height))
