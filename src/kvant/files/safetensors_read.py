"""Reading one safetensors file: a length, a JSON header, then the tensors without a hole.

Source: the format section of the safetensors README and the checks of its ``tensor.rs``; where
that allows the absurd (a header of 100 MB) the caps here are lower.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from kvant.errors import FileFormatError
from kvant.files.config_json import collector_paused, parse_json
from kvant.files.source import open_source, quote, read_exactly, refuse_other_kinds, show
from kvant.files.tensor import StoredTensor
from kvant.packing.types import BY_NAME

__all__ = [
    "BITS",
    "MAX_HEADER_BYTES",
    "OtherTensor",
    "SafetensorsFile",
    "read_safetensors",
]

#: A tensor takes about 120 bytes of header; the largest published shards have a few thousand.
MAX_HEADER_BYTES = 32_000_000
#: torch's limit for the number of dimensions.
MAX_DIMENSIONS = 64
#: The least the format can be: an empty object.
_LEAST_HEADER = 2

#: Bits of an element, in the order in which the field's writer sorts tensors (last first, so
#: that every tensor is aligned to its element).
BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_USABLE = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})
_DTYPE_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_AGAIN = "Fetch the file again."


class OtherTensor(NamedTuple):
    """A tensor that holds no weights as they are: of another dtype, or without elements.

    ``offset`` is where it begins in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """One file's header: what can be read, what cannot, and the free text."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    other: dict[str, OtherTensor]


@collector_paused()
def read_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Read and check the header of one file; no tensor data.

    Raises:
        FileFormatError: truncated, damaged or hostile.
        UnsupportedError: a pickle checkpoint or a model file of another kind.
        InputError: no such file, or it may not be read.
    """
    path = Path(path)
    with open_source(path) as (fd, size):
        head = read_exactly(fd, path, 0, min(64, size))
        length = int.from_bytes(head[:8], "little")
        if head[8:9] != b"{":
            refuse_other_kinds(path, head, "safetensors")
        if size < 8 + _LEAST_HEADER or not _LEAST_HEADER <= length <= size - 8:
            raise FileFormatError(
                f"{path}: the header claims {length} bytes, expected at least 2 and an end before "
                f"byte {size}, where the file ends. It is truncated or damaged; fetch it again."
            )
        if length > MAX_HEADER_BYTES:
            raise FileFormatError(
                f"{path}: the header takes {length} bytes, expected at most {MAX_HEADER_BYTES}; "
                f"no real model's takes more. {_AGAIN}"
            )
        if head[8:9] != b"{":
            raise FileFormatError(
                f"{path}: expected a safetensors header, which starts with '{{', got "
                f"{head[8:9]!r}. Check the path."
            )
        what = f"{path}: header"
        header = parse_json(read_exactly(fd, path, 8, length), what, MAX_HEADER_BYTES)
    assert isinstance(header, dict)  # it starts with a brace
    metadata = _metadata(path, header.pop("__metadata__", {}))
    entries = [_entry(path, name, info) for name, info in header.items()]
    _check_cover(path, entries, size - 8 - length)
    tensors: dict[str, StoredTensor] = {}
    other: dict[str, OtherTensor] = {}
    for name, dtype, shape, begin, end in entries:
        place = 8 + length + begin
        if dtype in _USABLE and end > begin:
            tensors[name] = StoredTensor(name, BY_NAME[dtype], tuple(shape), path, place)
        else:
            other[name] = OtherTensor(name, dtype, tuple(shape), path, place)
    return SafetensorsFile(path, tensors, metadata, other)


_Entry = tuple[str, str, list[int], int, int]
"""Name, dtype, shape, and where the data begin and end, counted from the end of the header."""


def _metadata(path: Path, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FileFormatError(
            f"{path}: __metadata__ should map texts to texts, got {show(value)}. {_AGAIN}"
        )
    return value


def _entry(path: Path, name: str, info: object) -> _Entry:
    """One entry of the header, checked. Headers of 70,000 must not take a second, so what is right
    passes by as few steps as there are things to check."""
    if name and isinstance(info, dict) and info.keys() == _FIELDS:
        dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
        if (
            isinstance(dtype, str)
            and _are_sizes(shape, MAX_DIMENSIONS)
            and _are_sizes(offsets, 2)
            and len(offsets) == 2
            and offsets[0] <= offsets[1]
            and 8 * (offsets[1] - offsets[0]) == math.prod(shape) * BITS.get(dtype, -1)
        ):
            return name, dtype, shape, offsets[0], offsets[1]
    return _doubtful(path, name, info)


def _doubtful(path: Path, name: str, info: object) -> _Entry:
    """An entry of a dtype that is not known, or what is wrong with it."""

    def fail(message: str) -> FileFormatError:
        return FileFormatError(f"{path}: tensor {quote(name)} {message}. {_AGAIN}")

    if not name:
        raise fail("has no name")
    if not isinstance(info, dict) or info.keys() != _FIELDS:
        raise fail(f"should have a dtype, a shape and data_offsets, got {show(info)}")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or not _DTYPE_NAME.fullmatch(dtype):
        raise fail(f"should have a dtype such as 'F16', got {show(dtype)}")
    if not _are_sizes(shape, MAX_DIMENSIONS):
        raise fail(
            f"should have a shape of at most {MAX_DIMENSIONS} sizes below 2^63, got {show(shape)}"
        )
    if not _are_sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(f"should have data_offsets [begin, end], got {show(offsets)}")
    begin, end = offsets
    # The size of a dtype that is not known cannot be checked; nobody will read the tensor.
    if dtype in BITS:
        bits = math.prod(shape) * BITS[dtype]
        raise fail(
            f"of shape {show(shape)} and dtype {dtype} takes {show(-(-bits // 8))} bytes, "
            f"its data_offsets say {end - begin}"
        )
    return name, dtype, shape, begin, end


def _are_sizes(value: object, most: int) -> bool:
    if type(value) is not list or len(value) > most:
        return False
    for n in value:  # noqa: SIM110 - all() with a generator takes three times as long
        # type() rather than isinstance(): true and false are no sizes.
        if type(n) is not int or not 0 <= n < 1 << 63:
            return False
    return True


def _check_cover(path: Path, entries: Iterable[_Entry], data_bytes: int) -> None:
    """The format allows no hole, no overlap and nothing after the last tensor."""
    position = 0
    for name, _, _, begin, end in sorted(entries, key=itemgetter(3, 4)):
        if begin != position:
            kind = "overlaps the one before it" if begin < position else "leaves a hole"
            raise FileFormatError(
                f"{path}: tensor {quote(name)} {kind}: expected to begin at {position}, "
                f"got {begin}. {_AGAIN}"
            )
        position = end
    if position > data_bytes:
        raise FileFormatError(
            f"{path}: the tensors take {position} bytes, the file has {data_bytes} for them. "
            "It is truncated; fetch it again."
        )
    if position < data_bytes:
        raise FileFormatError(
            f"{path}: {data_bytes - position} bytes follow the last tensor, expected none. {_AGAIN}"
        )
