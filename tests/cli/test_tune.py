"""``kvant tune`` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant
from kvant.quant.recipe_file import read_recipe

Run = Callable[..., Any]
FILES = {"report.html", "report.json", "report.md", "quality.svg", "quality.png"}
QUICK = ("--effort", "fast", "--chunks", "2", "--presets", "Q4_K_M,q8_0")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_report(run: Run, model: Path, here: Path) -> None:
    found = run(
        *("tune", model, "--report", "r", "--budgets", "1,4, 5.5", "--prompt", "Once <b>"),
        *("--effort", "balanced", "--chunks", "2", "--presets", "Q4_K_M,q8_0"),
    )
    assert found.status == 0, found.err
    assert "no mixture has 1 bits per weight" in found.err
    assert "kvant-4.00bpw" in found.out
    report = json.loads((here / "r" / "report.json").read_text())
    rows = {v["name"]: v for v in report["variants"]}
    low, high = (v["name"] for v in report["variants"] if v["maker"] == "kvant")
    assert set(rows) == {low, high, "Q4_K_M", "Q8_0"}
    assert low == "kvant-4.00bpw"
    names = {p.name for p in (here / "r").iterdir()}
    assert names >= FILES
    for row in rows.values():
        path = here / row["path"]
        assert path.stat().st_size == row["result"]["bytes"]
        assert kvant.verify(path).ok
        assert row["prompt_rate"] > 0
        assert row["generation_rate"] > 0
        assert row["memory_bytes"] > row["result"]["bytes"] / 2
        assert len(row["samples"]) == 1
    sizes = [v["result"]["bytes"] for v in report["variants"]]
    assert sizes == sorted(sizes)
    assert [p["name"] for p in report["picks"]] == [low, high]
    assert "the best preset in as many bytes, Q4_K_M" in report["picks"][1]["why"]
    assert read_recipe(Path(rows[low]["path"]).with_suffix(".json")).name == low
    page = (here / "r" / "report.html").read_text()
    assert "Once &lt;b&gt;" in page
    assert page.count("<svg") == 3
    assert (here / "r" / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_is_not_overwritten(run: Run, model: Path, here: Path) -> None:
    command = ("tune", model, "--report", "r", "--budgets", "5", "--no-speed", *QUICK, "--json")
    found = run(*command)
    assert found.status == 0, found.err
    report = json.loads(found.out)
    assert report["variants"][0]["generation_rate"] is None
    assert report["sensitivity"]["tokens"] == 0
    before = {p: p.read_bytes() for p in (here / "r").iterdir()}
    found = run(*command)
    assert found.status == 1
    assert "exists already" in found.err
    assert {p: p.read_bytes() for p in (here / "r").iterdir()} == before
    assert run(*command, "--force").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--budgets", "1,2"), 1, "the fewest possible are"),
        (("--budgets", "0"), 1, "above zero, got 0"),
        (("--budgets", ""), 1, "There is no budget"),
        (("--budgets", "three"), 2, "expected numbers such as 2.5,3,4"),
        (("--presets", "Q9_K"), 1, "no recipe called 'Q9_K'"),
        (("--llama-cpp", "."), 1, "holds no program llama-quantize"),
        (("--packings", "none"), 1, "no packing called 'none'"),
    ],
)
def test_mistakes(
    run: Run, model: Path, here: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    found = run("tune", model, "--report", "r", "--effort", "fast", *arguments)
    assert found.status == status
    assert words in found.err
    assert "Traceback" not in found.err
    assert found.out == ""
