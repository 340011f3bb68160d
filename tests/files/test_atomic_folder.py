"""Folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvant.errors import OutputError
from kvant.files.atomic_folder import AtomicFolder


def fill(folder: AtomicFolder, text: str = "{}") -> None:
    folder.open("model.safetensors").write_at(b"12345678", 0)
    folder.write("config.json", text)
    folder.write("1_Pooling/config.json", text)


def test_it_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with AtomicFolder(out) as folder:
        fill(folder)
        assert not out.exists()
        folder.finish_files()
        assert (folder.work / "model.safetensors").read_bytes() == b"12345678"
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*"))
    assert names == ["1_Pooling", "1_Pooling/config.json", "config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with AtomicFolder(tmp_path / "model") as folder:
            fill(folder)
            raise error

    with pytest.raises(error):
        write()
    assert not list(tmp_path.iterdir())


def test_replacing_takes_force_and_a_model(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with AtomicFolder(out) as folder:
        fill(folder)
    with pytest.raises(OutputError, match="exists already"), AtomicFolder(out):
        pass
    with AtomicFolder(out, force=True) as folder:
        folder.write("config.json", "new")
    assert [p.name for p in out.iterdir()] == ["config.json"]
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="thesis"), AtomicFolder(out, force=True):
        pass
    (out / "thesis.tex").rename(out / "notes.md")
    (out / "papers").mkdir()
    with pytest.raises(OutputError, match="papers"), AtomicFolder(out, force=True):
        pass
    assert (out / "notes.md").read_text() == "years of work"


def test_a_failed_replacement_keeps_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with AtomicFolder(out) as folder:
        fill(folder, "old")

    def write() -> None:
        with AtomicFolder(out, force=True) as folder:
            fill(folder, "new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert (out / "config.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match="is a file"), AtomicFolder(tmp_path / "file"):
        pass
    with pytest.raises(OutputError, match="Create it first"), AtomicFolder(tmp_path / "no" / "x"):
        pass
    with pytest.raises(OutputError, match="it needs"), AtomicFolder(tmp_path / "x", size=1 << 60):
        pass
    with AtomicFolder(tmp_path / "empty") as folder:
        fill(folder)
    assert (tmp_path / "empty" / "config.json").exists()
