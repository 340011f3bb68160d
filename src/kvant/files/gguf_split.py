"""A GGUF model split over several files, ``NAME-00001-of-00003.gguf``, seen as one.

Source: llama.cpp's ``llama_split_path`` and the keys its ``gguf-split`` writes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from kvant.errors import FileFormatError
from kvant.files.gguf_file import GgufFile
from kvant.files.gguf_read import read_gguf
from kvant.files.gguf_value import Value
from kvant.files.source import quote
from kvant.files.tensor import StoredTensor

__all__ = ["MAX_SHARDS", "read_gguf_split", "split_name", "split_stem"]

#: ``split.count`` is a uint16.
MAX_SHARDS = 65_535

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
#: Keys that each shard has for itself.
_OWN = frozenset(
    {
        *("split.no", "split.count", "split.tensors.count", "general.alignment"),
        "kvant.tensor.xxh64",
    }
)
_REMEDY = "Fetch all shards of one release, under the names they were published with."


def split_name(stem: str, number: int, count: int) -> str:
    """The file name of shard ``number`` (counted from 0) of ``count``."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def split_stem(name: str) -> str:
    """What a file name is called without its number among shards and ``.gguf``."""
    match = _NAME.fullmatch(name)
    return match["stem"] if match else name.removesuffix(".gguf")


def read_gguf_split(path: str | os.PathLike[str]) -> GgufFile:
    """Read a GGUF file with all shards it belongs to, as one.

    ``path`` may be any of the shards; the others are looked for beside it. A file that is not
    split is returned as ``read_gguf`` returns it.

    Raises:
        FileFormatError: a shard is missing, or the shards do not belong together.
        UnsupportedError, InputError: as ``read_gguf``.
    """
    path = Path(path)
    named = read_gguf(path)
    count = named.get_int("split.count", 1)
    if count <= 1:
        return named
    match = _NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count or count > MAX_SHARDS:
        raise FileFormatError(
            f"{path}: the file says it is one of {count} shards, expected a name like "
            f"{split_name('NAME', 0, min(count, MAX_SHARDS))}. {_REMEDY}"
        )
    paths = (path.with_name(split_name(match["stem"], i, count)) for i in range(count))
    return _merge([named if p == path else _read_shard(p, path, count) for p in paths])


def _read_shard(path: Path, named: Path, count: int) -> GgufFile:
    if not path.exists():
        raise FileFormatError(
            f"{path}: this shard of {count} is missing, {named.name} needs it. {_REMEDY}"
        )
    return read_gguf(path)


def _merge(parts: list[GgufFile]) -> GgufFile:
    first = parts[0]
    metadata: dict[str, Value] = {}
    tensors: dict[str, StoredTensor] = {}
    for number, part in enumerate(parts):
        for key, expected in (("split.no", number), ("split.count", len(parts))):
            got = part.get_int(key)
            if got != expected:
                raise FileFormatError(
                    f"{part.path}: expected {key} {expected} as its name says, got {got}. {_REMEDY}"
                )
        for key, value in part.metadata.items():
            if key not in _OWN and metadata.setdefault(key, value) != value:
                raise FileFormatError(
                    f"{part.path}: metadata {quote(key)} differs from an earlier shard's; "
                    f"the shards are of different models. {_REMEDY}"
                )
        for name, tensor in part.tensors.items():
            if tensors.setdefault(name, tensor) is not tensor:
                raise FileFormatError(
                    f"{part.path}: tensor {quote(name)} is in {tensors[name].path.name} too. "
                    f"{_REMEDY}"
                )
    total = first.get_int("split.tensors.count")
    if total != len(tensors):
        raise FileFormatError(
            f"{first.path}: expected {total} tensors in all shards, got {len(tensors)}. {_REMEDY}"
        )
    return GgufFile(
        path=first.path,
        version=first.version,
        alignment=first.alignment,
        metadata={**first.metadata, **metadata},
        tensors=tensors,
        data_offset=first.data_offset,
        size=sum(part.size for part in parts),
        parts=tuple(parts),
    )
