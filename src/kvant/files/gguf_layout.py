"""What a GGUF file that could be read still has wrong with its layout, for ``kvant verify``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kvant.files.gguf_file import GgufFile
from kvant.files.gguf_write import LLAMA_CPP_NAME_BYTES, padded
from kvant.files.source import open_source, quote, read_exactly
from kvant.files.tensor import StoredTensor

__all__ = ["Finding", "check_layout"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a file's layout.

    ``kind`` is a short word for programs: name, alignment, overlap, order, gap, padding, end or
    trailing. ``serious`` says that llama.cpp refuses the file or reads it otherwise than meant;
    the rest is untidy.
    """

    path: Path
    kind: str
    serious: bool
    message: str


def check_layout(file: GgufFile) -> list[Finding]:
    """Look for what the specification forbids or llama.cpp refuses, in file order.

    An empty list means that the layout is what llama.cpp's own writer makes. The bytes between
    tensors are read, not the tensors.

    Args:
        file: as read by ``read_gguf`` or ``read_gguf_split``; shards are checked one by one.
    """
    parts = file.parts or (file,)
    return [finding for part in parts for finding in _check(part)]


def _check(file: GgufFile) -> Iterator[Finding]:
    def found(kind: str, message: str, serious: bool = False) -> Finding:
        return Finding(file.path, kind, serious, message)

    alignment = file.alignment
    listed = list(file.tensors.values())
    for tensor in listed:
        name = quote(tensor.name)
        if len(tensor.name.encode()) > LLAMA_CPP_NAME_BYTES:
            yield found(
                "name", f"tensor name {name} is over {LLAMA_CPP_NAME_BYTES} bytes long", True
            )
        if (tensor.offset - file.data_offset) % alignment:
            yield found("alignment", f"tensor {name} is not aligned to {alignment} bytes", True)
    tensors = sorted(listed, key=lambda t: t.offset)
    if tensors != listed:
        yield found("order", "the tensors' data are in another order than their entries", True)
    if tensors and tensors[0].offset != file.data_offset:
        skipped = tensors[0].offset - file.data_offset
        yield found("gap", f"{skipped} bytes at the start of the data belong to no tensor", True)
    for before, after in pairwise(tensors):
        end = before.offset + before.nbytes
        gap = after.offset - padded(end - file.data_offset, alignment) - file.data_offset
        where = f"between tensors {quote(before.name)} and {quote(after.name)}"
        if end > after.offset:
            yield found("overlap", f"bytes are shared {where}", True)
        elif gap > 0:
            yield found("gap", f"{gap} bytes {where} belong to no tensor", True)
    yield from _check_bytes(file, tensors)


def _check_bytes(file: GgufFile, tensors: list[StoredTensor]) -> Iterator[Finding]:
    """The padding's content, and how the file ends."""
    stop = file.data_offset
    with open_source(file.path) as (fd, size):
        for tensor in tensors:
            end = tensor.offset + tensor.nbytes
            stop = padded(end - file.data_offset, file.alignment) + file.data_offset
            padding = read_exactly(fd, file.path, end, max(0, min(stop, size) - end))
            if padding.count(0) != len(padding):
                message = f"the padding after tensor {quote(tensor.name)} is not zero"
                yield Finding(file.path, "padding", False, message)
    if tensors and size < stop:
        message = f"the padding after the last tensor lacks {stop - size} bytes"
        yield Finding(file.path, "end", False, message)
    if size > stop:
        message = f"{size - stop} bytes follow the last tensor"
        yield Finding(file.path, "trailing", False, message)
