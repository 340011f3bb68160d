"""How compressed-tensors lays out a quantised matrix.

Source: the library's ``pack_to_int32`` and compressors. "pack-quantized" codes are a stream of bits
in each row, lowest first, as words of 32 bits, q - 2^(bits - 1) being the integer they mean; zero
points are packed the same way along the outputs. The other formats keep ``weight`` in a dtype of
8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant.export.pieces import Piece
from kvant.export.shards import Sink, TensorOut
from kvant.export.tensors import Codes, GroupLayout, Scales, stored_scales
from kvant.export.vllm.levels import Format
from kvant.packing.bits import packed_bits
from kvant.packing.groups import Groups

__all__ = ["CompressedLayout"]

_WIDE = {"int-quantized": "I8", "float-quantized": "F8_E4M3"}


@dataclass(frozen=True, slots=True)
class CompressedLayout(GroupLayout):
    """See the module."""

    format: Format

    def keeps_scales(self, grid: Groups) -> bool:
        """For the zero points, whose words hold those of several rows."""
        return grid.zero == "integer"

    def outs(self, piece: Piece, grid: Groups) -> Sequence[TensorOut]:
        """See the base."""
        path = piece.name.removesuffix(".weight")
        rows, columns = piece.weight.shape
        scales = TensorOut(f"{path}.weight_scale", grid.scale, (rows, columns // grid.block))
        if self.format != "pack-quantized":
            return [TensorOut(piece.name, _WIDE[self.format], (rows, columns)), scales]
        words = (rows, _words(columns, grid.bits))
        found = [TensorOut(f"{path}.weight_packed", "I32", words), scales]
        found.append(TensorOut(f"{path}.weight_shape", "I64", (2,)))
        if grid.zero == "integer":
            zeros = (_words(rows, grid.bits), columns // grid.block)
            found.append(TensorOut(f"{path}.weight_zero_point", "I32", zeros))
        return found

    def write(
        self, sink: Sink, piece: Piece, grid: Groups, start: int, codes: Codes, scales: Scales
    ) -> None:
        """See the base."""
        path = piece.name.removesuffix(".weight")
        if self.format == "pack-quantized":
            data = _streams(codes, grid.bits)
            sink.write(f"{path}.weight_packed", start * data.shape[1], data)
        else:
            wide = codes ^ np.uint8(128) if self.format == "int-quantized" else codes
            sink.write(piece.name, start * codes.shape[1], wide)
        stored = stored_scales(grid, scales["d"])
        at = start * stored.shape[1] * stored.itemsize
        sink.write(f"{path}.weight_scale", at, stored)

    def finish(self, sink: Sink, piece: Piece, grid: Groups, scales: Scales | None) -> None:
        """See the base."""
        if self.format != "pack-quantized":
            return
        path = piece.name.removesuffix(".weight")
        sink.write(f"{path}.weight_shape", 0, np.array(piece.weight.shape, "<i8"))
        if grid.zero == "integer":
            assert scales is not None
            zeros = _streams(np.ascontiguousarray(scales["z"].T).astype(np.uint8), grid.bits)
            words = np.ascontiguousarray(zeros).view("<u4").T
            sink.write(f"{path}.weight_zero_point", 0, np.ascontiguousarray(words))


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def _streams(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Rows of codes as whole words of 32 bits."""
    missing = -codes.shape[1] % (32 // bits)
    if missing:
        codes = np.pad(codes, ((0, 0), (0, missing)))
    return packed_bits(codes, bits)
