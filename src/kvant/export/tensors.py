"""How a piece of the source becomes tensors of the output: as floats, or quantised in groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.export.pieces import Piece
from kvant.export.shards import Sink, TensorOut
from kvant.export.work import Job
from kvant.packing.groups import Groups, ScaleType
from kvant.packing.half import float_to_bf16
from kvant.packing.quantise_groups import quantise_groups
from kvant.packing.small_floats import nearest_e4m3
from kvant.packing.types import BY_NAME

__all__ = [
    "DTYPES",
    "FloatTensor",
    "GroupLayout",
    "GroupTensor",
    "OutTensor",
    "scale_type",
    "stored_scales",
]

Codes = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Names of dtypes for people to those of safetensors."""

_SCALES: tuple[ScaleType, ...] = ("F32", "F16", "BF16")


class OutTensor(ABC):
    """One piece on its way."""

    piece: Piece

    @property
    @abstractmethod
    def level(self) -> str:
        """What it is stored as, for reports."""

    @property
    @abstractmethod
    def outs(self) -> Sequence[TensorOut]:
        """The tensors it becomes."""

    @abstractmethod
    def job(self, sink: Sink) -> Job:
        """What fills them."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(out.nbytes for out in self.outs)


@dataclass(frozen=True, slots=True)
class FloatTensor(OutTensor):
    """Stored as ``F32``, ``F16`` or ``BF16``."""

    piece: Piece
    dtype: str

    @property
    def level(self) -> str:
        """See the base."""
        return self.dtype

    @property
    def outs(self) -> Sequence[TensorOut]:
        """See the base."""
        return (TensorOut(self.piece.name, self.dtype, self.piece.shape),)

    def job(self, sink: Sink) -> Job:
        """See the base."""
        piece = self.piece
        width = piece.columns * BY_NAME[self.dtype].block_bytes

        def convert(fd: int, start: int, stop: int) -> None:
            sink.write(piece.name, start * width, piece.bytes(fd, start, stop, self.dtype))

        return Job(piece, convert)


class GroupLayout(ABC):
    """How codes and scales of one matrix lie in a format's tensors."""

    @abstractmethod
    def outs(self, piece: Piece, grid: Groups) -> Sequence[TensorOut]:
        """The tensors."""

    @abstractmethod
    def write(
        self, sink: Sink, piece: Piece, grid: Groups, start: int, codes: Codes, scales: Scales
    ) -> None:
        """Put rows from ``start`` on: codes uint8 [rows, columns], scales [rows, groups]."""

    def finish(self, sink: Sink, piece: Piece, grid: Groups, scales: Scales | None) -> None:
        """Put what is known when all rows are done; ``scales`` are of all rows where the layout
        asks to keep them."""
        return

    def keeps_scales(self, grid: Groups) -> bool:
        """Whether `finish` needs the scales of all rows."""
        return False


@dataclass(frozen=True, slots=True)
class GroupTensor(OutTensor):
    """Quantised on a grid of groups.

    ``importance`` float32 [columns], or of a stack [experts, columns], weighs errors of a search;
    ``plain`` takes the format's own formula instead.
    """

    piece: Piece
    grid: Groups
    layout: GroupLayout
    named: str
    importance: Floats | None = None
    plain: bool = True

    @property
    def level(self) -> str:
        """See the base."""
        return self.named

    @property
    def outs(self) -> Sequence[TensorOut]:
        """See the base."""
        return self.layout.outs(self.piece, self.grid)

    def job(self, sink: Sink) -> Job:
        """See the base."""
        piece, grid, layout = self.piece, self.grid, self.layout
        keeps = layout.keeps_scales(grid)
        kept: dict[int, Scales] = {}  # by first row; only while this piece is worked on

        def convert(fd: int, start: int, stop: int) -> None:
            x = piece.floats(fd, start, stop)
            for first, last, importance in self._parts(start, stop):
                rows = x[first - start : last - start]
                codes, scales = quantise_groups(grid, rows, importance, plain=self.plain)
                if keeps:
                    kept[first] = scales
                layout.write(sink, piece, grid, first, codes, scales)

        def finish() -> None:
            scales = np.concatenate([kept.pop(first) for first in sorted(kept)]) if keeps else None
            layout.finish(sink, piece, grid, scales)

        return Job(piece, convert, finish)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, Floats | None]]:
        """Cuts of rows that have one importance: each expert of a stack has its own."""
        known = self.importance
        if known is None or known.ndim == 1:
            yield start, stop, known
            return
        each = self.piece.rows // len(known)
        while start < stop:
            last = min(stop, (start // each + 1) * each)
            yield start, last, known[start // each]
            start = last

    def put(self, sink: Sink, codes: Codes, scales: Scales) -> None:
        """Codes and scales of the whole piece that were chosen elsewhere."""
        self.layout.write(sink, self.piece, self.grid, 0, codes, scales)
        kept = scales if self.layout.keeps_scales(self.grid) else None
        self.layout.finish(sink, self.piece, self.grid, kept)


def scale_type(dtype: str) -> ScaleType:
    """The type of scales in a model of ``F32``, ``F16`` or ``BF16``."""
    for known in _SCALES:
        if known == dtype:
            return known
    raise ValueError(dtype)


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
