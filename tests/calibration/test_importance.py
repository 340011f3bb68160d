"""Means, what stands in for cold inputs, and whose importance it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.calibration import Cold, Importance, belonging, model_fingerprint
from kvant.calibration.importance import FLOOR, PRIOR
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.errors import InputError
from oracles.models import LLAMA, QWEN3, make_folder, weights_of


def made(**sums: list[float] | list[list[float]]) -> Importance:
    return Importance(
        {n: np.array(v, np.float32) for n, v in sums.items()},
        {n: np.full(len(v) if isinstance(v[0], list) else 1, 10) for n, v in sums.items()},
    )


def test_means_and_their_scale() -> None:
    found = made(a=[10, 30, 20], b=[1, 1, 1])
    assert found.moments["a"].tolist() == [1, 3, 2]
    assert found.counts == {"a": 10, "b": 10}
    a = found.for_tensor("a")
    assert a is not None
    assert a.dtype == np.float32
    np.testing.assert_allclose(a, [0.5, 1.5, 1])
    assert found.for_tensor("c") is None


def test_cold_columns_count_as_the_floor() -> None:
    found = made(a=[0, 1e-6, 20, 20], b=[1, 2, 3, 4], none=[0, 0, 0, 0])
    assert found.cold() == [Cold("a", 2, 4, 0, 1), Cold("none", 4, 4, 0, 1)]
    a = found.for_tensor("a")
    assert a is not None
    np.testing.assert_allclose(a[:2] / a[2:].mean(), FLOOR / 2, rtol=1e-3)
    none = found.for_tensor("none")
    assert none is not None
    assert none.tolist() == [1, 1, 1, 1]


def test_linears_that_share_an_input_are_named_once() -> None:
    sums = np.array([0, 1], np.float32)
    seen = np.array([10])
    assert [c.name for c in Importance({"q": sums, "k": sums}, {"q": seen, "k": seen}).cold()] == [
        "q"
    ]


def test_experts_without_tokens_count_all_columns_alike() -> None:
    sums = np.array([[3000, 1000], [0, 0], [30, 10]], np.float32)
    found = Importance({"e": sums}, {"e": np.array([1000, 0, 10])})
    assert found.cold() == [Cold("e", 0, 4, 1, 3)]
    assert found.counts == {"e": 1010}
    np.testing.assert_array_equal(found.moments["e"], [[3, 1], [0, 0], [3, 1]])
    e = found.for_tensor("e")
    assert e is not None
    assert e.shape == (3, 2)
    np.testing.assert_allclose(e.mean(-1), 1, rtol=1e-6)
    assert e[1].tolist() == [1, 1]
    few = (10 * 3 + PRIOR * 2) / (10 * 1 + PRIOR * 2)  # towards even, with so few tokens
    np.testing.assert_allclose(e[2, 0] / e[2, 1], few, rtol=1e-5)
    assert e[2, 0] < e[0, 0] < 1.5


# ---- whose it is --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_folder(tmp_path_factory.mktemp("own") / "m", LLAMA, dtype="BF16"))


def even(checkpoint: Checkpoint) -> Importance:
    shapes = {n: w.shape for n, w in checkpoint.weights.items() if len(w.shape) == 2}
    shapes.pop("token_embd.weight")
    return Importance(
        {n: np.ones(s[-1], np.float32) for n, s in shapes.items()},
        {n: np.array([1]) for n in shapes},
        model=model_fingerprint(checkpoint),
        model_name="Own",
        file="own.importance",
    )


def test_every_file_of_a_model_has_one_fingerprint(source: Checkpoint, tmp_path: Path) -> None:
    want = model_fingerprint(source)
    assert len(want) == 64
    for recipe in ("Q2_K", "Q4_0"):
        (path,) = kvant.quantize(source.path, recipe, tmp_path / f"{recipe}.gguf").paths
        assert model_fingerprint(open_checkpoint(path)) == want
    for name, config, seed in (("seed", LLAMA, 1), ("other", QWEN3, 0)):
        other = open_checkpoint(make_folder(tmp_path / name, config, seed=seed))
        assert model_fingerprint(other) != want


def test_importance_of_this_model(source: Checkpoint) -> None:
    found = belonging(even(source), source)
    assert set(found.sums) == set(even(source).sums)
    without = replace(even(source), model="")
    assert set(belonging(without, source).sums) == set(found.sums)


def test_importance_of_another_model(source: Checkpoint, tmp_path: Path) -> None:
    same_shapes = open_checkpoint(make_folder(tmp_path / "seed", LLAMA, seed=1))
    with pytest.raises(InputError, match=r"another model \('Own'\).*fingerprints differ"):
        belonging(even(source), same_shapes)
    wide = open_checkpoint(make_folder(tmp_path / "wide", {**LLAMA, "intermediate_size": 768}))
    with pytest.raises(InputError, match=r"512 columns for 'blk\.0\.ffn_down.*has 768"):
        belonging(replace(even(source), model=""), wide)
    short = open_checkpoint(make_folder(tmp_path / "short", {**LLAMA, "num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"'blk\.1\.attn_q.weight', which .* does not have"):
        belonging(replace(even(source), model=""), short)


def test_the_head_of_a_tied_model_under_either_name(tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    tied = open_checkpoint(make_folder(tmp_path / "m", config, weights_of(config)))
    head = Importance({"output.weight": np.ones(256, np.float32)}, {"output.weight": np.array([1])})
    assert set(belonging(head, tied).sums) == {"token_embd.weight"}
