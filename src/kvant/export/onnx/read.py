"""What the weights of a folder stand for: the checkpoint it was made of, with the folder's numbers.

The reference for everything that runs such a folder: ``dequantised(checkpoint, folder)`` is a
checkpoint like any other (the interpreter and the evaluation take it), whose weights are decoded
from the data file, row by row, when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Checkpoint, Weight
from kvant.errors import FileFormatError, InputError
from kvant.export.onnx.levels import grid
from kvant.export.onnx.model import DATA_FILE, MODEL_FILE
from kvant.export.onnx.package import onnx_package
from kvant.export.onnx.plan import COLUMNS_KEY, TENSORS_KEY
from kvant.files.decoded import DecodedTensor
from kvant.files.raw import unpacked
from kvant.packing.groups import GROUP_SCALES, Groups
from kvant.packing.types import BY_NAME

__all__ = ["dequantised"]

Floats = npt.NDArray[np.float32]
_FLOATS: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype("<f4"), "FLOAT16": np.dtype("<f2")}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an initializer lies: name of its type, shape, offset in the data file."""

    kind: str
    shape: tuple[int, ...]
    offset: int


def dequantised(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """``checkpoint`` with the weights that the ONNX folder made from it stands for.

    Raises:
        FileFormatError: the folder is damaged, or of another model.
        InputError: a file cannot be read.
    """
    levels, columns, places = _header(folder / MODEL_FILE)
    if set(levels) != set(checkpoint.weights):
        raise FileFormatError(
            f"{folder}: expected the weights of {checkpoint.path}, got {len(levels)} that are not "
            "the same. Name the model it was made from."
        )
    data = folder / DATA_FILE
    weights = {
        name: Weight(name, _tensor(name, weight.shape, levels[name], name in columns, places, data))
        for name, weight in checkpoint.weights.items()
    }
    return replace(checkpoint, path=folder, weights=weights)


def _header(path: Path) -> tuple[dict[str, str], set[str], dict[str, _Place]]:
    onnx = onnx_package()
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None
    except Exception as error:  # protobuf's own kinds, which are not importable by a stable name
        raise FileFormatError(f"{path}: no ONNX model: {error}. Write it again.") from None
    props = {p.key: p.value for p in model.metadata_props}
    if TENSORS_KEY not in props:
        raise FileFormatError(
            f"{path}: expected a graph that kvant wrote, got one without {TENSORS_KEY!r}."
        )
    places = {}
    for tensor in model.graph.initializer:
        where = {e.key: e.value for e in tensor.external_data}
        if where:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type)
            places[tensor.name] = _Place(kind, tuple(tensor.dims), int(where["offset"]))
    return json.loads(props[TENSORS_KEY]), set(json.loads(props[COLUMNS_KEY])), places


def _tensor(
    name: str,
    shape: tuple[int, ...],
    level: str,
    columnwise: bool,
    places: Mapping[str, _Place],
    data: Path,
) -> DecodedTensor:
    common: dict[str, Any] = {"name": name, "type": BY_NAME["F32"], "shape": shape, "path": data}
    common |= {"offset": 0, "origin": level, "columnwise": columnwise}
    if name in places:
        return _FloatTensor(**common, place=places[name])
    parts = [places.get(f"{name}.{part}") for part in ("codes", "scales", "zeros")]
    codes, scales, zeros = parts
    if codes is None or scales is None:
        raise FileFormatError(f"{data.parent}: weight {name!r} is missing. Write it again.")
    return _BlockTensor(**common, grid=grid(level), codes=codes, scales=scales, zeros=zeros)


@dataclass(frozen=True, slots=True)
class _FloatTensor(DecodedTensor):
    place: _Place
    columnwise: bool

    def decode(self, start: int, stop: int) -> Floats:
        """See the base."""
        kind = _FLOATS[self.place.kind]
        values: npt.NDArray[Any] = np.memmap(
            self.path, kind, "r", self.place.offset, (self.elements,)
        )
        if self.columnwise:
            found = values.reshape(self.shape[1], self.shape[0])[:, start:stop].T
        else:
            found = values.reshape(self.rows, self.row_length)[start:stop]
        return np.ascontiguousarray(found, np.float32)


@dataclass(frozen=True, slots=True)
class _BlockTensor(DecodedTensor):
    grid: Groups
    codes: _Place
    scales: _Place
    zeros: _Place | None
    columnwise: bool

    def decode(self, start: int, stop: int) -> Floats:
        """See the base."""
        g, columns = self.grid, self.row_length
        count = -(-columns // g.block)
        if len(self.codes.shape) == 3:  # MatMulNBits
            codes = self._packed_rows(self.codes, count * g.block, start, stop)
            d = self._floats(start, stop, count)
            z = None if self.zeros is None else self._packed_rows(self.zeros, count, start, stop)
        else:
            codes = self._run(self.codes, columns, start, stop)
            d = self._floats(start, stop, count)
            z = None
            if self.zeros is not None:
                z = self._run(self.zeros, count, start, stop)
            else:
                codes = codes ^ np.uint8(g.middle)
            codes = np.pad(codes, ((0, 0), (0, count * g.block - columns)))
        scales = np.empty(d.shape, GROUP_SCALES)
        scales["d"], scales["z"] = d, g.middle if z is None else z
        values = g.decode(codes.reshape(-1, g.block), scales.reshape(-1))
        return np.ascontiguousarray(values.reshape(stop - start, -1)[:, :columns])

    def _map(self, place: _Place, kind: str, count: int) -> npt.NDArray[Any]:
        return np.memmap(self.path, kind, "r", place.offset, (count,))

    def _packed_rows(self, place: _Place, width: int, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows that are packed each by itself."""
        each = -(-width * self.grid.bits // 8)
        data = self._map(place, "u1", each * self.rows).reshape(self.rows, each)[start:stop]
        return unpacked(np.ascontiguousarray(data), self.grid.bits, width)

    def _run(self, place: _Place, width: int, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows of a matrix that is packed as one run."""
        bits, total = self.grid.bits, self.rows * width
        data = self._map(place, "u1", -(-total * bits // 8))
        if self.columnwise:
            each, first = self.rows * bits // 8, start * bits // 8
            part = data.reshape(width, each)[:, first : -(-stop * bits // 8)]
            skip = start - first * 8 // bits
            found = unpacked(np.ascontiguousarray(part), bits, part.shape[1] * 8 // bits)
            return np.ascontiguousarray(found[:, skip : skip + stop - start].T)
        first, last = start * width * bits // 8, -(-stop * width * bits // 8)
        skip = start * width - first * 8 // bits
        part = unpacked(np.ascontiguousarray(data[first:last]), bits, (last - first) * 8 // bits)
        return part[skip : skip + (stop - start) * width].reshape(stop - start, width)

    def _floats(self, start: int, stop: int, count: int) -> npt.NDArray[Any]:
        halves = self._map(self.scales, "<f2", self.rows * count)
        if self.columnwise:
            return halves.reshape(count, self.rows)[:, start:stop].T.astype(np.float32)
        return halves.reshape(self.rows, count)[start:stop].astype(np.float32)
