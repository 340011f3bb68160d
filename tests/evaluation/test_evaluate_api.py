"""kvant.evaluate: models, texts and tokenizers that do not go together."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

import kvant
from kvant.api import measurement
from kvant.errors import UsageError
from oracles.models import LLAMA, make_folder


def test_models_without_a_base_must_read_text_alike(tmp_path: Path) -> None:
    other = make_folder(tmp_path / "Other", LLAMA)
    with pytest.raises(UsageError, match=r"vocabular|tokenizer"):
        kvant.evaluate(["demo", other], chunks=2)


def test_differences_are_paired(tmp_path: Path) -> None:
    files = [
        kvant.quantize("demo", recipe, tmp_path / f"{recipe}.gguf").paths[0]
        for recipe in ("Q8_0", "Q2_K")
    ]
    _, fine, coarse = kvant.evaluate(files, "demo", chunks=4)
    difference = kvant.kld_difference(coarse, fine)
    assert coarse.kld is not None
    assert fine.kld is not None
    assert difference.value == pytest.approx(coarse.kld - fine.kld)
    assert 0 < difference.se < difference.value / 4
    assert kvant.ln_ppl_difference(fine, fine).value == 0


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models were loaded each time when another one was."""
    counts: list[int] = []
    runners: weakref.WeakSet[Any] = weakref.WeakSet()
    load = measurement.run_artefact

    def counted(*args: Any, **named: Any) -> Any:
        runner = load(*args, **named)
        runners.add(runner)
        counts.append(len(runners))
        return runner

    monkeypatch.setattr(measurement, "run_artefact", counted)
    return counts


def test_without_a_base_one_model_is_loaded_at_a_time(alive: list[int]) -> None:
    results = kvant.evaluate(["demo", "demo", "demo"], chunks=2, context=64)
    assert alive == [1, 1, 1]
    assert len({r.perplexity for r in results}) == 1


def test_variants_beside_their_base(
    tmp_path: Path, alive: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kvant.quantize("demo", "Q4_0", tmp_path / "a.gguf").paths[0]
    together = kvant.evaluate([file, "demo"], "demo", chunks=2, context=64)
    assert alive == [1, 2, 3]
    monkeypatch.setattr(measurement, "available_memory", lambda: 1)
    alive.clear()
    apart = kvant.evaluate([file, "demo"], "demo", chunks=2, context=64)
    assert alive == [1, 2, 2]
    assert [(r.name, r.perplexity, r.kld, r.base) for r in apart] == [
        (r.name, r.perplexity, r.kld, r.base) for r in together
    ]


def test_vocabularies_are_compared_before_a_model_is_loaded(
    tmp_path: Path, alive: list[int]
) -> None:
    other = make_folder(tmp_path / "Other", LLAMA)
    with pytest.raises(UsageError, match="vocabular"):
        kvant.evaluate([other], "demo", chunks=2, context=64)
    assert not alive
