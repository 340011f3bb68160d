"""How MLX lays out a quantised matrix: ``weight``, ``scales`` and perhaps ``biases``.

Codes are a stream of bits in each row, lowest first, as words of 32 bits; scales and biases are in
the model's dtype, those of the float modes a byte each.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvant.export.pieces import Piece
from kvant.export.shards import Sink, TensorOut
from kvant.export.tensors import Codes, GroupLayout, Scales, stored_scales
from kvant.packing.bits import packed_bits
from kvant.packing.groups import Groups

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
