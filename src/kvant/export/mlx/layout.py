"""How MLX lays out a quantised matrix: ``weight``, ``scales`` and perhaps ``biases``.

Codes are a stream of bits in each row, lowest first, as words of 32 bits; scales and biases are in
the model's dtype, those of the float modes a byte each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.export.pieces import Piece
from kvant.export.shards import Sink, TensorOut
from kvant.export.tensors import Codes, GroupLayout, Scales
from kvant.packing.bits import packed_bits
from kvant.packing.groups import Groups
from kvant.packing.half import float_to_bf16
from kvant.packing.small_floats import nearest_e4m3

__all__ = ["MlxLayout"]


class MlxLayout(GroupLayout):
    """See the module."""

    def outs(self, piece: Piece, grid: Groups) -> Sequence[TensorOut]:
        """See the base."""
        path = piece.name.removesuffix(".weight")
        *stack, columns = piece.weight.shape
        groups = (*stack, columns // grid.block)
        words = (*stack, columns * grid.bits // 32)
        found = [TensorOut(piece.name, "U32", words)]
        if grid.zero == "bias":
            found += [TensorOut(f"{path}.{n}", grid.scale, groups) for n in ("scales", "biases")]
        else:
            found.append(TensorOut(f"{path}.scales", "U8", groups))
        return found

    def write(
        self, sink: Sink, piece: Piece, grid: Groups, start: int, codes: Codes, scales: Scales
    ) -> None:
        """See the base."""
        path = piece.name.removesuffix(".weight")
        data = packed_bits(codes, grid.bits)
        sink.write(piece.name, start * data.shape[1], data)
        for name, values in (("scales", scales["d"]), ("biases", scales["z"])):
            if name == "biases" and grid.zero != "bias":
                continue
            stored = stored_scales(grid, values)
            sink.write(f"{path}.{name}", start * stored.shape[1] * stored.itemsize, stored)


def stored_scales(grid: Groups, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scales [rows, groups] as a file has them."""
    match grid.scale:
        case "BF16":
            return np.asarray(float_to_bf16(values).astype("<u2"))
        case "F16":
            return np.asarray(values.astype("<f2"))
        case "E4M3":
            return np.asarray(nearest_e4m3(values))
        case "E8M0":
            return np.asarray(np.frexp(values)[1] + 126).astype(np.uint8)
    return np.asarray(values.astype("<f4"))
