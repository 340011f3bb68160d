"""What a folder's tensors are made of: rows of the source's weights, as Hugging Face has numbers.

A *piece* is a matrix or vector of the source that becomes one stored tensor, or several when it is
quantised. Experts that a checkpoint keeps stacked are a piece each where a format stores them so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Checkpoint, Weight
from kvant.checkpoint.names import HfValues, hf_parts, hf_values
from kvant.checkpoint.transforms import OneLess, Transposed
from kvant.errors import DataError
from kvant.files.tensor import StoredTensor
from kvant.packing import BadWeight, convert_rows
from kvant.packing.types import BY_NAME

__all__ = ["Piece", "hf_pieces"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_WIDER = {"F16": "bfloat16", "BF16": "float32"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A weight, or one expert of it, under the name it gets.

    ``values`` says how the stored numbers differ from the canonical ones that ``weight`` gives.
    """

    name: str
    weight: Weight
    role: str
    layer: int | None
    expert: int | None = None
    values: HfValues = "as they are"

    @property
    def canonical(self) -> str:
        """The canonical name of the weight it belongs to."""
        return self.weight.name

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored."""
        shape = self.weight.shape
        return shape[::-1] if self.values == "transposed" and len(shape) == 2 else shape

    @property
    def rows(self) -> int:
        """Rows of the source that are read."""
        return self.weight.stored.rows

    @property
    def columns(self) -> int:
        """Weights in a row."""
        return self.weight.stored.row_length

    @property
    def row_step(self) -> int:
        """Rows that are read together."""
        return self.rows if self.values == "transposed" else self.weight.row_step

    @contextmanager
    def open(self) -> Iterator[int]:
        """Yields a descriptor for the reads."""
        with self.weight.open() as fd:
            yield fd

    def floats(self, fd: int, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop`` as they are stored, in float32 [stop - start, columns].

        Raises:
            DataError: NaN or infinity among them.
        """
        x = self.weight.read_rows_f32(fd, start, stop)
        return x - np.float32(1) if self.values == "one less" else x

    def bytes(self, fd: int, start: int, stop: int, dtype: str) -> Bytes:
        """The same as bytes of ``F32``, ``F16`` or ``BF16``; of a transposed piece all of it.

        Raises:
            DataError: NaN or infinity, or a weight beyond what the dtype holds.
        """
        if self.values == "one less":
            kind, rows = "F32", self.floats(fd, start, stop).view(np.uint8)
        else:
            kind = self.weight.stored.type.name
            rows = np.ascontiguousarray(self.weight.read_rows(fd, start, stop))
        try:
            if kind == dtype:
                convert_rows(kind, "F32", rows, self.columns)  # once it is known good, it is kept
                data = rows
            else:
                data = convert_rows(kind, dtype, rows, self.columns)
        except BadWeight as bad:
            raise self._bad(bad, start, dtype) from None
        if self.values == "transposed":
            size = BY_NAME[dtype].block_bytes
            elements = data.reshape(self.rows, self.columns, size)
            data = np.ascontiguousarray(elements.swapaxes(0, 1)).reshape(self.columns, -1)
        return data

    def _bad(self, bad: BadWeight, start: int, dtype: str) -> DataError:
        place = (
            f"{self.canonical} has the weight {bad.value:g} at [{start + bad.row}, {bad.column}]"
        )
        if np.isfinite(bad.value):
            return DataError(
                f"Tensor {place}, which {dtype} cannot hold. Write it with "
                f"--dtype {_WIDER.get(dtype, 'float32')}."
            )
        return DataError(
            f"Tensor {place}; the checkpoint is damaged or its training diverged. Nothing was "
            "written."
        )


def hf_pieces(checkpoint: Checkpoint) -> list[Piece]:
    """Every stored tensor of a Hugging Face folder of this model, in the graph's order."""
    arch = checkpoint.architecture.name
    found: list[Piece] = []
    for name, weight in checkpoint.weights.items():
        ref = checkpoint.graph.weights[name]
        values = hf_values(ref, arch)
        parts = hf_parts(ref, arch)
        if len(ref.shape) != 3:
            found.append(_piece(Piece(parts[0], weight, ref.role, ref.layer, None, values)))
            continue
        for expert, part in enumerate(parts):
            one = replace(weight, stored=weight.stored.matrix(expert))
            found.append(Piece(part, one, ref.role, ref.layer, expert, values))
    return found


def _piece(piece: Piece) -> Piece:
    """Where the source already stores the numbers so, its own bytes are read."""
    stored = piece.weight.stored
    base: StoredTensor | None = None
    if piece.values == "one less" and isinstance(stored, OneLess):
        base = stored.base
    if piece.values == "transposed" and isinstance(stored, Transposed):
        base = stored.base
    if base is None:
        return piece
    return replace(piece, weight=replace(piece.weight, stored=base), values="as they are")
