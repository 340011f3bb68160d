"""Weights stored in few bits and decoded by standard operators that are folded at loading.

Cast, Sub and Mul over constants: ONNX Runtime computes them once when it loads the model, so the
file is small and a run is as fast as in float. (A DequantizeLinear is never folded: it
decodes at every run.) Bits under eight are taken out of bytes by Div and Mod, which exist in every
opset, so an old model needs no conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.onnxtools.packages import onnx
from kvant.onnxtools.rows import Codes, Floats

__all__ = ["Decoder"]

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Decoder:
    """Makes the nodes that decode one weight.

    Args:
        stem: the beginning of names.
        bits: of a code: 8, 4 or 2.
        store: keeps an array as a constant of that name.
        nodes: where the nodes go.
    """

    stem: str
    bits: int
    store: Callable[[str, Array], None]
    nodes: list[Any]

    def _then(self, kind: str, *inputs: str, **more: int) -> str:
        output = f"{self.stem}_{kind.lower()}{len(self.nodes)}"
        self.nodes.append(onnx().helper.make_node(kind, list(inputs), [output], output, **more))
        return output

    def _constant(self, name: str, values: Array) -> str:
        full = f"{self.stem}_{name}"
        self.store(full, values)
        return full

    def blocks(
        self,
        packed: Codes,
        scales: Floats,
        zeros: Codes | None,
        shape: tuple[int, ...],
        first: int,
    ) -> str:
        """Weights in blocks along their rows; returns the name of the weight.

        Args:
            packed: codes, low bits first [rows, blocks, bytes].
            scales: [rows, blocks]
            zeros: [rows, blocks]; None: in the middle of the codes.
            shape: of the weight.
            first: its dimension that became rows; the others are columns, in order.
        """
        per, rows = 8 // self.bits, len(packed)
        codes = self.stem
        if self.bits == 8:
            self.store(self.stem, packed)
        else:
            self.store(self.stem, packed[..., None])
            places = np.asarray([2 ** (self.bits * i) for i in range(per)], np.int32)
            whole = self._cast(self.stem, 6)  # INT32
            moved = self._then("Div", whole, self._constant("places", places))
            top = self._constant("codes", np.asarray([2**self.bits], np.int32))
            wide = (*packed.shape[:2], packed.shape[2] * per)
            codes = self._shaped(self._then("Mod", moved, top), "blocks", wide)
        if zeros is None:
            zero = self._constant("zero", np.asarray([2 ** (self.bits - 1)], np.float32))
        else:
            zero = self._cast(self._constant("zeros", zeros[..., None]), 1)
        centred = self._then("Sub", self._cast(codes, 1), zero)
        values = self._then("Mul", centred, self._constant("scales", scales[..., None]))
        columns = int(np.prod(shape)) // rows
        width = packed.shape[1] * packed.shape[2] * per
        if width != columns:
            flat = self._shaped(values, "padded", (rows, width))
            ends = [self._constant(n, np.asarray([v], np.int64)) for n, v in _cut(columns)]
            values = self._then("Slice", flat, *ends)
        moved_shape = (rows, *(d for i, d in enumerate(shape) if i != first))
        values = self._shaped(values, "shape", moved_shape)
        if not first:
            return values
        output = f"{self.stem}_turned"
        order = [*range(1, first + 1), 0, *range(first + 1, len(shape))]
        make = onnx().helper.make_node
        self.nodes.append(make("Transpose", [values], [output], output, perm=order))
        return output

    def _cast(self, name: str, kind: int) -> str:
        return self._then("Cast", name, to=kind)

    def _shaped(self, name: str, label: str, shape: tuple[int, ...]) -> str:
        return self._then("Reshape", name, self._constant(label, np.asarray(shape, np.int64)))


def _cut(columns: int) -> list[tuple[str, int]]:
    return [("begin", 0), ("end", columns), ("axis", 1)]
