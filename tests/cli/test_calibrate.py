"""``kvant calibrate`` and ``kvant quantize --importance`` as people type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant
from kvant.calibration import read_importance
from kvant.checkpoint import open_checkpoint
from kvant.files.gguf import read_gguf
from oracles.models import LLAMA, QWEN3, make_folder

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("".join(f"Line {i}: some words, and {i * i} of them.\n" for i in range(300)))
    return path


@pytest.fixture(scope="session")
def importance(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("importance") / "tiny.importance"
    kvant.calibrate(model, path, texts=[text])
    return path


def test_calibrate(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    code = tmp_path / "code.txt"
    code.write_text("def f(x):\n    return x + 1\n" * 300)
    command = ("calibrate", model, "--text", f"{text}:3", "--text", code, "--tokens", 4096)
    found = run(*command, "-o", tmp_path / "a.importance", "--threads", 1)
    assert found.status == 0, found
    lines = [line.split() for line in found.out.splitlines()]
    assert ["prose.txt", "3", "3,072"] in lines
    assert ["code.txt", "1", "1,024"] in lines
    assert f"wrote {tmp_path / 'a.importance'}" in found.out
    assert "inputs of 15 tensors over 16 chunks of 256 tokens" in found.out
    again = run(*command, "-o", tmp_path / "b.importance", "--json")
    report = json.loads(again.out)
    assert report["tokens"] == 4096
    assert report["tensors"] == 15
    assert [t["name"] for t in report["texts"]] == ["prose.txt", "code.txt"]
    same = [(tmp_path / f"{n}.importance").read_bytes() for n in "ab"]
    assert same[0] == same[1]
    read = read_importance(tmp_path / "a.importance")
    assert [(t.name, t.weight, t.tokens) for t in read.texts] == [
        ("prose.txt", 3, 3072),
        ("code.txt", 1, 1024),
    ]
    assert "token_embd.weight" in again.err  # not tied: nothing is fed to it


def test_the_name_by_default_and_the_older_format(
    run: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("calibrate", model, "--text", text).status == 0
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("Tiny")
    assert path.suffix == ".importance"
    assert "exists already" in run("calibrate", model, "--text", text).err
    assert run("calibrate", model, "--text", text, "--force", "-o", tmp_path).status == 0
    assert run("calibrate", model, "--text", text, "-o", "x.dat").status == 0
    assert (tmp_path / "x.dat").read_bytes()[:4] == b"\x0f\0\0\0"


def test_quantize_with_importance(run: Run, model: Path, importance: Path, tmp_path: Path) -> None:
    plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
    assert run("quantize", model, "Q3_K_M", "-o", plain).status == 0
    command = ("quantize", model, "Q3_K_M", "--importance", importance)
    found = run(*command, "-o", weighed)
    assert found.status == 0
    assert "all columns count alike: token_embd.weight" in found.err
    keys = read_gguf(weighed)
    assert keys.get_str("quantize.imatrix.file") == "tiny.importance"
    assert keys.get_str("quantize.imatrix.dataset") == "prose.txt"
    assert keys.get_int("quantize.imatrix.entries_count") == 15
    assert keys.get_int("quantize.imatrix.chunks_count") == read_importance(importance).chunks
    assert keys.get_str("kvant.importance.sha256") == read_importance(importance).sha256
    assert keys.get_str("kvant.method") == "weighted scale search"
    assert kvant.verify(weighed).ok
    a, b = open_checkpoint(plain), open_checkpoint(weighed)
    differ = {
        name
        for name in a.weights
        if (a.weights[name].read_f32() != b.weights[name].read_f32()).any()
    }
    assert differ == set(read_importance(importance).sums)  # all but the embedding and the norms
    # The same from Python, with the importance itself.
    kvant.quantize(model, "Q3_K_M", tmp_path / "c.gguf", importance=read_importance(importance))
    assert (tmp_path / "c.gguf").read_bytes() == weighed.read_bytes()
    kvant.quantize(weighed, "Q8_0", tmp_path / "again.gguf")  # its keys are not carried on
    assert "quantize.imatrix.file" not in read_gguf(tmp_path / "again.gguf").metadata


def test_formulas_take_no_importance_and_it_is_said(
    run: Run, model: Path, importance: Path, tmp_path: Path
) -> None:
    found = run(*("quantize", model, "Q8_0", "--importance", importance, "-o", tmp_path / "a.gguf"))
    assert found.status == 0
    assert "16 tensors are Q8_0, which follows a formula" in found.err
    assert "quantize.imatrix.file" not in read_gguf(tmp_path / "a.gguf").metadata
    assert run("quantize", model, "Q8_0", "-o", tmp_path / "b.gguf").status == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "Other", QWEN3, dtype="BF16")


def test_mistakes(
    run: Run, model: Path, importance: Path, others: Path, text: Path, tmp_path: Path
) -> None:
    cut, nothing = tmp_path / "cut.importance", tmp_path / "out.gguf"
    cut.write_bytes(importance.read_bytes()[:-3000])
    short = tmp_path / "short.txt"
    short.write_text("too short")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("quantize", others, "Q4_K_M", "--importance", importance), "made of another model"),
        (("quantize", model, "Q4_K_M", "--importance", cut), "truncated or damaged"),
        (("quantize", model, "Q4_K_M", "--importance", text), "expected an importance file"),
        (("quantize", model, "Q4_K_M", "--importance", tmp_path / "no"), "no such file"),
        (("calibrate", model, "--text", short), "8 chunks of 256 (2,048 tokens) are needed"),
        (("calibrate", model, "--text", f"{text}:0"), "a number above zero"),
        (("calibrate", model, "--text", f"{text}:x"), "FILE or FILE:WEIGHT"),
        (("calibrate", model, "--text", tmp_path / "no.txt"), "cannot be read"),
        (("calibrate", model, "--text", text, "--tokens", 9), "at least 2,048 tokens"),
        (("calibrate", model, "--text", text, "--chunk", 999), "more than the model takes"),
        (("calibrate", model, "--text", text, "--max-memory", "1M"), "MB"),
        (("calibrate", tmp_path / "nothing"), "no such file"),
    ]
    for command, message in cases:
        found = run(*command, "-o", nothing)
        assert found.status == 1, command
        assert message in found.err
        assert found.err.startswith("kvant: ")
        assert found.err.count("\n") == 1
        assert found.out == ""
        assert not nothing.exists()
    folder = make_folder(tmp_path / "mute", LLAMA, tokenizer=False)
    assert "has no tokenizer" in run("calibrate", folder, "-o", nothing).err


def test_a_file_with_a_colon_in_its_name(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a:2"
    odd.write_bytes(text.read_bytes())
    found = run("calibrate", model, "--text", odd, "-o", tmp_path / "x.importance", "--json")
    assert json.loads(found.out)["texts"][0]["name"] == "a:2"
