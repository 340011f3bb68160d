"""Opening an ONNX folder that kvant wrote: its graph's initializers are the weights.

Only kvant's own graphs say which initializer is which weight (in their metadata); graphs of other
tools are run by ONNX Runtime, and not read as weights.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.arch import find_hf
from kvant.checkpoint.checkpoint import Checkpoint
from kvant.checkpoint.info import info_from_folder
from kvant.checkpoint.kind import onnx_files
from kvant.checkpoint.pooling import folder_pooling
from kvant.checkpoint.quantised.onnx_blocks import (
    BlockTensor,
    ColumnTensor,
    bits_and_group,
)
from kvant.checkpoint.weights import Rotary, Weight
from kvant.errors import FileFormatError, InputError, MissingExtraError, UnsupportedError
from kvant.files.config_json import parse_json, read_json
from kvant.files.raw import RawTensor
from kvant.files.source import open_source, printable, quote
from kvant.files.tensor import StoredTensor
from kvant.graph.find import rotary_weights
from kvant.packing.types import BY_NAME

__all__ = ["COLUMNS_KEY", "DATA_FILE", "MODEL_FILE", "TENSORS_KEY", "onnx_weights", "open_onnx"]

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

TENSORS_KEY = "kvant.tensors"
"""Metadata of the graph: a JSON object, canonical name of a weight to its level or float type."""

COLUMNS_KEY = "kvant.columns"
"""The same, a JSON list: names of weights that lie [inputs, outputs]."""

_MOST_BYTES = 256_000_000
"""Of a graph without its weights; those of kvant take some 100 kB a layer."""
_FLOATS = {"FLOAT": "F32", "FLOAT16": "F16"}
_ITEM = {"F32": 4, "F16": 2}
_AGAIN = "Write it again."


def open_onnx(path: Path) -> Checkpoint:
    """Read config and graph, check them against each other; no weights are read.

    Args:
        path: the folder, or its ``model.onnx``.

    Raises:
        UnsupportedError: another tool wrote the graph.
        MissingExtraError: the onnx package is not installed.
        InputError (one of its kinds): what is missing or damaged.
    """
    folder = path.parent if path.suffix == ".onnx" else path
    graph_path = path if path.suffix == ".onnx" else folder / MODEL_FILE
    if not graph_path.exists() and (found := onnx_files(folder)):
        graph_path = found[0]
    header = _read(graph_path)
    config_path = folder / "config.json"
    if not config_path.exists():
        raise InputError(
            f"{folder}: has no config.json, so its weights cannot be read back; ONNX Runtime can "
            "still run it. Add the config.json of the model it was made from."
        )
    values = read_json(config_path)
    if not isinstance(values, dict):
        raise FileFormatError(f"{config_path}: expected a JSON object. Fetch the file again.")
    arch = find_hf(values, str(config_path))
    config, ignored = arch.from_hf(values, str(config_path))
    graph = arch.trace(config)
    shapes = {ref.name: ref.shape for ref in graph.weights.values()}
    heads = rotary_weights(graph)
    weights = {
        name: Weight(name, stored, Rotary(heads[name], "half") if name in heads else None)
        for name, stored in _weights(header, shapes).items()
    }
    parameters = sum(weight.stored.elements for weight in weights.values())
    levels = sorted({header.levels[name] for name in weights} - {"float32", "float16"})
    note = f"Weights of level {', '.join(levels)} are decoded; what that lost stays lost."
    return Checkpoint(
        path=folder,
        format="onnx",
        architecture=arch,
        config=config,
        graph=graph,
        weights=weights,
        info=info_from_folder(folder, values, parameters),
        files=(graph_path, header.data),
        ignored=tuple(ignored),
        notes=(note,) if levels else (),
        pooling=folder_pooling(folder),
    )


def onnx_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """The weights of a folder kvant wrote, by canonical name, given the shape of each.

    Raises:
        FileFormatError: the folder is damaged, or of another model.
        UnsupportedError: another tool wrote it.
        InputError: a file cannot be read.
    """
    return _weights(_read(folder / MODEL_FILE), shapes)


@dataclass(frozen=True, slots=True)
class _Place:
    """An initializer in the data file."""

    type: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Header:
    """What a graph says of its weights: level and place of each, those that lie by columns."""

    path: Path
    data: Path
    levels: Mapping[str, str]
    columns: frozenset[str]
    places: Mapping[str, _Place]


def _read(path: Path) -> _Header:
    model = _load(path)
    props = {p.key: p.value for p in model.metadata_props}
    if TENSORS_KEY not in props or COLUMNS_KEY not in props:
        raise UnsupportedError(
            f"{path}: another tool wrote this graph, so kvant does not know which weight is which. "
            "ONNX Runtime can run it; to convert it, get the model it was made from."
        )
    levels = parse_json(props[TENSORS_KEY].encode(), f"{path}, {TENSORS_KEY}", _MOST_BYTES)
    columns = parse_json(props[COLUMNS_KEY].encode(), f"{path}, {COLUMNS_KEY}", _MOST_BYTES)
    if not isinstance(levels, dict) or not isinstance(columns, list):
        raise FileFormatError(f"{path}: its {TENSORS_KEY} is damaged. {_AGAIN}")
    data = path.parent / DATA_FILE
    with open_source(data) as (_, size):
        pass
    names = model.graph.initializer
    places = {t.name: place for t in names if (place := _place(path, t, size)) is not None}
    said = {name: str(level) for name, level in levels.items()}
    return _Header(path, data, said, frozenset(map(str, columns)), places)


def _load(path: Path) -> Any:
    try:
        onnx = importlib.import_module("onnx")
    except ImportError:
        raise MissingExtraError(
            "Reading ONNX needs the package onnx, which is not installed. Install it with "
            "`pip install 'kvant[onnx]'`."
        ) from None
    with open_source(path) as (_, size):
        if size > _MOST_BYTES:
            raise UnsupportedError(
                f"{path}: has {size / 1e6:.0f} MB, expected a graph whose weights lie in a file "
                f"beside it, of at most {_MOST_BYTES / 1e6:.0f} MB. Another tool wrote it."
            )
    try:
        return onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own kinds, which are not importable by a stable name
        raise FileFormatError(
            f"{path}: is no ONNX model: {printable(str(error), 200)}. {_AGAIN}"
        ) from None


def _place(path: Path, tensor: Any, size: int) -> _Place | None:
    """Where an initializer lies; None for one that is in the graph itself."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    if not where:
        return None
    name = quote(tensor.name)
    if where.get("location") != DATA_FILE:
        raise FileFormatError(
            f"{path}: tensor {name} is said to lie in {quote(where.get('location', ''))}, expected "
            f"{DATA_FILE} beside the graph. {_AGAIN}"
        )
    try:
        offset, length = int(where.get("offset", "0")), int(where["length"])
    except (KeyError, ValueError):
        offset, length = -1, 0
    if offset < 0 or length < 0 or offset + length > size:
        raise FileFormatError(
            f"{path}: tensor {name} should lie within the {size} bytes of {DATA_FILE}, got another "
            f"place. The file was cut short, or is of another model. {_AGAIN}"
        )
    return _Place(_type_name(tensor.data_type), tuple(tensor.dims), offset, length)


