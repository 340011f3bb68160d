"""Arrays read row by row: from .npy files, members of .npz files, memory, or several in a row.

A file of 4,000 samples takes no more memory than one of 50: rows are read one after another, never
mapped (mapped pages count as the process's own) and never all at once.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError, InputError
from kvant.files.source import open_source, printable, quote

__all__ = ["Column", "Joined", "Memory", "NpyFile", "Wanted", "every", "npz_columns"]

Array = npt.NDArray[Any]
Wanted = Callable[[int], bool]
"""Whether a row is read, by its number; the others are passed over as cheaply as may be."""
_MAX_HEADER = 10_000
_MAX_MEMBERS = 10_000


def every(index: int) -> bool:
    """All rows."""
    return True


class Column(Protocol):
    """One array of a data set; its first dimension counts samples."""

    name: str
    count: int
    shape: tuple[int, ...]
    """Of one row."""
    dtype: np.dtype[Any]

    def rows(self, wanted: Wanted = every) -> Iterator[Array]:
        """The rows that are wanted, in order, each an array of its own."""
        ...


class Memory:
    """An array that is there already."""

    def __init__(self, name: str, values: Array) -> None:
        if values.ndim == 0:
            raise InputError(f"array {quote(name)} has no dimension that counts samples.")
        self.name, self._values = name, values
        self.count, self.shape, self.dtype = len(values), values.shape[1:], values.dtype

    def rows(self, wanted: Wanted = every) -> Iterator[Array]:
        """See `Column`."""
        found = (row for index, row in enumerate(self._values) if wanted(index))
        yield from map(np.ascontiguousarray, found)


class NpyFile:
    """A .npy file, or a member of a .npz file.

    Raises:
        FileFormatError: no such format, truncated, or of Python objects.
    """

    def __init__(self, path: Path, name: str, member: str | None = None) -> None:
        self.name, self._path, self._member = name, path, member
        where = f"{path}: {member}" if member else str(path)
        with self._open() as (stream, size):
            try:
                shape, self.dtype = _header(stream)
            except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
                raise FileFormatError(
                    f"{where}: not an array that NumPy saved in C order: "
                    f"{printable(str(error), 160)}. Save it with numpy.savez."
                ) from None
            begin = stream.tell()
        if not shape:
            raise InputError(
                f"{where}: a single value; expected an array whose first dimension counts samples."
            )
        expected = begin + math.prod(shape) * self.dtype.itemsize
        if expected != size:
            raise FileFormatError(
                f"{where}: its header speaks of {expected:,} bytes, it has {size:,}. It is damaged "
                "or truncated; save it again."
            )
        self.count, self.shape = shape[0], tuple(shape[1:])

    def rows(self, wanted: Wanted = every) -> Iterator[Array]:
        """See `Column`."""
        length = math.prod(self.shape) * self.dtype.itemsize
        with self._open() as (stream, _):
            _header(stream)
            for index in range(self.count):
                try:
                    if not wanted(index):
                        stream.seek(length, os.SEEK_CUR)
                        continue
                    data = stream.read(length)
                except (zipfile.BadZipFile, OSError, EOFError) as error:
                    raise FileFormatError(
                        f"{self._path}: damaged: {printable(str(error), 160)}"
                    ) from None
                if len(data) != length:
                    raise FileFormatError(f"{self._path}: ends within an array; it is truncated.")
                yield np.frombuffer(data, self.dtype).reshape(self.shape)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        if self._member is None:
            with open_source(self._path) as (_, size), self._path.open("rb") as file:
                yield file, size
            return
        try:
            with zipfile.ZipFile(self._path) as archive:
                info = archive.getinfo(self._member)
                with archive.open(info) as stream:
                    yield stream, info.file_size
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise FileFormatError(
                f"{self._path}: not a sound .npz file: {printable(str(error), 160)}"
            ) from None


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    elif version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    else:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    if fortran and len(shape) > 1:
        raise ValueError("it is in Fortran order")
    if any(d < 0 for d in shape):
        raise ValueError("a negative dimension")
    return tuple(shape), dtype


def npz_columns(path: Path) -> list[Column]:
    """The arrays of a .npz file.

    Raises:
        FileFormatError: it is none, or is damaged.
        InputError: it cannot be read.
    """
    with open_source(path):
        pass
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as error:
        raise FileFormatError(
            f"{path}: not a .npz file: {printable(str(error), 160)}. Save it with numpy.savez."
        ) from None
    if not members or len(members) > _MAX_MEMBERS:
        raise FileFormatError(f"{path}: holds {len(members)} arrays; expected one for each input.")
    return [NpyFile(path, member.removesuffix(".npy"), member) for member in members]


class Joined:
    """Arrays of the same rows from several files, one after another."""

    def __init__(self, parts: list[Column], places: list[Path]) -> None:
        first = parts[0]
        for part, place in zip(parts, places, strict=True):
            if (part.shape, part.dtype) != (first.shape, first.dtype):
                raise InputError(
                    f"{place}: array {quote(part.name)} has rows {part.dtype} {list(part.shape)}; "
                    f"expected {first.dtype} {list(first.shape)} as in {places[0].name}."
                )
        self._parts = parts
        self.name, self.shape, self.dtype = first.name, first.shape, first.dtype
        self.count = sum(part.count for part in parts)

    def rows(self, wanted: Wanted = every) -> Iterator[Array]:
        """See `Column`; parts are counted through."""
        before = 0
        for part in self._parts:
            yield from part.rows(partial(_after, wanted, before))
            before += part.count


def _after(wanted: Wanted, before: int, index: int) -> bool:
    return wanted(before + index)
