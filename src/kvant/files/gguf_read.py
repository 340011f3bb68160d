"""Reading one GGUF file's header: versions 2 and 3, little-endian.

What may be claimed is bounded here and in ``gguf_window.py``; what is claimed beyond the file's
end is refused before anything is allocated.

Source: the GGUF specification (ggml's ``docs/gguf.md``) and the checks of ``ggml/src/gguf.cpp``.
"""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import UnsupportedError
from kvant.files.gguf_file import GgufFile
from kvant.files.gguf_value import ITEM_DTYPES, Value, ValueType
from kvant.files.gguf_window import AGAIN, MAX_HEADER_BYTES, MAX_STRING_BYTES, MAX_STRINGS, Window
from kvant.files.source import open_source, quote, refuse_other_kinds, show
from kvant.files.tensor import StoredTensor
from kvant.packing.types import BY_ID

__all__ = [
    "DEFAULT_ALIGNMENT",
    "MAX_ALIGNMENT",
    "MAX_DIMENSIONS",
    "MAX_HEADER_BYTES",
    "MAX_METADATA",
    "MAX_STRINGS",
    "MAX_STRING_BYTES",
    "MAX_TENSORS",
    "read_gguf",
]

DEFAULT_ALIGNMENT = 32
#: ggml's GGML_MAX_DIMS.
MAX_DIMENSIONS = 4
#: Alignments in the field are 32, now and then a page; above a megabyte it is an attack.
MAX_ALIGNMENT = 1 << 20
#: The specification's limit for keys.
MAX_KEY_BYTES = 65_535
#: The specification says 64 for tensor names; forks went to 128.
MAX_NAME_BYTES = 1_024
#: Models have a few thousand tensors (experts are stacked) and some hundred keys.
MAX_TENSORS = 50_000
MAX_METADATA = 20_000

