"""Where output may not go, and what is left when writing ends early: nothing."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.errors import OutputError
from kvant.evidence import read_evidence
from kvant.files.gguf import read_gguf
from oracles.models import LLAMA, make_folder

AS_ROOT = os.geteuid() == 0


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_an_existing_file_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"exists already.*--force"):
        kvant.quantize(source, "Q4_K_M", out)
    assert out.read_bytes() == b"mine"
    assert names(tmp_path) == ["model.gguf"]
    kvant.quantize(source, "Q4_K_M", out, force=True)
    assert kvant.verify(out).ok
    assert names(tmp_path) == ["model.evidence.json", "model.gguf", "model.md"]


def test_one_existing_shard_stays(source: Path, tmp_path: Path) -> None:
    planned = kvant.quantize(source, "F16", tmp_path / "m.gguf", split_size=600_000, dry_run=True)
    assert len(planned.paths) > 2
    planned.paths[1].write_bytes(b"mine")
    with pytest.raises(OutputError, match=f"{planned.paths[1].name}: exists already"):
        kvant.quantize(source, "F16", tmp_path / "m.gguf", split_size=600_000)
    assert names(tmp_path) == [planned.paths[1].name]


def test_a_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    made = kvant.quantize(source, "Q4_K_M", tmp_path, dry_run=True)
    assert made.seconds is None
    assert names(tmp_path) == []


@pytest.mark.parametrize("how", ["same", "link", "hard link"])
def test_the_source_is_not_overwritten(source: Path, tmp_path: Path, how: str) -> None:
    (file,) = kvant.convert(source, tmp_path / "a.gguf").paths
    before = file.read_bytes()
    target = file if how == "same" else tmp_path / "b.gguf"
    if how == "link":
        target.symlink_to(file.name)
    if how == "hard link":
        target.hardlink_to(file)
    with pytest.raises(OutputError, match="is the source itself"):
        kvant.quantize(file, "Q4_K_M", target, force=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("missing/model.gguf", "folder does not exist"),
        ("file/model.gguf", "folder is a file"),
        ("model.bin", "expected an existing folder or a name that ends in .gguf"),
        ("model", "expected an existing folder or a name that ends in .gguf"),
        (f"{'n' * 300}.gguf", "name is too long"),
        ("folder.gguf/", None),
        ("pipe.gguf", "it is a device or pipe"),
        ("nul\0.gguf", "null"),
    ],
)
def test_places_that_do_not_do(source: Path, tmp_path: Path, where: str, words: str | None) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    before = names(tmp_path)
    if words is None:  # a folder, whatever it is called
        made = kvant.quantize(source, "Q4_K_M", tmp_path / where)
        assert made.paths[0].parent == tmp_path / "folder.gguf"
    else:
        with pytest.raises(OutputError, match=words):
            kvant.quantize(source, "Q4_K_M", f"{tmp_path}/{where}", force=True)
    assert names(tmp_path) == before


@contextmanager
def nobody() -> Iterator[None]:
    """Give up root's rights for a while."""
    if AS_ROOT:
        os.seteuid(65534)
    try:
        yield
    finally:
        if AS_ROOT:
            os.seteuid(0)


