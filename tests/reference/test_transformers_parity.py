"""Logits against transformers, float32, on small random models saved by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.small_models import LLAMA3_ROPE
from kvant.checkpoint import open_checkpoint
from kvant.reference import ReferenceModel
from oracles.models import longrope

pytestmark = pytest.mark.parity

BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
_FULL, _SLIDING = "full_attention", "sliding_attention"
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 8, "n_positions": 512}
GEMMA2 = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 40,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 2.0,
}
GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 40} | {
    "layer_types": [_SLIDING, _FULL, _SLIDING]
}
_LLAMA3 = {**LLAMA3_ROPE, "rope_theta": 500000.0}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}

_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_EXPERTS |= {"norm_topk_prob": True}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, one key-value head": ("Llama", {"num_key_value_heads": 1}),
    "llama, no grouping": ("Llama", {"num_key_value_heads": 8}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("Llama", {"head_dim": 32}),
    "llama, linear rope": ("Llama", {"rope_parameters": _LINEAR}),
    "llama 3.1 rope": ("Llama", {"rope_parameters": _LLAMA3, "head_dim": 32}),
    "llama 3.2": ("Llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama, other eps and theta": (
        "Llama",
        {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, linear rope": ("Qwen2", {"rope_parameters": _LINEAR}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 100}),
    "mistral": ("Mistral", {"sliding_window": 40, "head_dim": 16}),
    "mistral, no window": ("Mistral", {"sliding_window": None}),
    "gemma2": ("Gemma2", GEMMA2),
    "gemma2, other layers": ("Gemma2", {**GEMMA2, "layer_types": [_FULL, _FULL, _SLIDING]}),
    "gemma3": ("Gemma3", GEMMA3),
    "gemma3, stretched and capped": (
        "Gemma3",
        {**GEMMA3, "final_logit_softcapping": 2.0}
        | {"rope_parameters": {_FULL: {**_LINEAR, "rope_theta": 1e6}, _SLIDING: _PLAIN}},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2, no grouping": ("Olmo2", {"num_key_value_heads": 8}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "pad_token_id": 0}),
    "smollm3, untied": ("SmolLM3", {"tie_word_embeddings": False, "pad_token_id": 0}),
    "starcoder2": ("Starcoder2", {"sliding_window": 45}),
    "starcoder2, untied": ("Starcoder2", {"tie_word_embeddings": False}),
    "phi3": ("Phi3", {"sliding_window": 50, "pad_token_id": 0}),
    "phi3, long": (
        "Phi3",
        {"rope_parameters": longrope(8), "original_max_position_embeddings": 100}
        | {"pad_token_id": 0},
    ),
    "phi3, short, in part": (
        "Phi3",
        {"rope_parameters": longrope(6), "original_max_position_embeddings": 400}
        | {"partial_rotary_factor": 0.75, "pad_token_id": 0},
    ),
    "qwen3moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 16}),
    "qwen3moe, tied, one for a token": (
        "Qwen3Moe",
        {**_EXPERTS, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "mixtral, all for a token": ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 3}),
    "qwen3, tied, square heads": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
}


def _model(family: str, changes: dict[str, Any]) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made = {"GPT2": "GPT2LMHeadModel", "Gemma3": "Gemma3ForCausalLM"}
    settings = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    base = {"vocab_size": BASE["vocab_size"]} if family == "GPT2" else BASE
    config = getattr(transformers, settings)(**{**base, **changes})
    config._attn_implementation = "eager"  # the only one with soft caps
    torch.manual_seed(0)
    model = getattr(transformers, made.get(family, f"{family}ForCausalLM"))(config).eval().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            gains = ("norm" in name or ".ln_" in name) and name.endswith("weight")
            one = gains and not family.startswith("Gemma")
            weight.copy_(torch.randn_like(weight) * 0.08 + one)
    return model


def _logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        result: np.ndarray = model(torch.from_numpy(tokens)).logits.numpy()
    return result


TOKENS = np.random.default_rng(0).integers(0, BASE["vocab_size"], (2, 300))


@pytest.mark.parametrize("case", CASES)
def test_logits(tmp_path: Path, case: str) -> None:
    model = _model(*CASES[case])
    expected = _logits(model, TOKENS)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    got = ReferenceModel(checkpoint).forward(TOKENS)
    # Asked for: 1e-4 of the largest logit. Measured: 6e-7 to 2e-6.
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert checkpoint.unused == ()
    assert checkpoint.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("case", ["qwen3moe", "mixtral"])
def test_experts_fused_as_transformers_holds_them(tmp_path: Path, case: str) -> None:
    model = _model(*CASES[case])
    model.save_pretrained(tmp_path, save_original_format=False, max_shard_size="100KB")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.unused == ()
    assert checkpoint.parameters == sum(p.numel() for p in model.parameters())
    got = ReferenceModel(checkpoint, cache=False).forward(TOKENS)
    expected = _logits(model, TOKENS)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_shards(tmp_path: Path) -> None:
    model = _model("Llama", {})
    model.save_pretrained(tmp_path, max_shard_size="150KB")
    assert not (tmp_path / "model.safetensors").exists()
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.files) > 2
    expected = _logits(model, TOKENS)
    got = ReferenceModel(checkpoint, cache=False).forward(TOKENS)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_half_precision_weights(tmp_path: Path, dtype: str, stored: str) -> None:
    import torch

    model = _model("Qwen3", {"head_dim": 16}).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.storage()) == [stored]
    # Loaded anew: `to` rounded the rope's frequencies along with the weights.
    expected = _logits(type(model).from_pretrained(tmp_path, dtype=torch.float32), TOKENS)
    got = ReferenceModel(checkpoint).forward(TOKENS)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_oldest_keys_mean_the_same(tmp_path: Path) -> None:
    """What transformers 4 wrote: rope_theta and rope_scaling with ``type``."""
    import json

    model = _model("Llama", {"rope_parameters": _LINEAR})
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))
    got = ReferenceModel(open_checkpoint(tmp_path)).forward(TOKENS)
    expected = _logits(model, TOKENS)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
