"""Where external data of a model may lie: regular files in the model's own folder.

The layout is ONNX's (docs/ExternalData.md): a tensor names a file relative to the model's folder,
an offset and a length. A hostile model can name any file of the reader, so everything is checked
before a byte is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from kvant.errors import FileFormatError, InputError
from kvant.files.source import open_source, quote
from kvant.onnxtools.packages import onnx

__all__ = [
    "bits_of",
    "check_external",
    "external_tensors",
    "load_external",
    "reference",
    "stored_bytes",
    "tensors",
]

_EXTERNAL = 1  # TensorProto.EXTERNAL
_NUMBER = re.compile(r"[0-9]{1,19}")  # int() would take signs, spaces and other scripts' digits


def tensors(proto: Any) -> Iterator[Any]:
    """Every tensor stored in a model: initializers and attributes, inner graphs included."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield sparse.values
                yield sparse.indices
            if attribute.HasField("g"):
                yield from _of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _of_graph(graph)


def external_tensors(proto: Any) -> list[Any]:
    """Those whose values lie in other files."""
    return [tensor for tensor in tensors(proto) if tensor.data_location == _EXTERNAL]


def bits_of(data_type: int, where: str) -> int:
    """Bits of an element.

    Raises:
        FileFormatError: ONNX has no such type; the message begins with ``where``.
    """
    package = onnx()
    small = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    try:
        label = package.TensorProto.DataType.Name(data_type)
        if label in small:
            return small[label]
        return 8 * int(package.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    except (KeyError, ValueError, TypeError):
        raise FileFormatError(f"{where} has type {data_type}, which ONNX does not have.") from None


def stored_bytes(tensor: Any, where: str) -> int:
    """Bytes that the values of ``tensor`` take, by its shape and type; raises as `bits_of`."""
    count: int = math.prod(tensor.dims)
    return -(-count * bits_of(tensor.data_type, where) // 8)


def check_external(proto: Any, path: Path) -> dict[Path, int]:
    """Check every reference to external data of the model at ``path``; reads no values.

    Returns:
        the files referred to, with the bytes that tensors take from each.

    Raises:
        FileFormatError: a reference leaves the folder, lies outside its file, or is of another
            length than its tensor.
        InputError: a file is missing or cannot be read.
    """
    taken: dict[Path, int] = {}
    sizes: dict[Path, int] = {}
    for tensor in external_tensors(proto):
        file, offset, length = reference(tensor, path)
        if file not in sizes:
            try:
                with open_source(file) as (_, size):
                    sizes[file] = size
            except InputError as error:
                raise type(error)(
                    f"{path}: external data of tensor {quote(tensor.name)}: {error}"
                ) from None
        where = f"{path}: tensor {quote(tensor.name)}"
        needed = stored_bytes(tensor, where)
        if length is None:
            length = needed
        if length != needed:
            raise FileFormatError(
                f"{where} of shape {list(tensor.dims)[:8]} needs {needed:,} bytes, its data have "
                f"{length:,}. The file is damaged; get it again."
            )
        if offset + length > sizes[file]:
            raise FileFormatError(
                f"{where} takes bytes {offset:,} to "
                f"{offset + length:,} of {file.name}, which has {sizes[file]:,}. One of the two "
                "files is truncated or not the other's; get both again."
            )
        taken[file] = taken.get(file, 0) + length
    return taken


def reference(tensor: Any, path: Path) -> tuple[Path, int, int | None]:
    """File, offset and length (None: what it needs) of external data, within the model's folder.

    Raises:
        FileFormatError: they leave it, or are no numbers.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    where = f"{path}: tensor {quote(tensor.name)} has its data in {quote(location)}"
    if not location or "\0" in location:
        raise FileFormatError(f"{where}, which is no file name. The file is damaged; get it again.")
    file = path.parent / location
    if Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
        raise FileFormatError(
            f"{where}, outside the model's folder. Expected a file beside the model; if you trust "
            "it, put the data there and save the model again with onnx."
        )
    numbers = [entries.get(key) or None for key in ("offset", "length")]
    if not all(text is None or _NUMBER.fullmatch(text) for text in numbers):
        raise FileFormatError(
            f"{where}, with offset {quote(entries.get('offset', ''))} and length "
            f"{quote(entries.get('length', ''))}; expected whole numbers from 0."
        )
    offset, length = (None if text is None else int(text) for text in numbers)
    return file, offset or 0, length


def load_external(proto: Any, path: Path, but: Container[str] = ()) -> None:
    """Read external data into the model; its references were checked before.

    Args:
        proto: the model.
        path: of its file.
        but: names of weights of the outermost graph that are left where they are.
    """
    for tensor in external_tensors(proto):
        if tensor.name in but:
            continue
        file, offset, _ = reference(tensor, path)
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(stored_bytes(tensor, str(path)))
        del tensor.external_data[:]
        tensor.data_location = 0
