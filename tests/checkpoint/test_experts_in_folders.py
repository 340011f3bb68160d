"""Stacks of experts: tensors of a folder read as one, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.small_models import MIXTRAL, QWEN3MOE, random_weights, write_folder, write_gguf
from kvant.checkpoint import open_checkpoint
from kvant.errors import FileFormatError, UnsupportedError

EXPERT = "model.layers.1.mlp.experts.{}.{}_proj.weight"


def fused(weights: dict[str, Any], experts: int) -> dict[str, Any]:
    """The same weights as transformers 5 holds them."""
    made = {n: w for n, w in weights.items() if ".experts." not in n}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            np.stack([weights[f"{name}{e}.{role}_proj.weight"] for e in range(experts)])
            for role in ("gate", "up", "down")
        )
        made[f"{name}gate_up_proj"] = np.concatenate([gate, up], 1)
        made[f"{name}down_proj"] = down
    return made


def test_one_tensor_an_expert_or_fused_ones_are_the_same_stack(tmp_path: Path) -> None:
    weights = random_weights(QWEN3MOE)
    one = open_checkpoint(write_folder(tmp_path / "one", QWEN3MOE, weights))
    other = open_checkpoint(write_folder(tmp_path / "two", QWEN3MOE, fused(weights, 5)))
    assert one.parameters == other.parameters
    assert one.unused == other.unused == ()
    for role in ("gate", "up", "down"):
        expected = np.stack([weights[EXPERT.format(e, role)] for e in range(5)])
        for checkpoint in (one, other):
            weight = checkpoint.weights[f"blk.1.ffn_{role}_exps.weight"]
            assert weight.shape == expected.shape
            np.testing.assert_array_equal(weight.read_f32(), expected)
            rows = expected.reshape(-1, expected.shape[-1])
            with weight.open() as fd:  # any rows, over the borders of experts too
                for start, stop in ((0, 1), (30, 100), (47, 49), (len(rows) - 5, len(rows))):
                    got = weight.read_rows_f32(fd, start, stop)
                    np.testing.assert_array_equal(got, rows[start:stop])


def test_gguf_has_them_as_one_tensor(tmp_path: Path) -> None:
    for name, config in (("qwen3moe", QWEN3MOE), ("mixtral", MIXTRAL)):
        source = open_checkpoint(write_folder(tmp_path / name, config))
        file = open_checkpoint(write_gguf(tmp_path / f"{name}.gguf", source))
        assert file.architecture.name == name
        said = source.architecture.to_gguf(source.config)
        assert file.architecture.to_gguf(file.config) == said
        for weight in source.weights.values():
            np.testing.assert_array_equal(
                file.weights[weight.name].read_f32(), weight.read_f32(), weight.name
            )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"num_experts_per_tok": 6}, FileFormatError, "at most the 5 experts there are, got 6"),
        ({"num_experts_per_tok": 0}, FileFormatError, "num_experts_per_tok.*from 1 to 4096"),
        ({"num_experts": 10**9}, FileFormatError, "num_experts.*from 1 to 4096, got 1000000000"),
        ({"num_experts": 0}, FileFormatError, "num_experts.*from 1 to 4096"),
        ({"num_experts": 4096}, FileFormatError, "experts.5.gate_proj.*missing.*4096 experts"),
        ({"num_experts": 4}, FileFormatError, r"shape \(4, 32\) by the config, got \(5, 32\)"),
        ({"num_experts": None}, FileFormatError, "'num_experts'.*missing"),
        ({"num_local_experts": 7}, FileFormatError, "expected one value"),
        ({"moe_intermediate_size": 40}, FileFormatError, r"shape \(40, 32\).*got \(48, 32\)"),
        ({"norm_topk_prob": False}, UnsupportedError, "norm_topk_prob.*true"),
        ({"norm_topk_prob": None}, UnsupportedError, "norm_topk_prob.*true"),
        ({"norm_topk_prob": "yes"}, FileFormatError, "norm_topk_prob.*true or false"),
        ({"decoder_sparse_step": 2}, UnsupportedError, "decoder_sparse_step"),
        ({"mlp_only_layers": [0]}, UnsupportedError, "mlp_only_layers"),
        ({"shared_expert_intermediate_size": 64}, UnsupportedError, "shared_expert"),
    ],
)
def test_configs_that_are_refused(
    tmp_path: Path, change: dict[str, object], error: type[Exception], words: str
) -> None:
    folder = write_folder(tmp_path / "m", {**QWEN3MOE, **change}, random_weights(QWEN3MOE))
    with pytest.raises(error, match=words):
        open_checkpoint(folder)


def test_weights_that_are_refused(tmp_path: Path) -> None:
    good = random_weights(QWEN3MOE)
    name = EXPERT.format(3, "up")
    half = {**good, name: good[name].astype(np.float16)}
    whole = fused(good, 5)
    joined = "model.layers.0.mlp.experts.gate_up_proj"
    cases: list[tuple[dict[str, Any], str]] = [
        ({n: w for n, w in good.items() if n != name}, "experts.3.up_proj.*missing.*5 experts"),
        ({**good, name: good[name].T.copy()}, r"shape \(48, 32\) by the config, got \(32, 48\)"),
        (half, "stored as F16, expected F32"),
        ({**whole, joined: whole[joined][:4]}, r"shape \(5, 96, 32\) by the config, got \(4, 96"),
        ({**whole, joined: whole[joined][:, :48]}, r"shape \(5, 96, 32\).*got \(5, 48, 32\)"),
    ]
    for i, (weights, words) in enumerate(cases):
        with pytest.raises(FileFormatError, match=words):
            open_checkpoint(write_folder(tmp_path / str(i), QWEN3MOE, weights))


def test_a_stack_in_gguf_of_another_shape(tmp_path: Path) -> None:
    source = open_checkpoint(write_folder(tmp_path / "m", QWEN3MOE))
    name = "blk.0.ffn_down_exps.weight"
    flat = source.weights[name].read_f32().reshape(-1, 48)
    path = write_gguf(tmp_path / "m.gguf", source, extra={name: flat})
    with pytest.raises(FileFormatError, match=r"shape \(5, 32, 48\) by the config, got \(160, 48"):
        open_checkpoint(path)
