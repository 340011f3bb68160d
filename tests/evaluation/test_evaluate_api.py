"""kvant.evaluate: models, texts and tokenizers that do not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvant
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
