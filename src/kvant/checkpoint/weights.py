"""A weight of a checkpoint: where it lies, and its rows in the order one asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant.arch import RowOrder
from kvant.errors import DataError, InputError
from kvant.files.tensor import StoredTensor
from kvant.packing import dequantize

__all__ = ["Rotary", "Weight", "check_finite", "rotary_row_order"]

Floats = npt.NDArray[np.float32]


def rotary_row_order(rows: int, heads: int, frm: RowOrder, to: RowOrder) -> npt.NDArray[np.intp]:
    """Where the rows of a rotated weight come from: ``data_in_to = data_in_frm[index]``.

    A head's rows come in pairs that are rotated together. ``"half"`` (Hugging Face, GPT-NeoX)
    has all first elements before all second ones; ``"interleaved"`` (Meta's release, GGUF's
    llama) has each pair side by side.

    Args:
        rows: rows of the weight, ``heads`` times an even number.
        heads: heads they belong to.
        frm: the order they are in.
        to: the order wanted.
    """
    index = np.arange(rows)
    if frm == to:
        return index
    shape = (heads, 2, -1) if frm == "half" else (heads, -1, 2)
    return index.reshape(shape).swapaxes(1, 2).reshape(rows)


@dataclass(frozen=True, slots=True)
class Rotary:
    """A weight whose outputs are rotated: its heads, and the order of its rows in the file."""

    heads: int
    order: RowOrder


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight by its canonical name; nothing is read until asked.

    Row orders only matter where ``rotary`` is set; the canonical one is ``"half"``. Rows of such
    a weight are read in whole heads: multiples of ``row_step``.
    """

    name: str
    stored: StoredTensor
    rotary: Rotary | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major shape: (outputs, inputs), or (length,) for biases and norms."""
        return self.stored.shape

    @property
    def row_step(self) -> int:
        """Rows that have to be read together: the rows of a head, or 1."""
        if self.rotary is None or len(self.shape) == 1:
            return 1
        return self.stored.rows // self.rotary.heads

    @contextmanager
    def open(self) -> Iterator[int]:
        """Open the weight's file: yields a descriptor for ``read_rows``.

        Raises:
            InputError: the file is gone, or may not be read.
        """
        try:
            fd = os.open(self.stored.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                f"{self.stored.path}: cannot be opened: {error.strerror}. It was there a moment "
                "ago; check that nothing replaces it."
            ) from None
        try:
            yield fd
        finally:
            os.close(fd)

    def read_rows(
        self, fd: int, start: int, stop: int, *, order: RowOrder = "half"
    ) -> npt.NDArray[np.uint8]:
        """Rows ``start`` to ``stop`` as stored: uint8 [stop - start, row_bytes], rows reordered.

        ``start`` and ``stop`` are multiples of ``row_step`` (ValueError otherwise).
        """
        if start % self.row_step or stop % self.row_step:
            raise ValueError(f"{self.name}: rows are read in multiples of {self.row_step}")
        raw = self.stored.read_rows(fd, start, stop)
        if self.rotary is None or self.rotary.order == order or start == stop:
            return raw
        if len(self.shape) == 1:  # a bias: its elements are what the rows of the matrix are
            elements = raw.reshape(self.shape[0], -1)
            index = rotary_row_order(self.shape[0], self.rotary.heads, self.rotary.order, order)
            return elements[index].reshape(raw.shape)
        heads = (stop - start) // self.row_step
        return raw[rotary_row_order(stop - start, heads, self.rotary.order, order)]

    def read_rows_f32(self, fd: int, start: int, stop: int, *, order: RowOrder = "half") -> Floats:
        """Rows ``start`` to ``stop`` decoded: float32 [stop - start, row length].

        Raises:
            DataError: NaN or infinity among them.
        """
        values = dequantize(self.stored.type.name, self.read_rows(fd, start, stop, order=order))
        check_finite(self.name, values, start)
        return values

    def read_f32(self, *, order: RowOrder = "half") -> Floats:
        """The whole weight decoded: float32 of its ``shape``; raises as ``read_rows_f32``."""
        with self.open() as fd:
            return self.read_rows_f32(fd, 0, self.stored.rows, order=order).reshape(self.shape)


def check_finite(name: str, values: Floats, first_row: int = 0) -> None:
    """Refuse NaN and infinity in decoded rows [rows, length] of the weight ``name``.

    Raises:
        DataError: names the weight and the first bad element.
    """
    # The sum is not finite wherever an element is not; only then (or when huge numbers overflow
    # it) is it worth looking at each.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):
            return
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"Tensor {name!r} holds {values[row, column]} at row {first_row + row}, column "
            f"{column}, expected finite numbers ({len(bad)} are not). "
            "The checkpoint is damaged, or its training diverged; get another one."
        )