#: The least bytes of a key and value (lengths, a letter, a type, a byte) and of a tensor's entry.
_LEAST_METADATA = 8 + 1 + 4 + 1
_LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<B"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_TYPES = {int(t): t for t in ValueType}
#: Q4_2, Q4_3, and the types repacked for ARM: gone from ggml, their numbers are not used again.
_DROPPED_TYPES = frozenset({4, 5, 31, 32, 33, 36, 37, 38})
_BEFORE_GGUF = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read the header of one GGUF file; no tensor data.

    A shard of a split model is read as the part it is; see ``read_gguf_split``.

    Raises:
        FileFormatError: truncated, damaged or hostile.
        UnsupportedError: well-formed, but big-endian, of version 1, with a tensor type that is
            not known, or a model file of another kind.
        InputError: no such file, or it may not be read.
    """
    path = Path(path)
    with open_source(path) as (fd, size):
        window = Window(fd, path, size)
        version = _read_version(window)
        tensor_count, metadata_count = _read_counts(window)
        metadata = _read_metadata(window, metadata_count)
        alignment = _alignment(window, metadata)
        entries = [_read_tensor(window, i) for i in range(tensor_count)]
    data_offset = -(-window.offset // alignment) * alignment
    return GgufFile(
        path=path,
        version=version,
        alignment=alignment,
        metadata=metadata,
        tensors=_place(window, entries, data_offset, alignment),
        data_offset=data_offset,
        size=size,
    )


def _read_version(window: Window) -> int:
    head = window.peek(64)
    if head[:4] != b"GGUF":
        refuse_other_kinds(window.path, head, "GGUF")
        if head[:4] == b"FUGG":
            raise _big_endian(window)
        if old := _BEFORE_GGUF.get(head[:4]):
            raise UnsupportedError(
                f"{window.path}: expected GGUF version 2 or 3, got its predecessor {old} of 2023. "
                "Convert the original model instead."
            )
        raise window.fail(
            f"expected a GGUF file, which starts with 'GGUF', got {head[:4]!r}. Check the path."
        )
    window.take(4, "the magic")
    version: int = window.number(_U32, "the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        raise _big_endian(window)
    if version == 1:
        raise UnsupportedError(
            f"{window.path}: expected GGUF version 2 or 3, got 1, which was in use for weeks in "
            "2023. Convert the original model instead."
        )
    raise UnsupportedError(
        f"{window.path}: expected GGUF version 2 or 3, got {version}. "
        "The file is damaged, or newer than this kvant: update kvant or fetch the file again."
    )


def _big_endian(window: Window) -> UnsupportedError:
    return UnsupportedError(
        f"{window.path}: expected a little-endian GGUF file, got a big-endian one. "
        "Turn it round with gguf-convert-endian (Python package gguf)."
    )


def _read_counts(window: Window) -> tuple[int, int]:
    tensor_count: int = window.number(_U64, "the number of tensors")
    metadata_count: int = window.number(_U64, "the number of metadata keys")
    for count, most, least, what in (
        (tensor_count, MAX_TENSORS, _LEAST_TENSOR, "tensors"),
        (metadata_count, MAX_METADATA, _LEAST_METADATA, "metadata keys"),
    ):
        if count > most or count * least > window.left:
            raise window.fail(
                f"the header claims {count} {what}, expected at most "
                f"{min(most, window.left // least)} in a file of {window.size} bytes. {AGAIN}"
            )
    return tensor_count, metadata_count


def _read_metadata(window: Window, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for i in range(count):
        key = window.text(f"metadata key {i}", MAX_KEY_BYTES)
        if not key:
            raise window.fail(f"metadata key {i} is empty, expected a name. {AGAIN}")
        if key in metadata:
            raise window.fail(f"metadata key {quote(key)} occurs twice. {AGAIN}")
        metadata[key] = _read_value(window, f"metadata {quote(key)}")
    return metadata


def _read_type(window: Window, what: str) -> ValueType:
    number = window.number(_U32, what)
    kind = _TYPES.get(number)
    if kind is None:
        raise window.fail(f"{what} has value type {number}, expected 0 to 12. {AGAIN}")
    return kind


def _read_value(window: Window, what: str) -> Value:
    kind = _read_type(window, what)
    if kind is ValueType.ARRAY:
        return _read_array(window, what)
    if kind is ValueType.STRING:
        return Value(kind, window.text(what))
    value = window.number(_SCALARS[kind], what)
    if kind is ValueType.BOOL:
        if value > 1:
            raise window.fail(f"{what} is a bool of byte {value}, expected 0 or 1. {AGAIN}")
        value = bool(value)
    return Value(kind, value)


def _read_array(window: Window, what: str) -> Value:
    kind = _read_type(window, what)
    count = window.number(_U64, what)
    if kind is ValueType.ARRAY:
        raise UnsupportedError(
            f"{window.path}: {what} is an array of arrays, which neither llama.cpp nor kvant "
            "reads. Remove the key with gguf-new-metadata (Python package gguf)."
        )
    least = 8 if kind is ValueType.STRING else ITEM_DTYPES[kind].itemsize
    if count * least > window.left:
        raise window.fail(
            f"{what} claims {count} items of at least {least} bytes, {window.left} bytes are "
            "left. The file is truncated or damaged; fetch it again."
        )
    if kind is ValueType.STRING:
        return Value(ValueType.ARRAY, window.texts(count, what), kind)
    raw = window.take(count * least, what)
    items: npt.NDArray[Any] = np.frombuffer(
        raw, np.uint8 if kind is ValueType.BOOL else ITEM_DTYPES[kind]
    )
    if kind is ValueType.BOOL:
        if count and items.max() > 1:
            raise window.fail(
                f"{what} holds a bool of byte {items.max()}, expected 0 or 1. {AGAIN}"
            )
        items = items.view(np.bool_)
    return Value(ValueType.ARRAY, items, kind)


def _alignment(window: Window, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    number = value.value
    if (
        value.type is not ValueType.UINT32
        or not isinstance(number, int)
        or not 8 <= number <= MAX_ALIGNMENT
        or number & (number - 1)
    ):
        raise window.fail(
            "general.alignment should be a uint32 power of two from 8 to "
            f"{MAX_ALIGNMENT}, got {show(number)} ({value.type.name.lower()}). {AGAIN}"
        )
    return number


def _read_tensor(window: Window, index: int) -> StoredTensor:
    """One tensor's entry; ``offset`` is still relative to the data section."""
    name = window.text(f"the name of tensor {index}", MAX_NAME_BYTES)
    if not name:
        raise window.fail(f"the name of tensor {index} is empty. {AGAIN}")
    what = f"tensor {quote(name)}"
    rank = window.number(_U32, what)
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise window.fail(f"{what} has {rank} dimensions, expected 1 to {MAX_DIMENSIONS}. {AGAIN}")
    raw = window.take(8 * rank + 12, what)
    *dimensions, type_id, offset = struct.unpack(f"<{rank}QIQ", raw)
    # ggml lists the row length first; kvant's shapes are row-major.
    shape = tuple(reversed(dimensions))
    storage = BY_ID.get(type_id)
    if storage is None:
        raise UnsupportedError(
            f"{window.path}: {what} has ggml type {type_id}, which "
            + (
                "llama.cpp has dropped. Quantise the original model again."
                if type_id in _DROPPED_TYPES
                else "kvant does not know. Update kvant, or fetch the file again."
            )
        )
    if 0 in shape:
        raise window.fail(f"{what} has shape {shape}, expected no zero. {AGAIN}")
    if shape[-1] % storage.block:
        raise window.fail(
            f"{what} has rows of {shape[-1]} elements, expected a multiple of "
            f"{storage.name}'s block of {storage.block}. {AGAIN}"
        )
    return StoredTensor(name, storage, shape, window.path, offset)


def _place(
    window: Window, entries: list[StoredTensor], data_offset: int, alignment: int
) -> dict[str, StoredTensor]:
    """Check where the tensors' data lie and make the offsets absolute."""
    tensors: dict[str, StoredTensor] = {}
    for entry in entries:
        what = f"tensor {quote(entry.name)}"
        if entry.name in tensors:
            raise window.fail(f"{what} occurs twice. {AGAIN}")
        if entry.offset % alignment:
            raise window.fail(
                f"{what} lies at {entry.offset}, expected a multiple of the alignment "
                f"{alignment}. {AGAIN}"
            )
        start = data_offset + entry.offset
        if start + entry.nbytes > window.size:
            raise window.fail(
                f"{what} ends at byte {start + entry.nbytes}, the file at {window.size}. "
                "It is truncated or damaged; fetch it again."
            )
        tensors[entry.name] = StoredTensor(entry.name, entry.type, entry.shape, entry.path, start)
    by_offset = sorted(tensors.values(), key=lambda t: t.offset)
    for before, after in pairwise(by_offset):
        if before.offset + before.nbytes > after.offset:
            raise window.fail(
                f"tensors {quote(before.name)} and {quote(after.name)} overlap. {AGAIN}"
            )
    return tensors
