"""The store on disk: an OCI image layout (image-spec v1.1, image-layout.md), and its locks.

::

    oci-layout            {"imageLayoutVersion": "1.0.0"}
    index.json            the models: name, time, source, and the digest of each manifest
    blobs/sha256/HEX      content by digest: files, hard links, clones or links to files elsewhere
    partial/HEX           what was fetched so far of a blob
    work/                 files on their way into the store
    views/HEX/            a model's files under their own names, as links to blobs
    index.sqlite          what can be computed from all that (index.py)
    locks/                who may change what

``index.json`` alone says what models there are, and it is replaced in one step when everything a
model needs is in place and on disk. So a process killed at any moment leaves no half model: at most
blobs nobody refers to, which `Layout.sweep` removes.

Locks are the system's (flock), so they end with the process that held them. ``locks/store`` is held
shared while blobs are added that nothing refers to yet, and alone while unused ones are removed;
``locks/index`` alone while ``index.json`` changes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from kvant.errors import FileFormatError, OutputError
from kvant.files.atomic import AtomicFile, hidden_beside, sync_folder
from kvant.files.config_json import parse_json
from kvant.registry.links import link, move
from kvant.registry.listed import Listed
from kvant.registry.manifest import Descriptor, Manifest, digest_of, hex_of, parse_manifest

__all__ = ["Layout"]

_VERSION = {"imageLayoutVersion": "1.0.0"}
_MOST_INDEX = 64 << 20
_RESUMABLE = 14 * 86400.0
"""Seconds that an interrupted download is kept."""


class Layout:
    """The files of one store. Made when first written to, never by looking."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.partials = root / "partial"
        self.views = root / "views"
        self.work = root / "work"
        self.index_file = root / "index.json"

    # ---- making ------------------------------------------------------------------------------

    def make(self) -> None:
        """Create what is missing.

        Raises:
            OutputError: it cannot be written there.
        """
        try:
            for folder in (self.blobs, self.partials, self.views, self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
            marker = self.root / "oci-layout"
            if not marker.exists():
                self._replace(marker, json.dumps(_VERSION).encode())
        except OSError as error:
            raise _not_written(self.root, error) from None

    @property
    def exists(self) -> bool:
        """Whether anything was ever stored here."""
        return self.index_file.exists()

    # ---- blobs -------------------------------------------------------------------------------

    def blob(self, digest: str) -> Path:
        """Where a blob lies, or would."""
        return self.blobs / hex_of(digest)

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether a blob is there, and of the size it should have."""
        try:
            found = os.stat(self.blob(digest)).st_size  # noqa: PTH116 - links are followed
        except OSError:
            return False
        return size is None or found == size

    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob, whole and checked.

        Raises:
            FileFormatError: it is missing or not what its digest says.
        """
        path = self.blob(descriptor.digest)
        try:
            with path.open("rb") as file:
                data = file.read(descriptor.size + 1)
        except OSError as error:
            raise FileFormatError(
                f"{path}: cannot be read: {error.strerror}. Pull the model again."
            ) from None
        if digest_of(data) != descriptor.digest:
            raise FileFormatError(
                f"{path}: its content is not what its name says. Pull the model again."
            )
        return data

    def add_bytes(self, data: bytes) -> str:
        """Store a small blob; returns its digest."""
        digest = digest_of(data)
        path = self.blob(digest)
        if not self.has(digest, len(data)):
            with self._writing():
                self._replace(path, data)
        return digest

    def link(self, source: Path, digest: str, *, ours: bool = False) -> str:
        """Make a file that lies elsewhere a blob without copying it; returns how.

        ``moved`` (a file of ``ours``, on the same disk), ``clone`` (blocks shared by the file
        system), ``hard link``, or ``reference`` (a symbolic link, where the disks differ).
        """
        target = self.blob(digest)
        real = source.resolve()
        with self._writing():
            return move(real, target) if ours else link(real, target)

    @contextmanager
    def partial(self, digest: str, waiting: Callable[[int], None]) -> Iterator[Path | None]:
        """The file in which a blob grows, for this process alone; None when it is complete.

        While another process fetches it, ``waiting`` is called with the bytes that one has, some
        times a second; what it raises ends the wait.
        """
        path = self.partials / hex_of(digest)
        fd = -1
        try:
            while True:
                if self.has(digest):
                    yield None
                    return
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
                if _try_lock(fd, fcntl.LOCK_EX):
                    # Who held it may have given it its final name, or removed it, meanwhile.
                    if _same_file(fd, path):
                        break
                else:
                    waiting(os.fstat(fd).st_size)
                    time.sleep(0.1)
                os.close(fd)
                fd = -1
            if self.has(digest):
                path.unlink()
                yield None
                return
            yield path
        except OSError as error:
            raise _not_written(path, error) from None
        finally:
            if fd >= 0:
                os.close(fd)

    def finish(self, path: Path, digest: str) -> None:
        """Give a fetched blob its name; it was checked and is on disk."""
        path.replace(self.blob(digest))
        sync_folder(self.blobs)

    # ---- models ------------------------------------------------------------------------------

    def models(self) -> tuple[str, list[Listed]]:
        """The models, and a text that changes whenever they do.

        Raises:
            FileFormatError: ``index.json`` is damaged.
        """
        try:
            with self.index_file.open("rb") as file:
                raw = file.read(_MOST_INDEX + 1)
        except FileNotFoundError:
            return "", []
        except OSError as error:
            raise FileFormatError(f"{self.index_file}: cannot be read: {error.strerror}.") from None
        try:
            body = parse_json(raw, str(self.index_file), _MOST_INDEX)
            return digest_of(raw), [Listed.from_entry(entry) for entry in body["manifests"]]  # type: ignore[index]
        except (FileFormatError, KeyError, TypeError, ValueError):
            raise FileFormatError(
                f"{self.index_file}: expected an OCI image layout's index of at most {_MOST_INDEX} "
                "bytes, got something else. Move it away and pull the models again; their blobs "
                "are kept."
            ) from None

    def manifest(self, listed: Listed) -> Manifest:
        """The manifest of a model.

        Raises:
            FileFormatError, HostileError: it is missing or damaged.
        """
        return parse_manifest(self.read(listed.manifest), listed.name)

    @contextmanager
    def changing(self) -> Iterator[dict[str, Listed]]:
        """The models by key, to be changed; written when the block ends well, if they differ."""
        self.make()
        with self._lock("index", fcntl.LOCK_EX):
            listed = {entry.key: entry for entry in self.models()[1]}
            before = dict(listed)
            yield listed
            if listed != before or not self.exists:
                body = {
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": [listed[key].to_entry() for key in sorted(listed)],
                }
                self._replace(
                    self.index_file, json.dumps(body, indent=1, ensure_ascii=False).encode()
                )

    def view(self, manifest: Manifest, files: Mapping[str, str]) -> Path:
        """A folder of a model's files under their own names; made if it is not there.

        Args:
            manifest: whose it is.
            files: digest by the path within the folder.
        """
        place = self.views / hex_of(manifest.digest)
        if place.is_dir() and not all(os.path.lexists(place / name) for name in files):
            self._drop_view(place)  # somebody was in there
        if not place.is_dir():
            self.make()
            beside = hidden_beside(place)
            try:
                for name, digest in files.items():
                    link = beside / name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    up = os.path.relpath(self.blob(digest), link.parent)
                    link.symlink_to(up)
                try:
                    beside.rename(place)
                except OSError:
                    if not place.is_dir():  # another process made it
                        raise
            except OSError as error:
                raise _not_written(place, error) from None
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        return place

    def _drop_view(self, place: Path) -> None:
        """Remove a view: first its name, so that a view of that name is never there in part."""
        hidden = place
        if not place.name.startswith("."):
            hidden = hidden_beside(place)
            with suppress(FileNotFoundError):
                place.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    # ---- cleaning ----------------------------------------------------------------------------

    @contextmanager
    def adding(self) -> Iterator[None]:
        """While blobs are added that nothing refers to yet: they are not removed meanwhile."""
        self.make()
        with self._lock("store", fcntl.LOCK_SH):
            yield

    def sweep(self, used: Collection[str], manifests: Collection[str]) -> tuple[int, int]:
        """Remove blobs, views and leftovers that nothing refers to; only within `alone`.

        What was fetched of a blob stays for two weeks, so that a pull can go on.

        Args:
            used: digests of all blobs that stay.
            manifests: digests of the manifests whose views stay.

        Returns:
            Number of blobs, and bytes given back.
        """
        keep = {hex_of(d) for d in used}
        count = size = 0
        for path in self.blobs.iterdir():
            if path.name in keep:
                continue
            status = path.lstat()
            if status.st_nlink == 1 and not path.is_symlink():
                size += status.st_size
            path.unlink()
            count += 1
        stay = {hex_of(d) for d in manifests}
        for path in self.views.iterdir():
            if path.name not in stay:
                self._drop_view(path)
        old = time.time() - _RESUMABLE
        for path in self.partials.iterdir():
            if path.lstat().st_mtime < old:
                size += path.lstat().st_size
                path.unlink()
        shutil.rmtree(self.work, ignore_errors=True)
        for path in (*self.root.glob(".*.partial"), *self.blobs.glob(".*.partial")):
            path.unlink(missing_ok=True)
        return count, size

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder on the store's disk for files on their way into it; within `adding`."""
        folder = self.work / secrets.token_hex(8)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise _not_written(folder, error) from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody is adding; for as long as the block lasts nobody begins to."""
        self.make()
        with self._lock("store", fcntl.LOCK_EX, wait=False) as got:
            yield got

    # ---- inside ------------------------------------------------------------------------------

    @contextmanager
    def _lock(self, name: str, kind: int, *, wait: bool = True) -> Iterator[bool]:
        path = self.root / "locks" / name
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _not_written(path, error) from None
        try:
            if wait:
                fcntl.flock(fd, kind)
                yield True
            else:
                yield _try_lock(fd, kind)
        finally:
            os.close(fd)

    def _replace(self, path: Path, data: bytes) -> None:
        with AtomicFile(path, force=True) as file:
            file.write(data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _not_written(self.root, error) from None


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(fd: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _not_written(path: Path, error: OSError) -> OutputError:
    reason = {
        errno.ENOSPC: "no space is left on its disk; free some, or set KVANT_HOME to another",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EACCES: "no permission to write there; check its owner, or set KVANT_HOME",
        errno.EROFS: "its file system is read-only; set KVANT_HOME to a folder elsewhere",
    }.get(error.errno or 0, error.strerror or str(error))
    return OutputError(f"{path}: the store cannot be written: {reason}.")
