"""The engine and llama.cpp on the same files.

Bounds, with the largest that was measured in brackets. F32: `float_bound`, 1e-3 of the largest
logit (5e-4) or 2e-3 (1.3e-3). F16: 1e-3 more (2e-3). The engine's cache is in half precision,
llama.cpp's here is not, and llama.cpp rounds activations beside F16 weights, and what goes through
gelu, to half precision. Quantised: mean KL divergence 1e-3 (3e-4 to 5e-4); both round activations
to 8 bits, each in its own way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_models import MODELS, TOKENS, divergence, float_bound, relative

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.engine import load_engine
from oracles.llama import Llama
from oracles.llama import load as load_llama
from oracles.models import make_folder

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def llama() -> Llama:
    try:
        return load_llama()
    except ImportError as error:
        pytest.skip(f"xllamacpp is not usable here: {error}")


def engine_logits(path: Path) -> np.ndarray:
    engine = load_engine(open_checkpoint(path), threads=2, kv_tokens=128)
    with engine.sequence() as sequence:
        return engine.step([(sequence, TOKENS)], logits="all")


NAMES = [n for n in MODELS if "odd" not in n]  # llama.cpp wants heads of 16 and more


#: Models whose sliding window llama.cpp does not look at: the texts in them fit into it.
WINDOWS = {"mistral": 24, "phi3-long": 40, "starcoder2": 24}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_floats(name: str, dtype: str, tmp_path: Path, llama: Llama) -> None:
    # llama.cpp knows some families by the model's name, and looks for their tokens: no name.
    folder = make_folder(tmp_path / "m", MODELS[name], dtype="F16")
    (path,) = kvant.convert(folder, tmp_path / "m.gguf", dtype=dtype).paths
    length = WINDOWS.get(name, len(TOKENS))
    found = relative(engine_logits(path)[:length], llama.logits(path, TOKENS[:length]))
    assert found < float_bound(name) + (dtype == "f16") * 1e-3


RECIPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_1", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0")
RECIPES += ("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "Q1_0")


OTHERS = ("gpt2", "mistral", "gemma2", "gemma3", "granite", "phi3", "olmo2", "smollm3")
OTHERS += ("starcoder2",)
QUANTISED = [(name, r) for name in ("llama", "qwen2", "qwen3") for r in RECIPES]
QUANTISED += [(name, r) for name in OTHERS for r in ("Q4_K_M", "Q8_0")]


@pytest.mark.parametrize(("name", "recipe"), QUANTISED)
def test_quantised(name: str, recipe: str, tmp_path: Path, llama: Llama) -> None:
    folder = make_folder(tmp_path / "m", MODELS[name], dtype="BF16")
    (path,) = kvant.quantize(folder, recipe, tmp_path / "m.gguf").paths
    length = WINDOWS.get(name, len(TOKENS))
    found = divergence(llama.logits(path, TOKENS[:length]), engine_logits(path)[:length])
    assert found < 1e-3
