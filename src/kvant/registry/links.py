"""Files get a second name without a second copy, where the file system can do that."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from kvant.files.atomic import AtomicFile, hidden_beside, sync_folder

__all__ = ["link", "move"]

_READ = 1 << 20
_FICLONE = 0x40049409  # linux/fs.h


def link(source: Path, target: Path) -> str:
    """Make ``target`` the same file as ``source``, replacing what is there; returns how.

    ``clone`` (the file system shares the blocks, and a change of one is none of the other), ``hard
    link``, or ``reference`` (a symbolic link, where the disks differ).

    Raises:
        OSError: none of them can be made.
    """
    beside = hidden_beside(target)
    try:
        how = "clone"
        try:
            _clone(source, beside)
        except OSError:
            beside.unlink(missing_ok=True)
            try:
                how = "hard link"
                os.link(source, beside)
            except OSError:
                how = "reference"
                beside.symlink_to(source)
        beside.replace(target)  # a broken reference may be there
        sync_folder(target.parent)
        return how
    finally:
        beside.unlink(missing_ok=True)


def move(source: Path, target: Path) -> str:
    """Give a file its place for good, on whatever disk it is; returns ``moved``.

    Raises:
        OSError, OutputError: it cannot be written there.
    """
    try:
        source.replace(target)
        sync_folder(target.parent)
        return "moved"
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    with source.open("rb") as file, AtomicFile(target, force=True) as out:
        while part := file.read(_READ):
            out.write(part)
    source.unlink()
    return "moved"


def _clone(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("xb") as new:
        fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        os.fsync(new.fileno())
