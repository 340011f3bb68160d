"""``kvant bench``: tables, JSON, and requests that make no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant

Run = Callable[..., Any]
SMALL = ("--prompt", "8,20", "--generate", "2", "--batch", "1,3", "--repeat", "1")


@pytest.fixture(scope="module")
def quantized(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kvant.quantize(model, "Q4_0", tmp_path_factory.mktemp("b") / "m.gguf").paths[0]


def test_json(run: Run, quantized: Path) -> None:
    found = run("bench", quantized, *SMALL, "--depth", "0,30", "--threads", "2", "--json")
    assert found.status == 0
    document = json.loads(found.out)
    assert document["name"] == "m.gguf"
    assert document["threads"] == 2
    assert document["kv_type"] == "f16"
    tests = [(r["test"], r["tokens"], r["batch"], r["depth"]) for r in document["results"]]
    each = [("prompt", 8, 1), ("prompt", 20, 1), ("generate", 2, 1), ("generate", 2, 3)]
    assert tests == [(*test, depth) for depth in (0, 30) for test in each]
    for result in document["results"]:
        assert result["rate"] == pytest.approx(
            result["tokens"] * result["batch"] / result["seconds"]
        )
        assert result["limit"] > 0
        assert result["share"] > 0
        assert len(result["runs"]) == 1
    assert set(document["limits"]) == {"bandwidth", "int8"}
    assert document["peak_rss_bytes"] > document["weights_bytes"] > 0
    layers, kv_heads, head_dim, halves = 2, 2, 64, 2 * 2
    room = document["kv_bytes"] / (layers * kv_heads * head_dim * halves)
    assert room >= 3 * 32  # three sequences of 30 tokens and 2 more


def test_the_table(run: Run, quantized: Path) -> None:
    found = run("bench", quantized, *SMALL, "--kv", "q8_0")
    assert found.status == 0
    lines = found.out.splitlines()
    assert lines[0].startswith("m.gguf: ")
    assert "q8_0" in lines[0]
    for start in ("prompt 8 ", "prompt 20 ", "generate 2 ", "generate 2, batch 3 "):
        assert sum(line.startswith(start) for line in lines) == 1, found.out
    assert lines[-2].startswith("machine  ")
    assert lines[-1].startswith("memory   weights ")


def test_defaults_are_cut_to_what_the_model_takes(run: Run, model: Path) -> None:
    """Its context is 256: the default prompt of 512 is left out, and a depth leaves less room."""
    document = json.loads(run("bench", model, "--batch", "0", "--repeat", "1", "--json").out)
    assert [(r["test"], r["tokens"]) for r in document["results"]] == [("prompt", 128)]
    options = ("--depth", "200", "--batch", "1", "--repeat", "1", "--json")
    document = json.loads(run("bench", model, *options).out)
    assert [(r["test"], r["tokens"]) for r in document["results"]] == [
        ("prompt", 56),
        ("generate", 56),
    ]


def test_from_python(quantized: Path) -> None:
    report = kvant.benchmark(quantized, prompts=[4], batches=[], repeat=2, threads=1)
    (result,) = report.results
    assert (result.test, result.tokens, len(result.runs)) == ("prompt", 4, 2)
    assert report.limits.peaks["int8"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "300"], "need 300 tokens of context"),
        (["--depth", "250", "--generate", "9"], "fewer tokens to generate"),
        (["--prompt", "0", "--batch", "0"], "nothing to measure"),
        (["--depth", "256"], "tokens of context"),
    ],
)
def test_requests_that_make_no_sense(
    run: Run, model: Path, arguments: list[str], words: str
) -> None:
    found = run("bench", model, *arguments)
    assert (found.status, found.out) == (1, "")
    assert found.err.count("\n") == 1
    assert words in found.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "8,x"], "expected a whole number from 0, got 'x'"),
        (["--depth=-1"], "expected a whole number from 0, got '-1'"),
        (["--generate", "0"], "expected a whole number from 1"),
        (["--kv", "f32"], "invalid choice: 'f32'"),
        (["--repeat", "0"], "expected a whole number from 1"),
    ],
)
def test_command_lines_that_cannot_be_read(run: Run, arguments: list[str], words: str) -> None:
    found = run("bench", "demo", *arguments)
    assert (found.status, found.out) == (2, "")
    assert words in found.err


@pytest.mark.parametrize("name", ["kv_type", "repeat", "depths", "generate"])
def test_mistakes_from_python(quantized: Path, name: str) -> None:
    wrong: dict[str, Any] = {"kv_type": "f32", "repeat": 0, "depths": [-1], "generate": 0}
    with pytest.raises(kvant.KvantError, match=r"f32|from [01], got"):
        kvant.benchmark(quantized, **{name: wrong[name]})
