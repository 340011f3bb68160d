"""A blob comes into the store: piece by piece, resumed where it stopped, its digest checked."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path

from kvant.errors import InputError, OutputError
from kvant.registry.errors import HostileError, UnreachableError
from kvant.registry.http import Patience
from kvant.registry.index import Index, Sealed
from kvant.registry.layout import Layout
from kvant.registry.manifest import Descriptor, hex_of
from kvant.registry.progress import Progress, Step, silent

__all__ = ["Opener", "fetch_blob", "file_digest", "link_file", "store_pieces"]

Opener = Callable[[int], tuple[int, Generator[bytes, None, None]]]
"""Given the first byte wanted, the first byte that comes (0 where a server takes no ranges) and the
bytes from there on."""

_READ = 1 << 20
_ATTEMPTS = 6
_FIRST_PAUSE = 0.5


def fetch_blob(
    layout: Layout,
    blob: Descriptor,
    open_at: Opener,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> None:
    """Have a blob in the store; within `Layout.adding`.

    When another process fetches it already, this waits for that one, and takes over if it ends.
    What has come stays for another try, also of another process; a connection that breaks is
    opened again, as long as what comes is what ``patience`` demands: a few attempts in a row that
    bring less are the last.

    Raises:
        HostileError: what came is not what the digest says. Nothing of it is kept.
        RegistryError: the registry failed.
        OutputError: no space, no permission.
    """
    tell = progress or silent
    status = f"pulling {hex_of(blob.digest)[:12]}"

    def waiting(size: int) -> None:
        tell(Step(status, blob.digest, min(size, blob.size), blob.size, blob.title))

    with layout.partial(blob.digest, waiting) as path:
        if path is not None:
            _check_space(path, blob.size)
            with path.open("r+b", buffering=0) as file:
                sha = _continue(file.fileno(), blob, open_at, waiting, patience or Patience())
                if sha != hex_of(blob.digest):
                    path.unlink()
                    raise HostileError(
                        f"Blob {blob.digest} came with other content: its SHA-256 is {sha}. "
                        "Nothing was kept. Pull again; if it stays so, the registry is damaged or "
                        "not honest."
                    )
                os.fsync(file.fileno())
                layout.finish(path, blob.digest)
        tell(Step(status, blob.digest, blob.size, blob.size, blob.title))


def _continue(
    fd: int, blob: Descriptor, open_at: Opener, tell: Callable[[int], None], patience: Patience
) -> str:
    """Fetch what is missing; returns the SHA-256 of it all."""
    done = os.fstat(fd).st_size
    if done > blob.size:
        os.ftruncate(fd, 0)
        done = 0
    sha = _hash_start(fd, done)
    failures = 0
    while done < blob.size:
        before, since = done, time.monotonic()
        try:
            start, pieces = open_at(done)
            if start != done:  # it sends everything again
                os.ftruncate(fd, start)
                sha, done = _hash_start(fd, start), start
            with closing(pieces):
                for piece in pieces:
                    if done + len(piece) > blob.size:
                        os.ftruncate(fd, 0)
                        raise HostileError(
                            f"Blob {blob.digest[:19]} should have {blob.size} bytes, and more "
                            "came. Nothing was kept."
                        )
                    _write(fd, piece, done)
                    sha.update(piece)
                    done += len(piece)
                    tell(done)
            if done < blob.size:  # as a whole answer, so a byte at a time would go on for ever
                raise UnreachableError("the connection was closed")
        except UnreachableError as error:
            demanded = patience.rate * max(patience.window, time.monotonic() - since)
            failures = 1 if done - before >= demanded else failures + 1
            if failures >= _ATTEMPTS:
                raise UnreachableError(
                    f"{str(error).rstrip('.')}. {done} of {blob.size} bytes of {blob.digest[:19]} "
                    "have come; the same command goes on from there."
                ) from None
            time.sleep(_FIRST_PAUSE * 2 ** (failures - 1))
    return sha.hexdigest()


def store_pieces(layout: Layout, digest: str, pieces: Iterable[bytes]) -> None:
    """As `Store.add_blob`."""
    expected = hex_of(digest)
    with layout.partial(digest, lambda size: None) as path:
        if path is None:
            return
        sha, done = hashlib.sha256(), 0
        with path.open("r+b", buffering=0) as file:
            file.truncate(0)
            try:
                for piece in pieces:
                    _write(file.fileno(), piece, done)
                    sha.update(piece)
                    done += len(piece)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            if sha.hexdigest() != expected:
                path.unlink()
                raise HostileError(
                    f"The content sent for {digest} has the SHA-256 {sha.hexdigest()}. "
                    "Nothing was kept; send what the digest was computed of."
                )
            os.fsync(file.fileno())
            layout.finish(path, digest)


def file_digest(
    path: Path, index: Index | None = None, progress: Progress | None = None
) -> tuple[str, int]:
    """Digest and size of a file; what was computed before is remembered.

    Raises:
        InputError: it cannot be read, or changed meanwhile.
    """
    tell = progress or silent
    try:
        with path.open("rb") as file:
            before = _sealed(path, os.fstat(file.fileno()))
            known = None if index is None else index.digest(before)
            if known is not None:
                return known, before.size
            sha, done = hashlib.sha256(), 0
            while part := file.read(_READ):
                sha.update(part)
                done += len(part)
                tell(Step("hashing", "", done, before.size, path.name))
            after = _sealed(path, os.fstat(file.fileno()))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Check the path.") from None
    if after != before or done != before.size:
        raise InputError(f"{path}: changed while it was read. Wait until it is written.")
    digest = f"sha256:{sha.hexdigest()}"
    if index is not None and time.time() * 1e9 - before.mtime > 2e9:
        # A file may change again within its time stamp's grain; so only older ones are noted.
        index.remember(before, digest)
    return digest, before.size


def link_file(
    layout: Layout,
    path: Path,
    index: Index | None = None,
    progress: Progress | None = None,
    *,
    ours: bool = False,
    check: Callable[[Path, str], None] | None = None,
) -> tuple[str, int]:
    """Have a file of this machine in the store without a second copy; within `Layout.adding`.

    ``check`` is called with the file and its digest before; what it raises keeps it out.

    Returns:
        Digest and size.

    Raises:
        InputError: it cannot be read, or changed meanwhile.
        OutputError: no space, no permission.
    """
    digest, size = file_digest(path, None if ours else index, progress)
    if check is not None:
        check(path, digest)
    if not layout.has(digest, size):
        before = path.stat()
        how = layout.link(path, digest, ours=ours)
        after = layout.blob(digest).stat()
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if not same and how in ("hard link", "reference"):
            layout.blob(digest).unlink()
            raise InputError(f"{path}: changed while it was taken in. Wait until it is written.")
    elif ours:
        path.unlink()
    return digest, size


def _sealed(path: Path, status: os.stat_result) -> Sealed:
    return Sealed(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)


def _hash_start(fd: int, size: int) -> hashlib._Hash:
    """The hash of what is there already."""
    sha = hashlib.sha256()
    at = 0
    while at < size:
        part = os.pread(fd, min(_READ, size - at), at)
        if not part:
            break
        sha.update(part)
        at += len(part)
    return sha


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    try:
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done
    except OSError as error:
        raise OutputError(
            f"The store cannot be written: {error.strerror}. Free some space, or set KVANT_HOME."
        ) from None


def _check_space(path: Path, size: int) -> None:
    status = os.statvfs(path.parent)
    free = status.f_bavail * status.f_frsize
    missing = size - path.stat().st_size
    if missing > free:
        raise OutputError(
            f"{path.parent.parent}: {missing / 1e6:,.1f} MB are to come, its disk has "
            f"{free / 1e6:,.1f} MB free. Free some space, or set KVANT_HOME to another disk."
        )
