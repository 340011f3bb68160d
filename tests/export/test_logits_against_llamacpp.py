"""Files kvant writes, run by llama.cpp: the logits are those of our reference.

Bounds, with what was measured on these models in brackets. F32: 1e-4 of the largest logit (1e-6).
F16: 1e-3 (7e-4), because llama.cpp rounds what it multiplies with such weights to F16 as well.
Quantised: mean KL divergence 1e-3 (2e-4 to 5e-4), because llama.cpp rounds activations to 8 bits
before it multiplies; quantising the weights costs these models 2e-2 to 4e-1, so a wrong scale or
a wrong row would stand out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.reference import ReferenceModel
from oracles.llama import Llama
from oracles.models import (
    LLAMA,
    LLAMA3_ROPE,
    MIXTRAL,
    OLMOE,
    QWEN2,
    QWEN3,
    QWEN3MOE,
    make_folder,
)

pytestmark = pytest.mark.parity

SMALL = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 288}
MODELS: dict[str, dict[str, Any]] = {
    "llama-gqa": LLAMA,
    "llama3-rope": {**LLAMA, **SMALL, "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0},
    "linear-rope": {**LLAMA, **SMALL, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "tied": {**LLAMA, **SMALL, "tie_word_embeddings": True},
    "biases": {**LLAMA, **SMALL, "attention_bias": True, "mlp_bias": True},
    "wide-heads": {**LLAMA, **SMALL, "head_dim": 32, "num_key_value_heads": 1},
    "qwen2": QWEN2,
    "qwen2-tied": {**QWEN2, **SMALL, "tie_word_embeddings": True},
    "qwen3": QWEN3,
    "qwen3moe": QWEN3MOE,
    "olmoe": OLMOE,
    "mixtral": {**MIXTRAL, "num_local_experts": 8},
    "qwen3-no-gqa": {**QWEN3, **SMALL, "num_key_value_heads": 4, "head_dim": 48},
}
ODD = {
    "rows-96": {
        **QWEN2,
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
    "rows-80": {
        **QWEN3,
        "hidden_size": 80,
        "intermediate_size": 240,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
}
EXPERTS = ("qwen3moe", "mixtral", "olmoe")
TOKENS = np.random.default_rng(3).integers(0, 280, 64).tolist()

Logits = npt.NDArray[Any]


def reference(path: Path) -> Logits:
    """Our logits of ``TOKENS``: float32 [64, vocabulary]."""
    logits: Logits = ReferenceModel(open_checkpoint(path)).forward([TOKENS])[0]
    return logits


def relative(got: Logits, expected: Logits) -> float:
    """Largest difference over the largest logit."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def mean_divergence(base: Logits, other: Logits) -> float:
    """Mean KL(base || other) of the predictions, in nats."""
    both = base.astype(np.float64), other.astype(np.float64)
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in both)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", MODELS)
def test_unquantised(name: str, tmp_path: Path, llama: Llama) -> None:
    folder = make_folder(tmp_path / name, MODELS[name], dtype="F16")
    expected = reference(folder)
    for dtype, bound in (("f32", 1e-4), ("f16", 1e-3)):
        (path,) = kvant.convert(folder, tmp_path / f"{dtype}.gguf", dtype=dtype).paths
        found = relative(llama.logits(path, TOKENS), expected)
        assert found < bound, dtype
    assert relative(reference(path), expected) < 1e-5


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Logits]]:
    """A model's folder by name, in BF16, and its logits; each made once."""

    @cache
    def make(name: str) -> tuple[Path, Logits]:
        config = {**MODELS, **ODD}[name]
        folder = make_folder(tmp_path_factory.mktemp("source") / name, config, dtype="BF16")
        return folder, reference(folder)

    return make


QUANTISED = [("llama-gqa", r) for r in ("Q2_K", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_M", "Q5_K_M")]
QUANTISED += [("llama-gqa", r) for r in ("Q5_0", "Q5_1", "Q6_K", "Q8_0")]
QUANTISED += [(name, r) for name in ("qwen2", "qwen3") for r in ("Q4_K_M", "Q3_K_M")]
QUANTISED += [(name, r) for name in EXPERTS for r in ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q8_0")]
QUANTISED += [("llama-gqa", r) for r in ("IQ4_NL", "IQ4_XS")]
QUANTISED += [(name, "MXFP4_MOE") for name in EXPERTS]
QUANTISED += [(name, r) for name in ODD for r in ("Q2_K", "Q4_K_M", "Q5_K_S", "Q6_K")]


@pytest.mark.parametrize(("name", "recipe"), QUANTISED)
def test_quantised(
    sources: Callable[[str], tuple[Path, Logits]],
    tmp_path: Path,
    llama: Llama,
    name: str,
    recipe: str,
) -> None:
    folder, original = sources(name)
    (path,) = kvant.quantize(folder, recipe, tmp_path / "model.gguf").paths
    expected = reference(path)
    # Where two experts are nearly equal, its rounding of activations may prefer the other one.
    bound = 1e-2 if name in EXPERTS else 1e-3
    assert mean_divergence(expected, llama.logits(path, TOKENS)) < bound
    # Quantised as told: further from the source than rounding, not further than the level allows.
    bits = "4" if recipe == "MXFP4_MOE" else recipe.lstrip("IQ")[0]
    worst = {"2": 0.6, "3": 0.2, "4": 0.1}.get(bits, 0.03)
    assert 0 < mean_divergence(original, expected) < worst


def test_bfloat16(tmp_path: Path, llama: Llama) -> None:
    folder = make_folder(tmp_path / "m", LLAMA, dtype="BF16")
    (path,) = kvant.convert(folder, tmp_path / "m.gguf").paths
    np.testing.assert_array_equal(reference(path), reference(folder))
    # llama.cpp rounds activations to bfloat16 too, of 8 bits as the quantised ones are.
    assert mean_divergence(reference(folder), llama.logits(path, TOKENS)) < 1e-3


def test_the_built_in_model(tmp_path: Path, llama: Llama) -> None:
    text = "The keeper lit the lamp.\n\ndef area(radius):\n    return 3.14 * radius ** 2\n"
    (path,) = kvant.convert("demo", tmp_path / "demo.gguf", dtype="f16").paths
    ours = open_checkpoint(path)
    with llama.open(path) as model:
        tokens = model.tokenize(text, add_special=False)
        logits = model.logits(tokens)
        assert model.vocab_size == ours.config.vocab_size
        assert model.metadata()["general.architecture"] == "llama"
    assert relative(logits, ReferenceModel(ours).forward([tokens])[0]) < 1e-3
    definition = ours.tokenizer()
    assert definition is not None
    from kvant.tokenizer.build import build

    assert build(definition).encode(text, add_special=False) == tokens
