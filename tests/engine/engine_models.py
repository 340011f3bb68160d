"""Small random models for the engine's tests, and files of them with any mixture of packings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.files.gguf import TensorSpec, header_bytes, padded
from kvant.packing import convert_rows, get
from kvant.reference import ReferenceModel
from oracles.models import (
    GEMMA2,
    GEMMA3,
    GPT2,
    LLAMA,
    LLAMA3_ROPE,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3MOE,
    SMOLLM3,
    STARCODER2,
    longrope,
    make_folder,
)

__all__ = [
    "MODELS",
    "TOKENS",
    "damage",
    "divergence",
    "model",
    "reference",
    "relative",
    "write_mixture",
]

Floats = npt.NDArray[Any]

_SMALL = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 288}
_ODD = {"hidden_size": 40, "intermediate_size": 104, "vocab_size": 291, "num_attention_heads": 5}

MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama3-rope": {**LLAMA, **_SMALL, "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0},
    "linear-rope": {**LLAMA, **_SMALL, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "tied": {**LLAMA, **_SMALL, "tie_word_embeddings": True},
    "biases": {**LLAMA, **_SMALL, "attention_bias": True, "mlp_bias": True},
    "wide-heads": {**LLAMA, **_SMALL, "head_dim": 32, "num_key_value_heads": 1},
    "one-layer": {**LLAMA, **_SMALL, "num_hidden_layers": 1},
    "qwen2": QWEN2,
    "qwen2-tied": {**QWEN2, **_SMALL, "tie_word_embeddings": True},
    "qwen3": QWEN3,
    "qwen3-no-gqa": {**QWEN3, **_SMALL, "num_key_value_heads": 4, "head_dim": 48},
    # Nothing is a multiple of 16: rows of 40 and 104 columns, 291 and 40 rows, heads of 8.
    "gpt2": GPT2,
    "gpt2-untied": {**GPT2, "tie_word_embeddings": False, "n_embd": 64, "n_inner": 160},
    "mistral": MISTRAL,
    "mistral-no-window": {**MISTRAL, **_SMALL, "sliding_window": None, "head_dim": 32},
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "gemma3-capped": {**GEMMA3, **_SMALL, "head_dim": 32, "query_pre_attn_scalar": 32}
    | {"final_logit_softcapping": 4.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi3": PHI3,
    "phi3-long": {**PHI3, **_SMALL, "original_max_position_embeddings": 32, "sliding_window": 40}
    | {"rope_scaling": longrope(16)},
    "phi4-mini": {**PHI3, "partial_rotary_factor": 0.75, "rope_scaling": longrope(48)},
    "olmo2": OLMO2,
    "smollm3": SMOLLM3,
    "starcoder2": STARCODER2,
    "qwen3moe": QWEN3MOE,
    "mixtral": MIXTRAL,
    "one-expert": {**MIXTRAL, **_SMALL, "num_local_experts": 1, "num_experts_per_tok": 1},
    "all-experts": {**MIXTRAL, **_SMALL, "num_local_experts": 3, "num_experts_per_tok": 3},
    "many-experts": {**QWEN3MOE, **_SMALL, "num_experts": 40, "num_experts_per_tok": 8}
    | {"moe_intermediate_size": 96},
    "odd": {**LLAMA, **_ODD, "num_key_value_heads": 1},
    "odd-biases": {**LLAMA, **_ODD, "num_key_value_heads": 5, "attention_bias": True},
    "odd-tied": {**QWEN3, **_ODD, "num_key_value_heads": 1, "head_dim": 8}
    | {"tie_word_embeddings": True},
    "odd-experts": {**QWEN3MOE, **_ODD, "num_key_value_heads": 1, "head_dim": 8}
    | {"moe_intermediate_size": 36},
}
"""Every architecture, and each thing a config may turn on."""

TOKENS = np.random.default_rng(3).integers(0, 280, 64).tolist()


def model(folder: Path, name: str, *, dtype: str = "F32", seed: int = 0) -> Checkpoint:
    """A model of `MODELS`, written and opened."""
    made = make_folder(folder / name, MODELS[name], dtype=dtype, seed=seed, tokenizer=False)
    return open_checkpoint(made)


def write_mixture(
    path: Path,
    checkpoint: Checkpoint,
    packing: str | Mapping[str, str] | Callable[[str], str],
    change: Callable[[str, npt.NDArray[np.uint8]], None] = lambda name, packed: None,
) -> Checkpoint:
    """A GGUF file of ``checkpoint`` whose matrices are stored as told, last in the file; opened.

    Args:
        path: of the file.
        checkpoint: the source.
        packing: of all matrices, or by name (F32 where none is given). Matrices whose rows are no
            whole blocks become F32.
        change: called with every tensor's name and packed rows, which it may change.
    """
    arch = checkpoint.architecture
    arrays = {n: w.read_f32(order=arch.gguf_rows) for n, w in checkpoint.weights.items()}
    arrays |= arch.extra_tensors(checkpoint.config)
    specs, blobs = [], []
    for name, values in sorted(arrays.items(), key=lambda item: item[1].ndim):
        rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
        kind = "F32"
        if (
            values.ndim >= 2
            and not name.startswith("position_embd")
            and ".ffn_gate_inp." not in name
        ):
            if isinstance(packing, str):
                kind = packing
            else:
                kind = packing(name) if callable(packing) else packing.get(name, "F32")
            if values.shape[-1] % get(kind).block:
                kind = "F32"
        packed = convert_rows("F32", kind, rows.view(np.uint8), rows.shape[1]).copy()
        change(name, packed)
        specs.append(TensorSpec(name, get(kind).storage, values.shape))
        blobs.append(packed.tobytes())
    head, _ = header_bytes(arch.to_gguf(checkpoint.config), specs)
    with path.open("wb") as file:
        file.write(head)
        for blob in blobs:
            file.write(blob.ljust(padded(len(blob), 32), b"\0"))
    return open_checkpoint(path)


def damage(path: Path, name: str, value: float) -> None:
    """Write ``value`` into the middle of an F32 or F16 tensor of a file."""
    stored = open_checkpoint(path).weights[name].stored
    kind = {"F32": np.float32, "F16": np.float16}[stored.type.name]
    place = stored.elements // 2 + 3
    with path.open("r+b") as file:
        file.seek(stored.offset + place * np.dtype(kind).itemsize)
        file.write(np.array([value], kind).tobytes())


def reference(checkpoint: Checkpoint, tokens: list[int] = TOKENS) -> Floats:
    """The judge's logits: float32 [tokens, vocabulary]."""
    logits: Floats = ReferenceModel(checkpoint).forward([tokens])[0]
    return logits


def relative(got: Floats, expected: Floats) -> float:
    """Largest difference over the largest logit."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def divergence(base: Floats, other: Floats) -> float:
    """Mean KL(base || other) of the predictions, in nats."""
    both = base.astype(np.float64), other.astype(np.float64)
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in both)
    return float((np.exp(p) * (p - q)).sum(-1).mean())