def _type_name(number: int) -> str:
    tensor_proto = importlib.import_module("onnx").TensorProto
    try:
        return str(tensor_proto.DataType.Name(number))
    except ValueError:
        return str(number)


def _weights(header: _Header, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    if missing := next((name for name in shapes if name not in header.levels), None):
        raise FileFormatError(
            f"{header.path}: weight {missing!r} is missing, the config implies it. Config and "
            f"graph are not of one model. {_AGAIN}"
        )
    return {name: _weight(header, name, shape) for name, shape in shapes.items()}


def _weight(header: _Header, name: str, shape: tuple[int, ...]) -> StoredTensor:
    level = header.levels[name]
    coded = bits_and_group(level)
    if coded is None:
        return _floats(header, name, shape)
    bits, group, has_zeros = coded
    if len(shape) != 2:
        raise FileFormatError(f"{header.path}: weight {name!r} is no matrix, got {level}. {_AGAIN}")
    codes = _found(header, f"{name}.codes")
    # The runtime's blocks have three axes; one run of integers has the two of the weight.
    packed, turned = len(codes.shape) == 3, name in header.columns
    rows, columns = shape
    groups = -(-columns // group)

    def integers(part: str, width: int) -> RawTensor:
        each = -(-width * bits // 8)
        size = rows * each if packed else -(-rows * width * bits // 8)
        return _part(header, f"{name}.{part}", "U8", (rows, each) if packed else (size,), size)

    scales = (groups, rows) if turned else (rows, groups)
    return BlockTensor(
        name=name,
        type=BY_NAME["F32"],
        shape=shape,
        path=header.data,
        offset=codes.offset,
        origin=level,
        bits=bits,
        group=group,
        packed=packed,
        columnwise=turned,
        codes=integers("codes", groups * group if packed else columns),
        scales=_part(header, f"{name}.scales", "F16", scales, rows * groups * 2),
        zeros=integers("zeros", groups) if has_zeros else None,
    )


def _floats(header: _Header, name: str, shape: tuple[int, ...]) -> StoredTensor:
    place = _found(header, name)
    kind = _FLOATS.get(place.type)
    if kind is None:
        raise FileFormatError(
            f"{header.path}: weight {name!r} is {place.type}, expected one of "
            f"{', '.join(_FLOATS)}. {_AGAIN}"
        )
    size = math.prod(shape) * _ITEM[kind]
    if name in header.columns and len(shape) == 2:
        turned = _part(header, name, kind, shape[::-1], size)
        common = (name, BY_NAME["F32"], shape, header.data, place.offset, kind)
        return ColumnTensor(*common, turned)
    _part(header, name, kind, shape, size)
    return StoredTensor(name, BY_NAME[kind], shape, header.data, place.offset)


def _part(header: _Header, name: str, dtype: str, shape: tuple[int, ...], size: int) -> RawTensor:
    place = _found(header, name)
    if place.length != size or (dtype in _ITEM and _FLOATS.get(place.type) != dtype):
        raise FileFormatError(
            f"{header.path}: tensor {name!r} should have {size} bytes, got {place.length} of type "
            f"{place.type}. Config and graph are not of one model. {_AGAIN}"
        )
    return RawTensor(name, dtype, shape, header.data, place.offset)


def _found(header: _Header, name: str) -> _Place:
    if name not in header.places:
        raise FileFormatError(
            f"{header.path}: tensor {name!r} is missing, the config implies it. {_AGAIN}"
        )
    return header.places[name]
