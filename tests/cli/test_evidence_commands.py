"""Evidence as people ask for it: recorded, computed again, and found wrong where it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant
from kvant.builtin import builtin_text

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    return kvant.quantize("demo", "Q4_K_M", folder / "m.gguf", evidence=True).paths[0]


@pytest.fixture
def copy(measured: Path, tmp_path: Path) -> Path:
    for name in ("m.gguf", "m.evidence.json", "m.md"):
        (tmp_path / name).write_bytes((measured.parent / name).read_bytes())
    return tmp_path / "m.gguf"


def test_all_of_it_holds(run: Run, measured: Path) -> None:
    found = run("verify", measured, "--evidence", "--against", "demo")
    assert found.status == 0
    assert "0 not checked" in found.out.splitlines()[-1]
    assert "evidence: all " in found.out
    document = json.loads(run("verify", measured, "--evidence", "--json").out)
    assert document["ok"] is True
    unknown = [c["what"] for c in document["evidence"] if c["ok"] is None]
    assert unknown == ["divergence on kvant's built-in evaluation text"]  # no base was named


def test_figures_in_the_file_alone(run: Run, copy: Path) -> None:
    (copy.parent / "m.evidence.json").unlink()
    found = run("verify", copy, "--evidence", "--against", "demo")
    assert found.status == 0
    assert "kld on kvant's" in found.out


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("quality", 0, "kld"), 0.0153, "kld on"),
        (("quality", 0, "perplexity"), 101.0, "perplexity on"),
        (("quality", 0, "text", "corpus_sha256"), "0" * 64, "token chunks"),
        (("files", 0, "bytes"), 5, "bytes of m.gguf"),
        (("files", 0, "header_sha256"), "0" * 64, "header of m.gguf"),
        (("size", "classes", "ffn", "packings"), {"Q6_K": 18}, "size of ffn"),
        (("made", "effort"), "best", "made: effort"),
        (("made", "importance"), "0" * 64, "made: importance"),
        (("made", "source"), "0" * 64, "made: source"),
        (("made", "definition", "base"), "Q5_K", "made: definition"),
        (("made",), None, "how it was made"),
    ],
)
def test_tampering_is_found(
    run: Run, copy: Path, path: tuple[Any, ...], value: object, words: str
) -> None:
    place = copy.parent / "m.evidence.json"
    document = json.loads(place.read_text())
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    place.write_text(json.dumps(document))
    found = run("verify", copy, "--evidence", "--against", "demo")
    assert found.status == 1
    assert any(line.startswith(f"error: {words}") for line in found.out.splitlines())
    assert "wrong" in found.out.splitlines()[-1]


def test_tampered_metadata(run: Run, copy: Path) -> None:
    data = copy.read_bytes()
    assert data.count(b'"kld":0.01') == 1
    copy.write_bytes(data.replace(b'"kld":0.01', b'"kld":0.00'))
    found = run("verify", copy, "--evidence", "--against", "demo")
    assert found.status == 1
    assert "edited" in found.out  # the header's own checksum


def test_hostile_evidence_is_one_message(run: Run, copy: Path) -> None:
    (copy.parent / "m.evidence.json").write_text('{"kvant_evidence": 1, "files": "\\u001b[31m"}')
    found = run("verify", copy, "--evidence")
    assert (found.status, found.out) == (1, "")
    assert found.err.startswith("kvant: ")
    assert found.err.count("\n") == 1
    assert "\x1b" not in found.err


def test_another_base(run: Run, measured: Path, model: Path) -> None:
    found = run("verify", measured, "--evidence", "--against", model)
    assert found.status == 1
    assert "error: fingerprint of the source" in found.out


def test_eval_records(run: Run, tmp_path: Path) -> None:
    path = kvant.quantize("demo", "Q5_K_M", tmp_path / "m.gguf").paths[0]
    text = tmp_path / "own.txt"
    text.write_text(builtin_text("calibration").read_text()[:30_000])
    options = ["--against", "demo", "--context", "128", "--text", text]
    found = run("eval", path, *options, "--record")
    assert found.status == 0
    assert "recorded in" in found.err
    document = json.loads((tmp_path / "m.evidence.json").read_text())
    assert document["quality"][0]["text"]["name"] == "own.txt"
    assert "own.txt" in (tmp_path / "m.md").read_text()
    assert run("verify", path, "--evidence", "--against", "demo", "--text", text).status == 0
    blind = run("verify", path, "--evidence", "--against", "demo")
    assert blind.status == 0
    assert "the text is not at hand" in blind.out
    wrong = run("verify", path, "--evidence", "--text", builtin_text("calibration"))
    assert wrong.status == 1
    assert "names no text with this SHA-256" in wrong.err
    run("eval", path, *options, "--record")
    document = json.loads((tmp_path / "m.evidence.json").read_text())
    assert len(document["quality"]) == 1  # the same measurement, once


def test_bench_records(run: Run, tmp_path: Path) -> None:
    path = kvant.quantize("demo", "Q8_0", tmp_path / "m.gguf").paths[0]
    options = ["--prompt", "32", "--generate", "8", "--batch", "1", "--repeat", "1", "--record"]
    assert run("bench", path, *options).status == 0
    speed = json.loads((tmp_path / "m.evidence.json").read_text())["speed"]
    assert [s["test"] for s in speed] == ["prompt", "generate"]
    assert all(s["rate"] > 0 and s["machine"] for s in speed)
    assert "## Speed and memory" in (tmp_path / "m.md").read_text()


def test_recording_what_cannot_be(run: Run, measured: Path, copy: Path) -> None:
    assert "GGUF files" in run("eval", "demo", "--record").err
    assert "GGUF files" in run("bench", "demo", "--record").err
    other = kvant.quantize("demo", "Q8_0", copy.parent / "x.gguf", evidence=False).paths[0]
    (copy.parent / "x.evidence.json").write_bytes((copy.parent / "m.evidence.json").read_bytes())
    found = run("eval", other, "--chunks", "2", "--context", "64", "--record")
    assert found.status == 1
    assert "evidence of another file" in found.err
    assert run("verify", measured, "--text", "x.txt").status == 1
