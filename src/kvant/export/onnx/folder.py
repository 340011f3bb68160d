"""A folder that appears under its name when it is whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvant.errors import OutputError

__all__ = ["new_folder", "refuse_folder"]


def refuse_folder(path: Path, sources: tuple[Path, ...], *, force: bool) -> None:
    """Say at once what `new_folder` would refuse.

    Raises:
        OutputError: something has the name already, or it is the source.
    """
    for source in sources:
        with suppress(OSError):
            if path.exists() and source.resolve().is_relative_to(path.resolve()):
                raise OutputError(f"{path}: holds the source itself; name another folder with -o.")
    if os.path.lexists(path) and (not force or not path.is_dir() or path.is_symlink()):
        remedy = "Choose another name or pass --force" if path.is_dir() else "Choose another name"
        raise OutputError(f"{path}: exists already. {remedy}.")
    if not path.absolute().parent.is_dir():
        raise OutputError(
            f"{path}: cannot be written: its folder does not exist. Create it first."
        )


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """A hidden folder beside ``path`` to write into; renamed where the block ends well.

    With ``force`` a folder that has the name is moved away first and then deleted.

    Raises:
        OutputError: no permission, or the name was taken meanwhile.
    """
    parent = path.absolute().parent
    beside = parent / f".{path.name[:80]}.{secrets.token_hex(4)}.partial"
    try:
        beside.mkdir()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}.") from None
    try:
        yield beside
        old = parent / f"{beside.name}.old"
        try:
            _sync(beside)
            if os.path.lexists(path):
                if not force:
                    raise OutputError(
                        f"{path}: exists already. Choose another name or pass --force."
                    )
                path.rename(old)
            beside.rename(path)
            _sync(parent)
        except OSError as error:
            if old.exists() and not path.exists():
                old.rename(path)
            raise OutputError(f"{path}: cannot be written: {error.strerror}.") from None
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(fd)
    finally:
        os.close(fd)
