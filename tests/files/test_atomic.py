"""Atomic writing: all or nothing, and one clear error."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import OutputError
from kvant.files.atomic import AtomicFile, write_atomic


@pytest.fixture(params=["unnamed", "named"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything with a file that has no name yet, and where the system cannot make one."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no unnamed files")
    return str(request.param)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sync", [True, False])
def test_nothing_under_the_name_until_the_end(tmp_path: Path, sync: bool, way: str) -> None:
    path = tmp_path / "out.bin"
    with AtomicFile(path, size=6, sync=sync) as file:
        file.write(b"abc")
        file.write(np.frombuffer(b"def", np.uint8))
        assert not path.exists()
        assert len(names(tmp_path)) == (way == "named")
    assert path.read_bytes() == b"abcdef"
    assert names(tmp_path) == ["out.bin"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OutputError])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with AtomicFile(tmp_path / "out.bin") as file:
            file.write(b"abc")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == []


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def fail() -> None:
        with AtomicFile(path, force=True) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    with AtomicFile(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["out.bin"]


def test_existing_output(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"), AtomicFile(path):
        pass
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists already"), AtomicFile(link):
        pass
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("links", [True, False])
def test_output_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    path = tmp_path / "out.bin"
    if not links:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)  # nor does FAT have unnamed files
        monkeypatch.setattr(os, "link", _refuse)

    def meet() -> None:
        with AtomicFile(path) as file:
            file.write(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="exists already"):
        meet()
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["out.bin"]
    with AtomicFile(tmp_path / "other.bin") as file:
        file.write(b"ours")
    assert names(tmp_path) == ["other.bin", "out.bin"]


def _refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


def test_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    blocks = [bytes([i]) * 1_000 for i in range(32)]
    with AtomicFile(path) as file:
        threads = [
            threading.Thread(target=file.write_at, args=(block, 1_000 * i))
            for i, block in enumerate(blocks)
        ]
        for thread in reversed(threads):
            thread.start()
        for thread in threads:
            thread.join()
    assert path.read_bytes() == b"".join(blocks)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    write_atomic(tmp_path / "out", b"0123456789" * 5)
    assert (tmp_path / "out").read_bytes() == b"0123456789" * 5


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "files this large"),
        (errno.EIO, "the disk failed"),
        (errno.EBADMSG, "Bad message"),
    ],
)
def test_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    for function in ("pwrite", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OutputError, match=rf"out\.bin: cannot be written: .*{message}"):
                write_atomic(tmp_path / "out.bin", b"abc")
        assert names(tmp_path) == []


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems say EINVAL; the file itself is safe by then."""
    real = os.fsync
    calls: list[int] = []

    def sync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "folders cannot be synced here")
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    write_atomic(tmp_path / "out", b"abc")
    assert (tmp_path / "out").read_bytes() == b"abc"


def test_too_little_space_is_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"needs .* MB, its disk has .* MB free"):
        AtomicFile(tmp_path / "out.bin", size=1 << 60).__enter__()
    assert names(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "pipe", "device or pipe"),
        (tmp_path / "nowhere" / "out", "does not exist"),
        (tmp_path / "file" / "out", "its folder is a file"),
        (tmp_path / ("n" * 300), "name is too long"),
        (tmp_path / "a\0b", "null"),
    ):
        for force in (False, True):
            with pytest.raises(OutputError, match=message):
                write_atomic(path, b"abc", force=force)
    assert names(tmp_path) == ["file", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        write_atomic(tmp_path / "out", b"abc")


def test_the_longest_names(tmp_path: Path) -> None:
    """A name as long as the file system takes leaves room for nothing, except in our temporary."""
    for name in ("n" * 255, "é" * 127, "😀" * 63):
        write_atomic(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name


def test_empty_and_text(tmp_path: Path) -> None:
    write_atomic(tmp_path / "empty", b"")
    write_atomic(tmp_path / "text", "é\n")
    assert (tmp_path / "empty").read_bytes() == b""
    assert (tmp_path / "text").read_text(encoding="utf-8") == "é\n"


_KILLED = """
import os, signal, sys
from kvant.files.atomic import AtomicFile
with AtomicFile(sys.argv[1], force=True) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_writing(tmp_path: Path, way: str) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = _KILLED if way == "unnamed" else "import os; del os.O_TMPFILE\n" + _KILLED
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    rest = [name for name in names(tmp_path) if name != "out.bin"]
    assert len(rest) == (way == "named")
    assert all(name.endswith(".partial") for name in rest)


def test_file_systems_without_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They refuse the flag, or there is no /proc to name the file by later."""
    real = os.open

    def refuse(path: str, flags: int, *rest: int, **named: int) -> int:
        if flags & getattr(os, "O_TMPFILE", 0) == getattr(os, "O_TMPFILE", -1):
            raise OSError(errno.EOPNOTSUPP, "not on this file system")
        return real(path, flags, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        write_atomic(tmp_path / "a", b"abc")
    with monkeypatch.context() as patch:
        patch.setattr("kvant.files.atomic._by_descriptor", lambda fd: f"/nowhere/{fd}")
        write_atomic(tmp_path / "b", b"abc")
    assert names(tmp_path) == ["a", "b"]
