"""Budgets as they are typed: never exceeded by a byte, nothing wasted, mistakes told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.packing import all_packings

Run = Callable[..., Any]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def smallest(run: Run, model: Path) -> int:
    found = run("quantize", model, "--fit", "1", "--effort", "fast")
    assert found.status == 1
    match = re.search(r"the smallest possible has ([0-9,]+) \(", found.err)
    assert match is not None, found.err
    return int(match[1].replace(",", ""))


def test_the_smallest_is_stated_and_can_be_had(run: Run, model: Path, here: Path) -> None:
    least = smallest(run, model)
    assert run("quantize", model, "--fit", least - 1, "--effort", "fast").status == 1
    assert not list(here.iterdir())
    found = run("quantize", model, "--fit", least, "--effort", "fast", "-o", "a.gguf")
    assert found.status == 0, found.err
    assert (here / "a.gguf").stat().st_size == least


def test_measured_budgets_state_the_same(run: Run, model: Path, here: Path) -> None:
    """Whether importance goes into the header is counted before it is collected."""
    found = run("quantize", model, "--fit", "1")
    match = re.search(r"the smallest possible has ([0-9,]+) \(", found.err)
    assert match is not None
    least = int(match[1].replace(",", ""))
    found = run("quantize", model, "--fit", least, "-o", "a.gguf")
    assert found.status == 0, found.err
    assert (here / "a.gguf").stat().st_size == least
    assert "tensors measured on" in found.err


def test_no_byte_over_and_little_under(run: Run, model: Path, here: Path) -> None:
    least = smallest(run, model)
    sizes = [least + step for step in (1, 31, 32, 5_000, 44_444, 100_001, 333_333, 10**9)]
    unquantised = kvant.convert(model, here / "base.gguf").nbytes
    for size in sizes:
        found = run(
            "quantize",
            model,
            "--fit",
            size,
            "--effort",
            "fast",
            "-o",
            "a.gguf",
            "--force",
            "--json",
        )
        assert found.status == 0, found.err
        report = json.loads(found.out)
        written = (here / "a.gguf").stat().st_size
        assert written == report["bytes"] <= size
        if least + 40_000 < size < unquantised:
            assert written >= size * 0.99
    assert {t["packing"] for t in report["tensors"]} == {"BF16", "F32"}
    assert report["expected_kld"] == 0


def test_bits_per_weight(run: Run, model: Path, here: Path) -> None:
    for bits in ("2.9", "3.5", "5"):
        found = run("quantize", model, "--bpw", bits, "--effort", "fast", "--json")
        assert found.status == 0, found.err
        report = json.loads(found.out)
        assert 0.98 * float(bits) < report["bpw"] <= float(bits)
        assert report["recipe"] == f"kvant-{report['bpw']:.2f}bpw"
        path = Path(report["paths"][0])
        assert path.name.endswith(f"-{report['recipe']}.gguf")
        assert open_checkpoint(path).gguf is not None
        assert kvant.verify(path).ok
    found = run("quantize", model, "--bpw", "1.5", "--effort", "fast")
    least = re.search(r"the fewest possible are ([0-9.]+)\. Allow", found.err)
    assert found.status == 1
    assert least is not None
    found = run("quantize", model, "--bpw", least[1], "--effort", "fast", "-o", "least.gguf")
    assert found.status == 0, found.err


def test_a_recipe_file_makes_the_same_bytes(run: Run, model: Path, here: Path) -> None:
    assert run("calibrate", model, "-o", "i.gguf").status == 0
    common = ("--importance", "i.gguf")
    found = run("quantize", model, "--bpw", "4", *common, "-o", "a.gguf", "--save-recipe", "r.json")
    assert found.status == 0, found.err
    assert "wrote the recipe r.json" in found.err
    how = ("--effort", "balanced", "--evidence")
    again = run("quantize", model, "r.json", *common, *how, "-o", "b.gguf")
    assert again.status == 0, again.err
    assert (here / "a.gguf").read_bytes() == (here / "b.gguf").read_bytes()
    again = run("quantize", model, "r.json", "--save-recipe", "s.json", "-o", "c.gguf")
    assert again.status == 0
    assert (here / "r.json").read_bytes() == (here / "s.json").read_bytes()
    assert run("quantize", model, "r.json", "--save-recipe", "s.json", "-o", "d.gguf").status == 1


def test_max_kld(run: Run, model: Path, here: Path) -> None:
    text = here / "text.txt"
    text.write_text("It was a bright cold day in April, and the clocks were striking. " * 60)
    sizes = []
    for limit in ("0.05", "0.005"):
        found = run(
            *("quantize", model, "--max-kld", limit, "--effort", "fast", "--json", "--force"),
            *("--validation", text, "-o", "a.gguf"),
        )
        assert found.status == 0, found.err
        report = json.loads(found.out)
        assert report["measured"]["kld"] <= float(limit)
        kept = kvant.evaluate("a.gguf", model, text=text)[1]
        assert kept.kld == report["measured"]["kld"]
        sizes.append(report["bytes"])
    assert sizes[0] < sizes[1]


def test_only_what_is_allowed(run: Run, model: Path, here: Path) -> None:
    found = run(
        *("quantize", model, "--bpw", "5", "--effort", "fast", "--json"),
        *("--packings", "Q4_0,q8_0", "--tensor", "attn_v=Q6_K"),
    )
    assert found.status == 0, found.err
    packings = {t["name"]: t["packing"] for t in json.loads(found.out)["tensors"]}
    values = {p for n, p in packings.items() if "attn_v" in n}
    others = {p for n, p in packings.items() if "attn_v" not in n and "norm" not in n}
    assert values == {"Q6_K"}
    assert others <= {"Q4_0", "Q8_0", "BF16"}
    assert {p for n, p in packings.items() if "norm" in n} == {"F32"}


def test_new_packings_are_taken_up_by_themselves(run: Run, model: Path, here: Path) -> None:
    found = run(
        "quantize", model, "--bpw", "4.6", "--effort", "fast", "--dry-run", "--packings", "all"
    )
    assert found.status == 0, found.err
    assert not list(here.iterdir())
    assert all(isinstance(p.fast, bool) for p in all_packings())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bpw", "0"), "above zero, got 0"),
        (("--bpw", "nan"), "above zero, got nan"),
        (("--max-kld", "-1"), "from 0, got -1"),
        (("--bpw", "4", "--packings", "Q9_K"), "no packing called 'Q9_K'"),
        (("--bpw", "4", "--packings", ","), "--packings names no packing"),
        (("--bpw", "4", "--packings", "F16"), "expects packings that quantise, got F16"),
        (("--bpw", "4", "--tensor", "nothing=Q4_K"), "matches no weight matrix"),
        (("--bpw", "4", "--text", "missing.txt"), "missing.txt"),
        (("Q4_K_M", "--packings", "all"), "--packings goes with a budget"),
        (("Q4_K_M", "--validation", "x"), "--validation goes with a budget"),
        (("missing.json",), "missing.json: no such file"),
    ],
)
def test_mistakes(
    run: Run, model: Path, here: Path, arguments: tuple[str, ...], words: str
) -> None:
    found = run("quantize", model, *arguments)
    assert found.status == 1
    assert found.out == ""
    assert found.err.startswith("kvant: ")
    assert found.err.count("\n") == 1
    assert words in found.err
    assert not list(here.iterdir())


def test_recipe_files_that_are_none(run: Run, model: Path, here: Path) -> None:
    path = here / "r.json"
    for content, words in (
        ('{"name": "x", "base": "Q9"}', "r.json: base: expected a packing, got 'Q9'"),
        ("{", "r.json"),
        ('{"name": "x"}', "r.json: a recipe needs the field"),
    ):
        path.write_text(content)
        found = run("quantize", model, "r.json")
        assert found.status == 1
        assert words in found.err
        assert found.err.count("\n") == 1
    assert run("quantize", "demo", "--bpw", "5", "--effort", "fast", "--save-recipe", "d.json")
    found = run("quantize", model, "d.json")
    assert found.status == 1
    assert "belongs to another model" in found.err


def test_text_too_short(run: Run, model: Path, here: Path) -> None:
    (here / "short.txt").write_text("Too short.")
    found = run("quantize", model, "--bpw", "4", "--text", "short.txt")
    assert found.status == 1
    assert "are needed" in found.err


def test_other_targets(run: Run, model: Path, here: Path) -> None:
    """The same options; the level of every tensor is told, and kept as a recipe."""
    common = ("quantize", model, "--to", "mlx", "--effort", "fast")
    found = run(*common, "--bpw", "4.4", "--save-recipe", "r.json", "-o", "a", "--json")
    assert found.status == 0, found.err
    report = json.loads(found.out)
    assert 4 < report["bpw"] <= 4.4
    levels = {t["name"]: t["packing"] for t in report["tensors"]}
    kept = json.loads((here / "r.json").read_text())["tensors"]
    assert {n: v for n, v in levels.items() if n in kept} == kept
    assert run("quantize", model, "r.json", "--to", "mlx", "-o", "b").status == 0
    assert (here / "a/model.safetensors").read_bytes() == (
        here / "b/model.safetensors"
    ).read_bytes()
    found = run(*common, "--fit", "10KB")
    assert found.status == 1
    assert "nothing for mlx fits 10,000 bytes; the smallest possible has" in found.err
    found = run(*common, "--bpw", "4.4", "--dry-run")
    assert found.status == 0
    assert "would write" in found.out
    assert "expected KL divergence" in found.err
    for option in ("--evidence", "--pre-tokenizer=x"):
        assert "is for GGUF files" in run(*common, "--bpw", "4.4", option).err
    assert (
        "goes with a budget" in run("quantize", model, "4bit", "--to", "mlx", "--packings", "x").err
    )
    found = run(*common, "--bpw", "4.4", "--text", "x.txt")
    assert "A text is for --effort balanced or best" in found.err
