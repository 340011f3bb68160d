"""The engine against the reference interpreter: every architecture, option, packing and mixture.

Bounds, with the largest that was measured in brackets. F32 and F16 weights: 1e-3 of the largest
logit (5e-4), because keys and values are kept in half precision. BF16: mean KL divergence 1e-4
(5e-5), because activations are rounded to bfloat16 as well where the processor multiplies pairs of
them. Quantised: mean KL divergence 1e-3 (2e-4 to 7e-4), because activations are rounded to 8 bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_models import MODELS, TOKENS, divergence, model, reference, relative, write_mixture

from kvant.checkpoint import Checkpoint
from kvant.engine import load_engine
from kvant.packing import all_packings

PACKINGS = tuple(p.name for p in all_packings())
QUANTISED = tuple(n for n in PACKINGS if n.startswith("Q"))
MOST_DIVERGENCE = 1e-3


def logits_of(checkpoint: Checkpoint, **options: object) -> np.ndarray:
    engine = load_engine(checkpoint, threads=2, kv_tokens=128, **options)  # type: ignore[arg-type]
    with engine.sequence() as sequence:
        return engine.step([(sequence, TOKENS)], logits="all")


@pytest.mark.parametrize("name", MODELS)
def test_floats(name: str, tmp_path: Path) -> None:
    source = model(tmp_path, name)
    expected = reference(source)
    got = logits_of(source)
    assert got.shape == expected.shape == (64, MODELS[name]["vocab_size"])
    assert relative(got, expected) < 1e-3
    halves = write_mixture(tmp_path / "f16.gguf", source, "F16")
    assert relative(logits_of(halves), reference(halves)) < 1e-3
    brain = write_mixture(tmp_path / "bf16.gguf", source, "BF16")
    assert divergence(reference(brain), logits_of(brain)) < 1e-4


@pytest.mark.parametrize("packing", QUANTISED)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_quantised(name: str, packing: str, tmp_path: Path) -> None:
    file = write_mixture(tmp_path / "m.gguf", model(tmp_path, name), packing)
    assert divergence(reference(file), logits_of(file)) < MOST_DIVERGENCE


@pytest.mark.parametrize("name", MODELS)
def test_blocks_where_rows_allow(name: str, tmp_path: Path) -> None:
    """Rows of 64, 160 and 48 weights: Q8_0 here, F32 there."""
    file = write_mixture(tmp_path / "m.gguf", model(tmp_path, name), "Q8_0")
    assert divergence(reference(file), logits_of(file)) < MOST_DIVERGENCE


FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "mistral", "gemma2", "gemma3", "phi3", "olmo2")
FAMILIES += ("smollm3", "starcoder2")


@pytest.mark.parametrize("seed", range(len(FAMILIES)))
def test_any_mixture(seed: int, tmp_path: Path) -> None:
    """A packing drawn for every matrix: linears that share an input round it differently."""
    name = FAMILIES[seed]
    rng = np.random.default_rng(seed)
    file = write_mixture(
        tmp_path / "m.gguf", model(tmp_path, name), lambda _: PACKINGS[rng.integers(len(PACKINGS))]
    )
    assert len({w.stored.type.name for w in file.weights.values()}) > 5
    assert divergence(reference(file), logits_of(file)) < MOST_DIVERGENCE


@pytest.mark.parametrize("name", ["llama", "odd-tied", "wide-heads"])
def test_a_cache_of_eight_bits(name: str, tmp_path: Path) -> None:
    source = model(tmp_path, name)
    expected = reference(source)
    got = logits_of(source, kv_type="q8_0")
    assert 1e-9 < divergence(expected, got) < MOST_DIVERGENCE


def test_long_texts_in_one_step_and_in_pieces(tmp_path: Path) -> None:
    source = model(tmp_path, "llama3-rope")
    tokens = np.random.default_rng(5).integers(0, 288, 250).tolist()
    expected = reference(source, tokens)
    for step_tokens in (256, 64, 8):
        engine = load_engine(source, threads=2, step_tokens=step_tokens)
        with engine.sequence() as sequence:
            got = engine.step([(sequence, tokens)], logits="all")
        assert relative(got, expected) < 1e-3


def test_the_built_in_model(checkpoint: Checkpoint) -> None:
    got, expected = logits_of(checkpoint), reference(checkpoint)
    assert divergence(expected, got) < 1e-4
    assert (got.argmax(-1) == expected.argmax(-1)).mean() > 0.95