def test_a_folder_without_permission(
    source: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kvant.quantize(source, "Q4_K_M", tmp_path, dry_run=True)  # everything is imported
    (tmp_path / "closed").mkdir(mode=0o555)
    ours = tmp_path_factory.getbasetemp().parent
    above = {source, *source.parents, tmp_path, *tmp_path.parents}
    closed = {p: p.stat().st_mode for p in above if not p.stat().st_mode & 0o001}
    if not all(p.is_relative_to(ours) for p in closed):
        pytest.skip("other users cannot reach the folder for temporary files")
    for path in closed:
        path.chmod(0o755)
    try:
        with nobody(), pytest.raises(OutputError, match="no permission to write there"):
            kvant.quantize(source, "Q4_K_M", tmp_path / "closed")
    finally:
        for path, mode in closed.items():
            path.chmod(mode)
    assert names(tmp_path / "closed") == []


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space is left"), (errno.EIO, "the disk failed"), (errno.EDQUOT, "quota")],
)
@pytest.mark.parametrize("after", [0, 7, 500])
def test_a_disk_that_fails(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    words: str,
    after: int,
) -> None:
    real, calls = os.pwrite, 0

    def failing(fd: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(number, os.strerror(number))
        return real(fd, data[:1500], offset)  # short writes are finished

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(OutputError, match=words):
        kvant.quantize(source, "Q8_0", tmp_path / "m.gguf", threads=3)
    assert names(tmp_path) == []


def test_a_limit_on_file_sizes(source: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match="does not take files this large"):
            kvant.quantize(source, "Q8_0", tmp_path / "m.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert names(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where we may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not AS_ROOT or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_too_small_is_told_at_once(source: Path, tiny_disk: Path) -> None:
    with pytest.raises(OutputError, match=r"needs \d\.\d MB, its disk has \d\.\d MB free"):
        kvant.quantize(source, "F16", tiny_disk)
    assert names(tiny_disk) == []


def test_shards_that_fill_the_disk_together(source: Path, tiny_disk: Path) -> None:
    with pytest.raises(OutputError, match=r"no space is left|needs \d\.\d MB"):
        kvant.quantize(source, "F16", tiny_disk, split_size=600_000)
    assert names(tiny_disk) == []
    kvant.quantize(source, "Q4_K_M", tiny_disk)
    assert [n for n in names(tiny_disk) if n.endswith("Q4_K_M.gguf")]


def test_an_interrupt_in_the_middle(source: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kvant.quantize(source, "Q4_K_M", tmp_path, progress=interrupt)
    assert names(tmp_path) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty million weights: enough to be in the middle of."""
    config = {**LLAMA, "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 64}
    folder = make_folder(tmp_path_factory.mktemp("large") / "Large", config, dtype="BF16")
    return kvant.convert(folder, folder.parent / "large.gguf").paths[0]


def _start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_output(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not names(folder) and not _writes_in(folder, process.pid):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _writes_in(folder: Path, pid: int) -> bool:
    """Whether the process has a file open in the folder, with or without a name."""
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):  # closed meanwhile
            if os.readlink(descriptor).startswith(f"{folder}{os.sep}"):
                return True
    return False


_AGAIN_AND_AGAIN = """
import sys
from itertools import count
import kvant
for i in count():
    kvant.quantize(sys.argv[1], "Q4_0", f"{i}.gguf", threads=2, split_size=int(sys.argv[2]) or None)
"""


@pytest.mark.parametrize("split_size", [0, 8_000_000], ids=["single", "split"])
def test_killed_at_any_moment(large: Path, tmp_path: Path, split_size: int) -> None:
    rng = np.random.default_rng(int(time.time()))
    finished = 0
    for run in range(8):
        folder = tmp_path / str(run)
        folder.mkdir()
        process = _start("-c", _AGAIN_AND_AGAIN, str(large), str(split_size), cwd=folder)
        _wait_for_output(folder, process)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.kill()
        process.communicate()
        made = [n for n in names(folder) if n.endswith(".gguf")]
        for name in [n for n in names(folder) if n.endswith(".evidence.json")]:
            read_evidence(folder / name)  # whole, also where the model did not follow
        finished += len(made)
        # The first shard, which people load, is there only once the others are.
        for name in [n for n in made if not split_size or "-00001-of-" in n]:
            found = kvant.verify(folder / name)
            assert found.ok
            assert found.checksums == "good"
        for name in made:
            assert read_gguf(folder / name).tensors
        for name in names(folder):
            if name.endswith(".partial"):
                assert name.startswith(".")
            (folder / name).unlink()
    assert finished, "killed too early every time"


def test_ctrl_c(large: Path, tmp_path: Path) -> None:
    """Once, or several times by the impatient; a file finished just before stays, whole."""
    stopped = 0
    for delay, times in ((0, 1), (0.02, 1), (0.05, 1), (0.08, 1), (0.01, 3), (0.04, 3)):
        process = _start("-m", "kvant", "quantize", str(large), "Q2_K", "-o", ".", cwd=tmp_path)
        _wait_for_output(tmp_path, process)
        time.sleep(delay)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        for name in names(tmp_path):
            assert not name.endswith(".gguf") or kvant.verify(tmp_path / name).ok
            (tmp_path / name).unlink()
        if process.returncode == 0:  # it was faster than the signal
            continue
        stopped += 1
        assert process.returncode == 130, err
        assert out == "" or out.startswith("wrote ")
        assert err.strip().endswith("kvant: interrupted; nothing was left half written.")
    assert stopped, "every run was faster than its signal"
