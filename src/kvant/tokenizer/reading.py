"""Small whole files that somebody else made."""

from __future__ import annotations

from pathlib import Path

from kvant.errors import FileFormatError
from kvant.files.source import open_source, read_exactly

__all__ = ["read_bytes", "read_text"]


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file of at most ``max_bytes``.

    Raises:
        FileFormatError: it is larger.
        InputError: it cannot be read.
    """
    with open_source(path) as (fd, size):
        if size > max_bytes:
            raise FileFormatError(
                f"{path}: expected at most {max_bytes} bytes, got {size}. Fetch the file again."
            )
        return read_exactly(fd, path, 0, size)


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a UTF-8 file of at most ``max_bytes``, line ends as they are.

    Raises:
        FileFormatError: it is larger, or not UTF-8.
        InputError: it cannot be read.
    """
    try:
        return read_bytes(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{path}: expected UTF-8, got other bytes at {error.start}. Fetch the file again."
        ) from None
