"""The weights of a Hugging Face folder: model.safetensors, or an index and its shards."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kvant.errors import FileFormatError, InputError, UnsupportedError
from kvant.files.config_json import read_json
from kvant.files.safetensors_read import OtherTensor, SafetensorsFile, read_safetensors
from kvant.files.source import pickle_error, quote, show
from kvant.files.tensor import StoredTensor

__all__ = ["INDEX", "SINGLE", "SafetensorsFolder", "read_folder", "read_sharded"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: The largest published index (210,000 tensors) takes 24 MB.
MAX_INDEX_BYTES = 32_000_000

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_REMEDY = "Fetch all files of one release again."


@dataclass(frozen=True, slots=True)
class SafetensorsFolder:
    """All tensors of a folder.

    ``files`` are the files read, in name order. ``other`` are tensors of no use (see
    ``OtherTensor``); ``unlisted`` names what a shard holds and the index does not mention: the
    field ignores such tensors, and so do we.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]
    other: dict[str, OtherTensor]
    unlisted: tuple[str, ...]


def read_sharded(folder: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a folder by name; ``read_folder`` for more than that."""
    return read_folder(folder).tensors


def read_folder(folder: str | os.PathLike[str]) -> SafetensorsFolder:
    """Read the headers of a folder's ``model.safetensors``, or of the shards its index lists.

    Files may be symbolic links, as in Hugging Face's cache; names in the index must be plain
    names in this folder.

    Raises:
        FileFormatError: a file is damaged, a shard or tensor is missing, or they do not agree.
        UnsupportedError: only pickle checkpoints, or no weights kvant can find.
        InputError: no such folder, or something may not be read.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where nothing can be there
        raise InputError(f"{folder}: expected a folder, got none. Check the path.")
    if (folder / SINGLE).exists():
        file = read_safetensors(folder / SINGLE)
        return SafetensorsFolder(folder, (file.path,), file.tensors, file.other, ())
    if (folder / INDEX).exists():
        return _read_shards(folder, _weight_map(folder / INDEX))
    raise _no_weights(folder)


def _no_weights(folder: Path) -> UnsupportedError:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}.") from None
    shards = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if any(Path(n).match(p) for p in _PICKLES)]
    if SINGLE in names or INDEX in names:
        name = SINGLE if SINGLE in names else INDEX
        raise FileFormatError(f"{folder / name}: this link leads nowhere. {_REMEDY}")
    if not shards and pickles:
        return pickle_error(folder / pickles[0])
    found = f"only {quote(shards[0])}" if shards else "no safetensors file"
    return UnsupportedError(
        f"{folder}: expected {SINGLE}, or {INDEX} and the shards it lists, got {found}. "
        "Fetch the whole model, or name a file."
    )


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name to file name, each a plain name."""
    index = read_json(path, MAX_INDEX_BYTES)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError(
            f"{path}: expected a 'weight_map' of tensors to files, got none. {_REMEDY}"
        )
    for tensor, name in weight_map.items():
        plain = (
            isinstance(name, str)
            and name.isprintable()
            and name.endswith(".safetensors")
            and not name.startswith(".")
            and not set(name) & set("/\\:\0")
            and len(name.encode()) <= 255
        )
        if not plain:
            raise FileFormatError(
                f"{path}: tensor {quote(tensor)} is said to be in {show(name)}, expected the "
                f"name of a .safetensors file in this folder. {_REMEDY}"
            )
    return weight_map


def _read_shards(folder: Path, weight_map: dict[str, str]) -> SafetensorsFolder:
    listed: dict[str, int] = {}
    for name in weight_map.values():
        listed[name] = listed.get(name, 0) + 1
    names = sorted(listed)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileFormatError(
            f"{folder / missing[0]}: this shard{more} of {len(names)} is missing, "
            f"{INDEX} lists it. {_REMEDY}"
        )
    _check_distinct(folder, names)
    tensors: dict[str, StoredTensor] = {}
    other: dict[str, OtherTensor] = {}
    unlisted: list[str] = []
    for name in names:
        file = read_safetensors(folder / name)
        for tensor in [*file.tensors, *file.other]:
            home = weight_map.get(tensor)
            if home is None:
                unlisted.append(tensor)
            elif home != name:
                raise FileFormatError(
                    f"{file.path}: tensor {quote(tensor)} is here, {INDEX} says it is in "
                    f"{quote(home)}. {_REMEDY}"
                )
        _add(file, weight_map, tensors, other)
    absent = next((t for t in weight_map if t not in tensors and t not in other), None)
    if absent is not None:
        raise FileFormatError(
            f"{folder / weight_map[absent]}: tensor {quote(absent)} is missing, {INDEX} says it "
            f"is here. {_REMEDY}"
        )
    files = tuple(folder / name for name in names)
    return SafetensorsFolder(folder, files, tensors, other, tuple(unlisted))


def _add(
    file: SafetensorsFile,
    weight_map: dict[str, str],
    tensors: dict[str, StoredTensor],
    other: dict[str, OtherTensor],
) -> None:
    tensors.update((n, t) for n, t in file.tensors.items() if n in weight_map)
    other.update((n, t) for n, t in file.other.items() if n in weight_map)


def _check_distinct(folder: Path, names: list[str]) -> None:
    """Two names for one file would make every tensor of it appear twice."""
    seen: dict[tuple[int, int], str] = {}
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError as error:
            raise InputError(f"{folder / name}: cannot be read: {error.strerror}.") from None
        first = seen.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            raise FileFormatError(
                f"{folder / name}: this shard is the same file as {quote(first)}. {_REMEDY}"
            )
