"""Weights of the ONNX folders kvant writes: floats in either order, blocks of integers.

How they lie is said where they are written (`kvant.export.onnx.weights`): blocks as MatMulNBits
and GatherBlockQuantized of ONNX Runtime take them, rows packed each by itself, or as one run of
integers of 2, 4 or 8 bits for DequantizeLinear of the standard. Scales are in half precision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant.files.decoded import DecodedTensor
from kvant.files.raw import RawTensor, unpacked

__all__ = ["BlockTensor", "ColumnTensor", "bits_and_group"]

_LEVEL = re.compile(r"int([248])-g(16|32|64|128|256)(-sym)?")


def bits_and_group(level: str) -> tuple[int, int, bool] | None:
    """Bits, weights in a group, and whether zeros are stored; None for a level of floats."""
    found = _LEVEL.fullmatch(level)
    return None if found is None else (int(found[1]), int(found[2]), found[3] is None)


@dataclass(frozen=True, slots=True)
class ColumnTensor(DecodedTensor):
    """A matrix of floats that lies [inputs, outputs]."""

    weight: RawTensor

    @property
    def quantised(self) -> bool:
        """No: only turned."""
        return False

    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See the base."""
        return np.ascontiguousarray(self.weight.columns(start, stop).T, np.float32)


@dataclass(frozen=True, slots=True)
class BlockTensor(DecodedTensor):
    """w = scale (q - zero) for each group of a row.

    ``codes`` are bytes: [outputs, bytes] where ``packed`` rows lie each by itself, otherwise one
    run of integers; ``scales`` [outputs, groups], or [groups, outputs] where ``columnwise``.
    """

    bits: int
    group: int
    packed: bool
    columnwise: bool
    codes: RawTensor
    scales: RawTensor
    zeros: RawTensor | None

    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See the base."""
        columns = self.row_length
        groups = -(-columns // self.group)
        wide = groups * self.group
        codes = self._integers(self.codes, wide if self.packed else columns, start, stop)
        middle = np.uint8(1 << (self.bits - 1))
        if self.zeros is None and not self.packed:
            codes = codes ^ middle  # integers with a sign
        if wide > columns and not self.packed:
            codes = np.pad(codes, ((0, 0), (0, wide - columns)))
        if self.columnwise:
            scales = self.scales.columns(start, stop).T
        else:
            scales = self.scales.rows(start, stop)
        values = codes.reshape(stop - start, groups, self.group).astype(np.float32)
        if self.zeros is None:
            values -= np.float32(middle)
        else:
            values -= self._integers(self.zeros, groups, start, stop)[:, :, None]
        values *= scales[:, :, None]
        return values.reshape(stop - start, wide)[:, :columns]

    def _integers(
        self, tensor: RawTensor, width: int, start: int, stop: int
    ) -> npt.NDArray[np.uint8]:
        """Rows of a matrix of integers: uint8 [stop - start, width]."""
        if self.packed:
            return unpacked(np.ascontiguousarray(tensor.rows(start, stop)), self.bits, width)
        bits, height = self.bits, stop - start
        if not self.columnwise:
            return _run(tensor, bits, start * width, height * width).reshape(height, width)
        found = np.empty((width, height), np.uint8)
        for column, part in enumerate(found):
            part[:] = _run(tensor, bits, column * self.rows + start, height)
        return found.T


def _run(tensor: RawTensor, bits: int, first: int, count: int) -> npt.NDArray[np.uint8]:
    """``count`` integers from number ``first`` on of a tensor that is one run of them."""
    begin, end = first * bits // 8, -(-(first + count) * bits // 8)
    skip = first - begin * 8 // bits
    return unpacked(tensor.rows(begin, end), bits, skip + count)[skip:]
