"""Writing a safetensors file, byte for byte as the field's own writer does.

Source: ``prepare`` in safetensors' ``tensor.rs``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy.typing as npt

from kvant.files.atomic import AtomicFile
from kvant.files.safetensors_read import BITS

__all__ = ["header_bytes", "write_safetensors"]

_RANK = {name: i for i, name in enumerate(BITS)}
_OF_NUMPY = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def header_bytes(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The bytes of a file before its data, for writers that stream it.

    Tensors are sorted as the field's writer sorts them: by dtype, wide ones first, then by name.

    Args:
        tensors: name, dtype as the format calls it, shape.
        metadata: free text.

    Returns:
        The header, a multiple of 8 bytes long, and for each name where in the file its data
        begin and end, in file order.

    Raises:
        ValueError: a name twice or empty, an unknown dtype, or not a whole number of bytes.
    """
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    places: dict[str, tuple[int, int]] = {}
    position = 0
    for name, dtype, shape in sorted(tensors, key=lambda t: (-_RANK[t[1]], t[0])):
        size, rest = divmod(math.prod(shape) * BITS[dtype], 8)
        if rest or not name or name in header or name == "__metadata__":
            raise ValueError(f"tensor {name!r}: name or size cannot be stored")
        places[name] = (position, position + size)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": places[name]}
        position += size
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    start = 8 + len(raw)
    return len(raw).to_bytes(8, "little") + raw, {
        name: (start + begin, start + end) for name, (begin, end) in places.items()
    }


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    bf16: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    sync: bool = True,
) -> None:
    """Write one file, atomically; the same tensors give the same bytes in any order.

    Args:
        path: the file to make.
        tensors: name to array, of any float, integer or bool dtype numpy has.
        bf16: names of uint16 arrays that hold the bits of bfloat16 numbers.
        metadata: free text; the field writes ``{"format": "pt"}``.
        force: replace an existing file.
        sync: see ``AtomicFile``.

    Raises:
        OutputError: the file exists, or there is no space or permission.
        ValueError: a dtype the format does not have.
    """
    specs: list[tuple[str, str, tuple[int, ...]]] = []
    for name, values in tensors.items():
        dtype = _OF_NUMPY.get(values.dtype.name)
        if name in bf16:
            dtype = "BF16" if dtype == "U16" else None
        if dtype is None:
            raise ValueError(f"tensor {name!r}: numpy's {values.dtype} cannot be stored")
        specs.append((name, dtype, values.shape))
    header, places = header_bytes(specs, metadata)
    total = max((end for _, end in places.values()), default=len(header))
    with AtomicFile(path, force=force, size=total, sync=sync) as file:
        file.write(header)
        for name in places:
            values = tensors[name]
            file.write(values.astype(values.dtype.newbyteorder("<"), copy=False))
