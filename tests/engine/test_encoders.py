"""Encoders in the engine: states as the interpreter's, whole texts, nothing of the neighbours.

Bounds, with the largest that was measured in brackets. F32 and F16: 1e-3 of the largest state
(1.5e-4), because keys and values are kept in half precision. Others: relative error of all states
together 1e-2 (1.3e-3 for BF16, 6e-3 for packings), because activations are rounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import write_mixture

from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import Engine, load_engine
from kvant.errors import CacheFullError, ContextError, UnsupportedError, UsageError
from kvant.packing import all_packings
from kvant.reference import ReferenceModel
from oracles.models import BERT, make_folder

ODD = {"hidden_size": 40, "intermediate_size": 104, "num_attention_heads": 5, "vocab_size": 291}
MODELS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "small": {**BERT, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3},
    "odd": {**BERT, **ODD},
    "long": {**BERT, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 1}
    | {"max_position_embeddings": 2100, "num_hidden_layers": 1},
}
LENGTHS = (1, 7, 64, 33, 100)
TEXTS = [np.random.default_rng(n).integers(0, 280, n) for n in LENGTHS]
PACKINGS = tuple(p.name for p in all_packings())


def model(folder: Path, name: str) -> Checkpoint:
    return open_checkpoint(make_folder(folder / name, MODELS[name], tokenizer=False))


def states(engine: Engine, texts: list[np.ndarray]) -> list[np.ndarray]:
    work = [(engine.sequence(), text) for text in texts]
    found = engine.step(work, logits="hidden")
    for sequence, text in work:
        assert sequence.length == len(text)
        sequence.free()
    assert engine.kv.free_blocks == engine.kv.count
    return np.split(found, np.cumsum([len(t) for t in texts])[:-1])


def judged(source: Checkpoint, texts: list[np.ndarray]) -> list[np.ndarray]:
    judge = ReferenceModel(source)
    return [judge.forward([text])[0] for text in texts]


def largest(got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    a, b = np.concatenate(got), np.concatenate(expected)
    return float(np.abs(a - b).max() / np.abs(b).max())


def whole(got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    a, b = np.concatenate(got), np.concatenate(expected)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", MODELS)
def test_floats(tmp_path: Path, name: str) -> None:
    source = model(tmp_path, name)
    expected = judged(source, TEXTS)
    assert largest(states(load_engine(source, threads=2, kv_tokens=2100), TEXTS), expected) < 1e-3
    halves = write_mixture(tmp_path / "f16.gguf", source, "F16")
    got = states(load_engine(halves, threads=2, kv_tokens=2100), TEXTS)
    assert largest(got, judged(halves, TEXTS)) < 1e-3


@pytest.mark.parametrize("packing", [p for p in PACKINGS if p not in ("F32", "F16")])
def test_packings(tmp_path: Path, packing: str) -> None:
    file = write_mixture(tmp_path / "m.gguf", model(tmp_path, "bert"), packing)
    got = states(load_engine(file, threads=2, kv_tokens=512), TEXTS)
    assert whole(got, judged(file, TEXTS)) < 1e-2


def test_texts_of_several_parts_of_attention(tmp_path: Path) -> None:
    """More keys than one pass over them takes, and queries of which each sees all."""
    source = model(tmp_path, "long")
    text = np.random.default_rng(0).integers(0, 280, 2100)
    engine = load_engine(source, threads=2)
    assert largest(states(engine, [text]), judged(source, [text])) < 1e-3
    alone = states(load_engine(source, threads=1), [text])
    assert np.array_equal(states(engine, [text])[0], alone[0])


INVARIANT = ("bert", "odd")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("name", INVARIANT)
def test_neighbours_and_threads_make_no_difference(tmp_path: Path, name: str, kv_type: Any) -> None:
    source = model(tmp_path, name)
    if name == "bert":
        source = write_mixture(tmp_path / "m.gguf", source, "Q4_K")
    options = {"kv_tokens": 1024, "kv_type": kv_type}
    engine = load_engine(source, threads=2, **options)  # type: ignore[arg-type]
    alone = [states(engine, [text])[0] for text in TEXTS]
    rng = np.random.default_rng(0)
    for threads in (1, 2, 3):
        other = load_engine(source, threads=threads, **options)  # type: ignore[arg-type]
        for _ in range(3):
            order = rng.permutation(len(TEXTS))
            got = states(other, [TEXTS[i] for i in order])
            for i, rows in zip(order, got, strict=True):
                assert np.array_equal(rows, alone[i])


def test_every_token_sees_all(tmp_path: Path) -> None:
    engine = load_engine(model(tmp_path, "small"), threads=2)
    before = states(engine, [TEXTS[2]])[0]
    changed = TEXTS[2].copy()
    changed[-1] = (changed[-1] + 1) % 280
    assert np.abs(states(engine, [changed])[0] - before).max(1).min() > 1e-4


def test_more_texts_than_a_step_takes(tmp_path: Path) -> None:
    engine = load_engine(model(tmp_path, "small"), threads=2, kv_tokens=4096)
    assert engine.step_tokens == 256
    texts = [TEXTS[4]] * 5 + [TEXTS[1]] * 20
    expected = [*[states(engine, [TEXTS[4]])[0]] * 5, *[states(engine, [TEXTS[1]])[0]] * 20]
    for got, want in zip(states(engine, texts), expected, strict=True):
        assert np.array_equal(got, want)


def test_layers_one_by_one(tmp_path: Path) -> None:
    source = model(tmp_path, "small")
    engine = load_engine(source, threads=2, kv_tokens=512)
    expected = states(engine, TEXTS[:3])
    work = [(engine.sequence(), len(text)) for text in TEXTS[:3]]
    x = engine.embed(np.concatenate(TEXTS[:3]), list(LENGTHS[:3]))
    for layer in range(engine.layers):
        x, inputs = engine.run_layer(layer, x, work, capture=engine.linears(layer))
        assert inputs[f"blk.{layer}.ffn_down.weight"].shape == (sum(LENGTHS[:3]), 160)
    assert np.array_equal(x, np.concatenate(expected))


def test_what_makes_no_sense(tmp_path: Path) -> None:
    engine = load_engine(model(tmp_path, "small"), threads=1, kv_tokens=64)
    assert engine.encodes
    sequence = engine.sequence()
    for logits in ("last", "all"):
        with pytest.raises(UnsupportedError, match="predicts no tokens"):
            engine.step([(sequence, TEXTS[1])], logits=logits)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="predicts no tokens"):
        engine.head(np.zeros((1, 64), np.float32))
    engine.step([(sequence, TEXTS[1])], logits="none")
    with pytest.raises(UsageError, match="whole texts at once, got 7 tokens before"):
        engine.step([(sequence, TEXTS[1])], logits="hidden")
    assert sequence.length == 7
    sequence.free()
    with pytest.raises(CacheFullError):
        engine.step([(engine.sequence(), TEXTS[4])], logits="hidden")
    with pytest.raises(ContextError):
        engine.step([(engine.sequence(), np.zeros(257, np.int32))], logits="hidden")
    with pytest.raises(UnsupportedError, match="no logits"):
        next(ReferenceModel(model(tmp_path / "again", "small")).logits([[1, 2]]))
