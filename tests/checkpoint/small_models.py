"""Small models with random weights, written to disk without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kvant.arch import find_hf
from kvant.checkpoint import Checkpoint
from kvant.checkpoint.names import hf_parts
from kvant.files.gguf import TensorSpec, Value, header_bytes, padded
from kvant.files.safetensors import write_safetensors
from kvant.packing import get, quantize
from oracles.models import as_stored

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 48,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {
    **LLAMA,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 16,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN3MOE = {
    **QWEN3,
    "num_experts_per_tok": 2,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 5,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}
MIXTRAL = {
    **LLAMA,
    "num_experts_per_tok": 2,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 128,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 48,
}
MISTRAL = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 20,
}
GEMMA2 = {
    **LLAMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 20,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3 = {
    **GEMMA2,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 2,
}
PHI3 = {**LLAMA, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 48,
}
CONFIGS = {
    "bert": BERT,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "gpt2": GPT2,
    "mistral": MISTRAL,
    "olmo2": {**LLAMA, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"},
    "phi3": PHI3,
    "smollm3": {
        **LLAMA,
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "num_hidden_layers": 4,
    },
    "starcoder2": {
        **{k: v for k, v in LLAMA.items() if k != "rms_norm_eps"},
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "sliding_window": 20,
    },
    "llama": LLAMA,
    "mixtral": MIXTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3moe": QWEN3MOE,
}


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by Hugging Face name, float32, for the architecture and config given."""
    arch = find_hf(config, "config.json")
    graph = arch.trace(arch.from_hf(config, "config.json")[0])
    rng = np.random.default_rng(seed)
    weights = {}
    for ref in graph.weights.values():
        values = rng.normal(0, 0.15, ref.shape)
        if ref.role.endswith("_norm"):
            values += 1
        values = as_stored(ref, arch.name, values.astype(np.float32))
        parts = values if len(ref.shape) == 3 else [values]
        weights.update(zip(hf_parts(ref, arch.name), parts, strict=True))
    return weights


def write_folder(
    folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray] | None = None
) -> Path:
    """A Hugging Face folder with one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_weights(config) if weights is None else weights
    write_safetensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})
    return folder


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    metadata: dict[str, Value] | None = None,
    packing: str = "F32",
    drop: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """The least GGUF file of a model: architecture, config and weights, matrices as ``packing``."""
    arch = checkpoint.architecture
    specs: list[TensorSpec] = []
    blobs: list[bytes] = []
    arrays = {n: w.read_f32(order=arch.gguf_rows) for n, w in checkpoint.weights.items()}
    arrays |= arch.extra_tensors(checkpoint.config) | (extra or {})
    for name, values in arrays.items():
        if name in drop:
            continue
        rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]))
        fits = values.ndim >= 2 and values.shape[1] % get(packing).block == 0
        kind = packing if fits else "F32"
        specs.append(TensorSpec(name, get(kind).storage, values.shape))
        blobs.append(rows.tobytes() if kind == "F32" else quantize(kind, rows).tobytes())
    head, _ = header_bytes(arch.to_gguf(checkpoint.config) | (metadata or {}), specs)
    with path.open("wb") as file:
        file.write(head)
        for blob in blobs:
            file.write(blob.ljust(padded(len(blob), 32), b"\0"))
    return path
