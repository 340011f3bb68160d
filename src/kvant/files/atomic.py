"""Writing so that the final name never shows half a file: without a name, fsync, then named.

A process killed at any moment leaves either nothing or the finished file under the final name. The
file has no name while it is written where the file system can do that (Linux's ``O_TMPFILE``), so
that the system frees it with the process; elsewhere it is a hidden ``.NAME.XXXXXXXX.partial``
beside it, which stays after a kill.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import OutputError

__all__ = [
    "AtomicFile",
    "check_output",
    "check_space",
    "hidden_beside",
    "sync_folder",
    "write_atomic",
]

Bytes = bytes | bytearray | memoryview | npt.NDArray[Any]

_REASONS = {
    errno.ENOSPC: "no space is left on its disk. Free some or choose another folder",
    errno.EDQUOT: "the disk quota is used up. Free some space or choose another folder",
    errno.EFBIG: "its file system (or a limit) does not take files this large. Choose another",
    errno.EACCES: "no permission to write there. Choose another folder",
    errno.EPERM: "no permission to write there. Choose another folder",
    errno.EROFS: "its file system is read-only. Choose another folder",
    errno.ENOENT: "its folder does not exist. Create it first",
    errno.ENOTDIR: "its folder is a file. Choose another folder",
    errno.ELOOP: "its path is a circle of links. Choose another",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.EIO: "the disk failed. Check it or choose another",
    errno.EMFILE: "too many files are open at once. Make fewer, larger ones",
}


class AtomicFile:
    """A file being written, in place under its name once the ``with`` block ends well.

    ``fd`` is open for reading and writing; any number of threads may call ``write_at``. When the
    block ends by an exception, KeyboardInterrupt included, nothing is left behind.

    Args:
        path: the final name. Its folder must exist.
        force: replace an existing file; otherwise one is an error, also one that appears
            while this is being written.
        size: bytes that will be written, where known: too little space is then an error at
            once instead of minutes later.
        sync: fsync file and folder, so that a power cut cannot bring back half a file.

    Raises:
        OutputError: on entering, writing or leaving: exists, no space, no permission, ...
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        size: int | None = None,
        sync: bool = True,
    ) -> None:
        self.path = Path(path)
        self.fd = -1
        self._force = force
        self._size = size
        self._sync = sync
        self._beside: Path | None = None  # the hidden name, while there is one
        self._position = 0

    def __enter__(self) -> AtomicFile:
        self._check_target()
        try:
            self.fd = _unnamed(self.path.parent)
            if self.fd < 0:
                self._beside = hidden_beside(self.path)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self.fd = os.open(self._beside, flags, 0o666)
            if self._size is not None:
                self._check_space(self._size)
        except OSError as error:
            self._discard()
            raise self._failed(error) from None
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failure:
            raise self._failed(failure) from None
        finally:
            self._discard()

    @property
    def readable(self) -> Path:
        """Where this process can open what was written so far."""
        # Absolute: a link to it has to work from elsewhere.
        return Path(_by_descriptor(self.fd)) if self._beside is None else self._beside.absolute()

    def write(self, data: Bytes) -> None:
        """Append ``data``, after what ``write`` has written so far. One thread only."""
        view = _bytes(data)
        self.write_at(view, self._position)
        self._position += len(view)

    def write_at(self, data: Bytes, offset: int) -> None:
        """Write ``data`` at ``offset``, in full."""
        view = _bytes(data)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self.fd, view[done:], offset + done)
        except OSError as error:
            raise self._failed(error) from None

    def flush(self) -> None:
        """Have on disk what was written so far, where several files are to appear together."""
        try:
            if self._sync:
                os.fsync(self.fd)
        except OSError as error:
            raise self._failed(error) from None

    def _check_target(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            # A link to nothing is an existing name all the same.
            if self.path.is_symlink() and not self._force:
                raise self._exists() from None
            return
        except (OSError, ValueError) as error:
            raise self._failed(error) from None
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
            raise OutputError(
                f"{self.path}: cannot be written: it is {kind}, expected a file name. "
                "Choose a file to be made."
            )
        if not self._force:
            raise self._exists()

    def _check_space(self, size: int) -> None:
        room = os.fstatvfs(self.fd)
        check_space(self.path, size, room.f_bavail * room.f_frsize)

    def _finish(self) -> None:
        if self._sync:
            os.fsync(self.fd)
        if self._beside is None and not self._force:
            self._link_new(_by_descriptor(self.fd))
        else:
            if self._beside is None:  # a link replaces nothing, a rename does
                self._beside = hidden_beside(self.path)
                _link(_by_descriptor(self.fd), self._beside)
            self._rename()
        if self._sync:
            sync_folder(self.path.parent)

    def _link_new(self, source: str | Path) -> None:
        """Give the file its name only if nobody else took that meanwhile."""
        try:
            _link(source, self.path)
        except FileExistsError:
            raise self._exists() from None

    def _rename(self) -> None:
        assert self._beside is not None
        if self._force:
            self._beside.replace(self.path)
            return
        try:
            self._link_new(self._beside)
        except OSError:
            # FAT and some network file systems have no hard links.
            if os.path.lexists(self.path):
                raise self._exists() from None
            self._beside.rename(self.path)

    def _discard(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)

    def _exists(self) -> OutputError:
        return OutputError(f"{self.path}: exists already. Choose another name or pass --force.")

    def _failed(self, error: OSError | ValueError) -> OutputError:
        number = error.errno if isinstance(error, OSError) else None
        reason = _REASONS.get(number or 0, f"{error}. Check the path")
        return OutputError(f"{self.path}: cannot be written: {reason}.")


def hidden_beside(path: Path) -> Path:
    """A name nobody has, in the same folder, for what is to have the name ``path`` when whole."""
    # 120 bytes of the name leave room for the rest within the usual limit of 255.
    name = os.fsdecode(os.fsencode(path.name)[:120])
    return path.parent / f".{name}.{secrets.token_hex(4)}.partial"


def check_output(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Say at once what `AtomicFile` would: for whoever works long before there is one.

    Raises:
        OutputError: as of `AtomicFile`. Nothing is left behind.
    """
    with suppress(_Enough), AtomicFile(path, force=force):
        raise _Enough


class _Enough(Exception):  # noqa: N818 - no error, and never seen outside
    """Ends a file that was only tried."""


def check_space(path: Path, size: int, free: int) -> None:
    """Check that ``size`` bytes fit in ``free`` ones.

    Raises:
        OutputError: they do not; says both.
    """
    if size > free:
        raise OutputError(
            f"{path}: cannot be written: it needs {size / 1e6:.1f} MB, its disk has "
            f"{free / 1e6:.1f} MB free. Free some space or choose another folder."
        )


def sync_folder(folder: Path) -> None:
    """Have on disk what names a folder has.

    Raises:
        OSError: that failed.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder; the files in it are safe.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _unnamed(folder: Path) -> int:
    """A new file in ``folder`` without a name, or -1 where that, or naming it later, cannot be."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag:
        return -1
    try:
        fd = os.open(folder, flag | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError:  # what is really wrong with the folder, a named file finds out
        return -1
    if os.path.lexists(_by_descriptor(fd)):
        return fd
    os.close(fd)  # without /proc it could never be named
    return -1


def _by_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _link(source: str | Path, target: Path) -> None:
    """A second name, or the first of a file that has none; never replaces one.

    Only with a descriptor of the folder does Python ask the system to follow /proc's link.
    """
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(source, target.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _bytes(data: Bytes) -> memoryview:
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return memoryview(data).cast("B")


def write_atomic(
    path: str | os.PathLike[str], data: Bytes | str, *, force: bool = False, sync: bool = True
) -> None:
    """Write a whole small file (a text as UTF-8) the way of ``AtomicFile``.

    Raises:
        OutputError: exists without ``force``, no space, no permission, ...
    """
    content = data.encode() if isinstance(data, str) else data
    with AtomicFile(path, force=force, sync=sync) as file:
        file.write(content)
