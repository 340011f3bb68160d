"""Importance files: llama.cpp's imatrix in GGUF, which is also kvant's own format, and the older.

GGUF: ``general.type`` is "imatrix"; ``imatrix.datasets``, ``imatrix.chunk_count`` and
``imatrix.chunk_size``; for each weight NAME two F32 tensors, ``NAME.in_sum2`` [experts, columns]
with the sums of squares and ``NAME.counts`` [experts, 1] with the tokens they are over. kvant adds
keys of its own under ``kvant.``. The older format (.dat) is a list of names and means times the
number of chunks. Which one a file is, its first bytes tell.

Source: llama.cpp's ``tools/imatrix/imatrix.cpp`` and ``common/imatrix-loader.cpp``.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant.calibration.importance import Importance, Text
from kvant.errors import DataError, FileFormatError
from kvant.files.atomic import AtomicFile
from kvant.files.gguf import (
    GgufFile,
    TensorSpec,
    Value,
    ValueType,
    array,
    header_bytes,
    padded,
    read_gguf,
    string,
    strings,
    uint32,
)
from kvant.files.source import open_source, quote, read_exactly
from kvant.files.tensor import StoredTensor
from kvant.packing.types import BY_NAME

__all__ = ["importance_bytes", "read_importance", "write_importance"]

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_AGAIN = "The file is damaged, or no importance file; make it again."
_MOST_NAME = 1024
_MOST_ENTRIES = 50_000
_MOST_EXPERTS = 65_536
_MOST_COUNT = 1 << 53
_I32 = struct.Struct("<i")


# ---- reading ------------------------------------------------------------------------------------


def read_importance(path: str | os.PathLike[str]) -> Importance:
    """Read an importance file of either format.

    Raises:
        FileFormatError: it is none, truncated, or inconsistent.
        DataError: NaN, infinity, or negative sums or counts.
        InputError: no such file, or it may not be read.
    """
    path = Path(path)
    with open_source(path) as (fd, size):
        magic = os.pread(fd, 4, 0)
        found = _read_gguf(path, fd) if magic == b"GGUF" else _Legacy(path, fd, size).read()
        _check_values(path, found)
        digest, done = hashlib.sha256(), 0
        while done < size:
            part = read_exactly(fd, path, done, min(1 << 20, size - done))
            digest.update(part)
            done += len(part)
    return replace(found, file=path.name, sha256=digest.hexdigest())


def _read_gguf(path: Path, fd: int) -> Importance:
    file = read_gguf(path)
    kind = file.get_str("general.type", "model")
    if kind != "imatrix":
        raise FileFormatError(
            f"{path}: expected an importance file, whose general.type is 'imatrix', got "
            f"{quote(kind)}. Make one of the model with `kvant calibrate`."
        )
    sums, seen = {}, {}
    for tensor in file.tensors.values():
        if tensor.name.endswith(_SUMS):
            name = tensor.name.removesuffix(_SUMS)
            sums[name], seen[name] = _entry(path, fd, file, name)
        elif not tensor.name.endswith(_COUNTS) or (
            tensor.name.removesuffix(_COUNTS) + _SUMS not in file.tensors
        ):
            raise FileFormatError(
                f"{path}: tensor {quote(tensor.name)} is one of no pair NAME{_SUMS} and "
                f"NAME{_COUNTS}. {_AGAIN}"
            )
    if not sums:
        raise FileFormatError(f"{path}: expected an importance file, got one without entries.")
    datasets = tuple(file.get_strings("imatrix.datasets", []))
    return Importance(
        sums,
        seen,
        chunk=_count(path, file, "imatrix.chunk_size"),
        chunks=_count(path, file, "imatrix.chunk_count"),
        datasets=datasets,
        texts=_texts(path, file, datasets),
        model=file.get_str("kvant.calibration.model", ""),
        model_name=file.get_str("kvant.calibration.model_name", ""),
        corpus=file.get_str("kvant.calibration.corpus", ""),
        version=file.get_str("kvant.version", ""),
    )


def _entry(path: Path, fd: int, file: GgufFile, name: str) -> tuple[Floats, Counts]:
    sums, counts = file.tensors[name + _SUMS], file.tensors.get(name + _COUNTS)
    if counts is None:
        raise FileFormatError(f"{path}: {quote(name)} has sums, but no counts. {_AGAIN}")
    for tensor in (sums, counts):
        if tensor.type.name != "F32":
            raise FileFormatError(
                f"{path}: tensor {quote(tensor.name)} is {tensor.type.name}, expected F32. {_AGAIN}"
            )
    experts = counts.elements
    if experts > _MOST_EXPERTS or sums.elements % experts:
        raise FileFormatError(
            f"{path}: {quote(name)} has {sums.elements} sums and {experts} counts, expected one "
            f"count, or one an expert. {_AGAIN}"
        )
    values = _floats(path, fd, sums)
    raw = _floats(path, fd, counts).astype(np.float64)
    if not np.all(np.isfinite(raw)) or raw.min() < 0 or raw.max() > _MOST_COUNT:
        raise DataError(
            f"{path}: the counts of {quote(name)} should be numbers from 0, got "
            f"{raw[~((raw >= 0) & (raw <= _MOST_COUNT))][0]}. {_AGAIN}"
        )
    return values.reshape(experts, -1) if experts > 1 else values, np.rint(raw).astype(np.int64)


def _floats(path: Path, fd: int, tensor: StoredTensor) -> Floats:
    raw = read_exactly(fd, path, tensor.offset, tensor.nbytes)
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _count(path: Path, file: GgufFile, key: str) -> int:
    value: int = file.get_int(key, 0)
    if not 0 <= value < 1 << 32:
        raise FileFormatError(f"{path}: {key} should be from 0, got {value}. {_AGAIN}")
    return value


def _texts(path: Path, file: GgufFile, names: tuple[str, ...]) -> tuple[Text, ...]:
    weights = file.get_array("kvant.calibration.weights", np.empty(0))
    tokens = file.get_array("kvant.calibration.tokens", np.empty(0, np.int64))
    if len(weights) == 0 and len(tokens) == 0:
        return ()
    if not len(names) == len(weights) == len(tokens):
        raise FileFormatError(
            f"{path}: has {len(names)} texts, {len(weights)} shares and {len(tokens)} token "
            f"counts, expected as many of each. {_AGAIN}"
        )
    return tuple(map(Text, names, weights.astype(float).tolist(), tokens.astype(int).tolist()))


class _Legacy:
    """The older format, field by field; a field may not reach beyond the file."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self._path, self._fd, self._size, self._at = path, fd, size, 0

    def read(self) -> Importance:
        entries = self._number("the number of entries")
        if not 1 <= entries <= min(_MOST_ENTRIES, self._size // 17):
            raise FileFormatError(
                f"{self._path}: expected an importance file (llama.cpp's imatrix, GGUF or .dat), "
                "got something else. Make one of the model with `kvant calibrate`."
            )
        sums, seen = {}, {}
        for i in range(entries):
            name = self._text(f"the name of entry {i}", _MOST_NAME)
            if not name or name in sums:
                raise self._fail(f"entry {i} has the name {quote(name)}, expected a new one")
            calls = self._number(f"{quote(name)}: the number of chunks")
            values = self._number(f"{quote(name)}: the number of values")
            if calls < 0 or values < 1:
                raise self._fail(f"{quote(name)} claims {values} values of {calls} chunks")
            raw = self._take(4 * values, f"{quote(name)}: {values} values")
            sums[name] = np.frombuffer(raw, "<f4").astype(np.float32)
            # Without chunks the values are the means themselves.
            seen[name] = np.array([calls or 1], np.int64)
        chunks, datasets = 0, tuple[str, ...]()
        if self._at < self._size:
            chunks = max(0, self._number("the number of chunks"))
            if self._at < self._size and (name := self._text("the text's name", 1 << 16)):
                datasets = (name,)
        if self._at < self._size:
            raise self._fail(f"{self._size - self._at} bytes follow the end")
        return Importance(sums, seen, chunks=chunks, datasets=datasets)

    def _take(self, count: int, what: str) -> bytes:
        if count > self._size - self._at:
            raise self._fail(f"it ends inside {what}")
        raw = read_exactly(self._fd, self._path, self._at, count)
        self._at += count
        return raw

    def _number(self, what: str) -> int:
        number: int = _I32.unpack(self._take(4, what))[0]
        return number

    def _text(self, what: str, most: int) -> str:
        length = self._number(what)
        if not 0 <= length <= most:
            raise self._fail(f"{what} claims {length} bytes")
        return self._take(length, what).decode(errors="replace")

    def _fail(self, what: str) -> FileFormatError:
        return FileFormatError(
            f"{self._path}: {what}. The file is truncated or no importance file."
        )


def _check_values(path: Path, found: Importance) -> None:
    for name, values in found.sums.items():
        bad = values[~(np.isfinite(values) & (values >= 0))]
        if len(bad.reshape(-1)):
            raise DataError(
                f"{path}: {quote(name)} holds the sum of squares {bad.reshape(-1)[0]}, expected "
                f"finite numbers from 0. {_AGAIN}"
            )


# ---- writing ------------------------------------------------------------------------------------


def write_importance(
    path: str | os.PathLike[str], importance: Importance, *, force: bool = False
) -> None:
    """Write an importance file: llama.cpp's older format where the name ends in .dat, else GGUF.

    The same importance gives the same bytes.

    Raises:
        OutputError: the file exists and not ``force``, or cannot be written.
        UnsupportedError: a name is too long for llama.cpp.
    """
    with AtomicFile(path, force=force) as out:
        out.write(importance_bytes(importance, legacy=Path(path).suffix == ".dat"))


def importance_bytes(importance: Importance, *, legacy: bool = False) -> bytes:
    """What `write_importance` writes: GGUF, or llama.cpp's older format."""
    return b"".join(_legacy_parts(importance) if legacy else _gguf_parts(importance))


def _gguf_parts(importance: Importance) -> Iterator[bytes]:
    specs: list[TensorSpec] = []
    data: list[bytes] = []
    for name in sorted(importance.sums):  # as llama.cpp does
        sums, seen = importance.sums[name], importance.seen[name]
        shape: tuple[int, ...] = (len(seen), 1) if sums.ndim == 2 else (1,)
        specs += [
            TensorSpec(name + _SUMS, BY_NAME["F32"], sums.shape),
            TensorSpec(name + _COUNTS, BY_NAME["F32"], shape),
        ]
        data += [sums.astype("<f4").tobytes(), seen.astype("<f4").tobytes()]
    header, _ = header_bytes(_metadata(importance), specs)
    yield header
    for part in data:
        yield part.ljust(padded(len(part), 32), b"\0")


def _metadata(importance: Importance) -> dict[str, Value]:
    keys = {
        "general.type": string("imatrix"),
        "imatrix.datasets": strings(importance.datasets),
        "imatrix.chunk_count": uint32(importance.chunks),
        "imatrix.chunk_size": uint32(importance.chunk),
    }
    for key, text in (
        ("kvant.version", importance.version),
        ("kvant.calibration.model", importance.model),
        ("kvant.calibration.model_name", importance.model_name),
        ("kvant.calibration.corpus", importance.corpus),
    ):
        if text:
            keys[key] = string(text)
    if importance.texts:
        weights = np.array([t.weight for t in importance.texts], np.float64)
        tokens = np.array([t.tokens for t in importance.texts], np.uint64)
        keys["kvant.calibration.weights"] = array(ValueType.FLOAT64, weights)
        keys["kvant.calibration.tokens"] = array(ValueType.UINT64, tokens)
    return keys


def _legacy_parts(importance: Importance) -> Iterator[bytes]:
    yield _I32.pack(len(importance.sums))
    for name in sorted(importance.sums):
        raw = name.encode()
        sums, seen = importance.sums[name].astype(np.float64), importance.seen[name]
        most = int(seen.max())
        calls = max(1, -(-most // importance.chunk)) if importance.chunk else max(1, most)
        each = seen[:, None] if sums.ndim == 2 else seen
        # An expert that saw nothing counts all columns alike.
        means = np.where(each > 0, sums / np.maximum(each, 1), 1.0)
        values = (means * calls).astype("<f4")
        yield _I32.pack(len(raw)) + raw + _I32.pack(calls) + _I32.pack(values.size)
        yield values.tobytes()
    text = (importance.datasets[0] if importance.datasets else "").encode()
    yield _I32.pack(importance.chunks) + _I32.pack(len(text)) + text
