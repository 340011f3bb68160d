"""The reference model: tiles, streaming, and a really trained model's perplexity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from checkpoint.small_models import CONFIGS, LLAMA, random_weights, write_folder
from kvant.checkpoint import open_checkpoint
from kvant.errors import DataError, UsageError
from kvant.graph.ir import KvState
from kvant.graph.ops import Attention, Rope, SwiGlu
from kvant.reference import Interpreter, ReferenceModel

TOKENS = np.random.default_rng(0).integers(0, 48, (3, 50), dtype=np.int32)


@pytest.fixture(params=sorted(set(CONFIGS) - {"bert"}))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ReferenceModel:
    return ReferenceModel(open_checkpoint(write_folder(tmp_path / "m", CONFIGS[request.param])))


def test_tiles_are_the_logits_in_order(model: ReferenceModel) -> None:
    expected = model.forward(TOKENS)
    assert expected.shape == (3, 50, 48)
    assert expected.dtype == np.float32
    seen = []
    for sequence, row, logits in model.logits(TOKENS, first_row=20, tile_rows=7):
        seen.append((sequence, row))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(
            logits, expected[sequence, row : row + len(logits)], rtol=1e-4, atol=1e-5
        )
    assert seen == [(s, r) for s in range(3) for r in range(20, 50, 7)]
    assert len(list(model.logits(TOKENS))) == 3


def test_sequences_of_a_batch_do_not_mix(model: ReferenceModel) -> None:
    together = model.forward(TOKENS)
    for i in range(3):
        np.testing.assert_allclose(model.forward(TOKENS[i : i + 1])[0], together[i], atol=1e-5)


def test_later_tokens_do_not_reach_back(model: ReferenceModel) -> None:
    changed = TOKENS.copy()
    changed[:, 30:] = (changed[:, 30:] + 1) % 48
    before, after = model.forward(TOKENS), model.forward(changed)
    np.testing.assert_allclose(after[:, :30], before[:, :30], atol=1e-5)
    assert np.abs(after[:, 30:] - before[:, 30:]).max() > 0.01


def test_weights_need_not_stay_in_memory(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", LLAMA))
    streamed = ReferenceModel(checkpoint, cache=False)
    np.testing.assert_array_equal(
        streamed.forward(TOKENS), ReferenceModel(checkpoint).forward(TOKENS)
    )
    assert streamed._cache is None


def test_greedy_generation_takes_the_likeliest(model: ReferenceModel) -> None:
    made = model.generate([1, 2, 3], 4)
    assert len(made) == 4
    text = [1, 2, 3, *made]
    likeliest = model.forward([text])[0].argmax(-1)
    assert likeliest[2:-1].tolist() == made


@pytest.mark.parametrize(
    "tokens",
    [[[0, 48]], [[-1, 3]], [], [[]], [1, 2], [[0.5, 1.0]], [["a"]], np.zeros((1, 2), bool)],
)
def test_bad_tokens(model: ReferenceModel, tokens: object) -> None:
    with pytest.raises(UsageError, match=r"[Tt]oken ids"):
        next(model.logits(tokens))  # type: ignore[arg-type]


def test_nan_weights_are_an_error(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = np.nan
    model = ReferenceModel(open_checkpoint(write_folder(tmp_path / "m", LLAMA, weights)))
    with pytest.raises(DataError, match=r"blk\.1\.ffn_down\.weight"):
        model.forward(TOKENS)


def _interpreter() -> Interpreter:
    def unused(*_: object) -> np.ndarray:
        raise AssertionError

    return Interpreter(unused, unused)


@pytest.mark.parametrize("n", [1, 5, 300])
def test_attention_against_loops(n: int) -> None:
    rng = np.random.default_rng(n)
    q, k, v = (rng.normal(size=(2, n, w)).astype(np.float32) for w in (24, 12, 12))
    got = _interpreter().attention(Attention(4, 0.4, KvState(0, 2, 6)), q, k, v)
    for row in {0, n // 2, n - 1}:
        for head in range(4):
            mine = slice(6 * head, 6 * head + 6)
            theirs = slice(6 * (head // 2), 6 * (head // 2) + 6)
            scores = k[1, : row + 1, theirs].astype(float) @ q[1, row, mine] * 0.4
            share = np.exp(scores - scores.max())
            expected = share / share.sum() @ v[1, : row + 1, theirs]
            np.testing.assert_allclose(got[1, row, mine], expected, rtol=1e-4, atol=1e-5)


def test_rope_turns_pairs_and_keeps_lengths() -> None:
    op = Rope(heads=2, head_dim=4, theta=100.0, linear=1.0, factors=(), turned=4)
    x = np.random.default_rng(0).normal(size=(1, 7, 8)).astype(np.float32)
    y = _interpreter().rope(op, x).reshape(7, 2, 2, 2)
    z = x.reshape(7, 2, 2, 2)
    lengths = [np.hypot(pairs[:, :, 0], pairs[:, :, 1]) for pairs in (y, z)]
    np.testing.assert_allclose(*lengths, rtol=1e-6)
    turned = np.angle((y[:, :, 0] + 1j * y[:, :, 1]) / (z[:, :, 0] + 1j * z[:, :, 1]))
    expected = np.angle(np.exp(1j * np.arange(7)[:, None] * np.array([1.0, 0.1])))
    np.testing.assert_allclose(turned, np.repeat(expected[:, None], 2, 1), atol=1e-5)


def test_swiglu_takes_any_number() -> None:
    gate = np.array([[[-1e30, -200, -1, 0, 1, 200, 1e30]]], np.float32)
    got = _interpreter().swiglu(SwiGlu(), gate, np.ones_like(gate))
    np.testing.assert_allclose(got[0, 0], [0, 0, -0.26894143, 0, 0.7310586, 200, 1e30], rtol=1e-6)


@pytest.mark.slow
def test_a_trained_model_predicts_its_stories(shared_data: Path) -> None:
    """Known for this model and these 500 stories: perplexity 4.97, each cut at 256 tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = shared_data / "models" / "stories260K-hf"
    stories = json.loads((shared_data / "text" / "tinystories_dev.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = ReferenceModel(open_checkpoint(folder))
    texts = [[1, *tokenizer.encode(s, add_special_tokens=False).ids][:256] for s in stories]
    losses: list[np.ndarray] = []
    for start in range(0, len(texts), 50):
        batch = texts[start : start + 50]
        padded = np.zeros((len(batch), 256), int)  # what comes after a text does not matter to it
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = ids
        for ids, logits in zip(batch, model.forward(padded), strict=True):
            shifted = logits[: len(ids) - 1] - logits[: len(ids) - 1].max(-1, keepdims=True)
            logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            losses.append(-logp[np.arange(len(ids) - 1), ids[1:]])
    perplexity = float(np.exp(np.concatenate(losses).mean()))
    assert perplexity == pytest.approx(4.97, abs=0.005)


def test_a_trained_model_writes_a_story(shared_data: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = shared_data / "models" / "stories260K-hf"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = ReferenceModel(open_checkpoint(folder))
    ids = tokenizer.encode("Once upon a time", add_special_tokens=False).ids
    text = tokenizer.decode([1, *ids, *model.generate([1, *ids], 24)])
    assert text.lower().startswith("once upon a time, there was a little")
