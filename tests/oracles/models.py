"""Small models with random weights and a tokenizer, as Hugging Face folders.

Written without torch and transformers, so that no test needs them for its input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.arch import find_hf
from kvant.checkpoint.names import hf_parts, hf_values
from kvant.files.safetensors import write_safetensors
from kvant.graph.ir import WeightRef
from kvant.packing import convert_rows
from kvant.tokenizer.byte_alphabet import BYTE_CHARACTERS

__all__ = [
    "BERT",
    "GEMMA2",
    "GEMMA3",
    "GPT2",
    "LLAMA",
    "LLAMA3_ROPE",
    "MISTRAL",
    "MIXTRAL",
    "OLMO2",
    "PHI3",
    "QWEN2",
    "QWEN3",
    "QWEN3MOE",
    "SMOLLM3",
    "STARCODER2",
    "as_stored",
    "longrope",
    "make_folder",
    "weights_of",
]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 384,
}
"""Every row is a multiple of 256; queries share keys and values two by two."""
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128}
QWEN3MOE = {
    **QWEN3,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 64,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}
MIXTRAL = {
    **LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 256,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "n_embd": 256,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 256,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 384,
}
MISTRAL = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 24,
}
GEMMA2 = {
    **LLAMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 24,
    "attn_logit_softcapping": 5.0,  # low, so that it is felt
    "final_logit_softcapping": 3.0,
}
GEMMA3 = {
    **GEMMA2,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "num_hidden_layers": 3,
    "sliding_window_pattern": 3,
}
PHI3 = {
    **LLAMA,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "sliding_window": None,
    "original_max_position_embeddings": 256,
}
BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "type_vocab_size": 2,
    "vocab_size": 384,
}
OLMO2 = {**LLAMA, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"}
SMOLLM3 = {
    **LLAMA,
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_hidden_layers": 5,
    "rope_theta": 2e6,
}
STARCODER2 = {
    **{k: v for k, v in LLAMA.items() if k != "rms_norm_eps"},
    "architectures": ["Starcoder2ForCausalLM"],
    "model_type": "starcoder2",
    "hidden_act": "gelu_pytorch_tanh",
    "norm_epsilon": 1e-5,
    "sliding_window": 24,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def longrope(turned: int) -> dict[str, Any]:
    """Rope parameters with factors of their own for short and long texts."""
    pairs = turned // 2
    short = [round(1 + i / (4 * pairs), 3) for i in range(pairs)]
    long = [round(1 + 8 * i / pairs, 3) for i in range(pairs)]
    return {"type": "longrope", "short_factor": short, "long_factor": long}


Arrays = dict[str, npt.NDArray[Any]]


def weights_of(config: Mapping[str, Any], seed: int = 0) -> Arrays:
    """Weights by Hugging Face name, float32, of sizes that keep activations near one."""
    arch = find_hf(config, "config.json")
    graph = arch.trace(arch.from_hf(config, "config.json")[0])
    rng = np.random.default_rng(seed)
    weights = {}
    for ref in graph.weights.values():
        values = rng.standard_normal(ref.shape, np.float32)
        if ref.role.endswith("_norm"):
            values = 1 + 0.1 * values
        elif ref.role == "output":
            values *= 2 / np.sqrt(ref.shape[-1])  # so that likely tokens stand out
        elif ref.role == "ffn_gate_inp":
            values *= 3 / np.sqrt(ref.shape[-1])  # so that the choice of experts is clear
        elif ref.role != "token_embd" and len(ref.shape) >= 2:
            values /= np.sqrt(ref.shape[-1])
        elif ref.role == "token_embd" and config.get("tie_word_embeddings", True):
            values *= 2 / np.sqrt(ref.shape[-1])
        parts = hf_parts(ref, arch.name)
        stored = as_stored(ref, arch.name, values)
        weights.update(zip(parts, stored if values.ndim == 3 else [stored], strict=True))
    return weights


def as_stored(ref: WeightRef, architecture: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Canonical numbers of a weight as Hugging Face's files of the architecture have them."""
    kind = hf_values(ref, architecture)
    if kind == "one less":
        return (values - 1).astype(np.float32)
    return np.ascontiguousarray(values.T) if kind == "transposed" else values


def make_folder(
    folder: Path,
    config: Mapping[str, Any],
    weights: Arrays | None = None,
    *,
    dtype: str = "F32",
    shards: int = 1,
    tokenizer: bool = True,
    seed: int = 0,
) -> Path:
    """A Hugging Face folder; returns ``folder``.

    Args:
        folder: is made.
        config: as config.json is to say.
        weights: float32 by Hugging Face name; random ones by default.
        dtype: "F32", "F16" or "BF16", what they are stored as.
        shards: files the weights are spread over, in turns.
        tokenizer: whether there is one, with a token for every row of the embedding.
        seed: of the random weights.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    values = weights_of(config, seed) if weights is None else weights
    stored = {name: _as(dtype, x) for name, x in values.items()}
    halves = set(stored) if dtype == "BF16" else set()
    if shards == 1:
        write_safetensors(folder / "model.safetensors", stored, bf16=halves, sync=False)
    else:
        _write_shards(folder, stored, halves, shards)
    if tokenizer and config["model_type"] == "bert":
        _write_wordpiece(folder, int(config["vocab_size"]))
    elif tokenizer:
        _write_tokenizer(folder, int(config["vocab_size"]))
    return folder


def write_pooling(folder: Path, mode: str) -> Path:
    """What sentence-transformers writes beside a model; returns ``folder``."""
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    said = {f"pooling_mode_{m}": m == mode for m in modes}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    return folder


def _as(dtype: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if dtype != "BF16":
        return x.astype({"F32": np.float32, "F16": np.float16}[dtype])
    flat = np.ascontiguousarray(x, np.float32).reshape(1, -1)
    return convert_rows("F32", "BF16", flat.view(np.uint8), flat.size).view("<u2").reshape(x.shape)


def _write_shards(folder: Path, stored: Arrays, bf16: set[str], count: int) -> None:
    names = list(stored)
    places: dict[str, str] = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: stored[name] for name in names[i::count]}
        write_safetensors(folder / file, part, bf16=bf16 & set(part), sync=False)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def wordpiece_tokens(count: int) -> list[str]:
    """A vocabulary of Hugging Face's WordPiece: letters, digits, signs, pairs that go on."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    single = [*letters, *"0123456789", *".,!?'-", "é", "天"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *single, *(f"##{c}" for c in letters)]
    pairs = (f"##{a}{b}" if i % 2 else a + b for i, (a, b) in enumerate(product(letters, letters)))
    return [*tokens, *pairs][:count]


def _write_wordpiece(folder: Path, vocab_size: int) -> None:
    tokens = wordpiece_tokens(vocab_size)
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": tokens[i], "special": True, **special} for i in range(5)]
    cls, sep = ({"SpecialToken": {"id": t, "type_id": 0}} for t in ("[CLS]", "[SEP]"))
    content = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, {"Sequence": {"id": "A", "type_id": 0}}, sep],
            "pair": [
                *(cls, {"Sequence": {"id": "A", "type_id": 0}}, sep),
                *({"Sequence": {"id": "B", "type_id": 1}}, sep),
            ],
            "special_tokens": {
                t: {"id": t, "ids": [tokens.index(t)], "tokens": [t]} for t in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(tokens)},
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    said = {f"{n}_token": f"[{n.upper()}]" for n in ("cls", "sep", "unk", "pad", "mask")}
    said |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Byte-level BPE as GPT-2's: all bytes, some pairs of letters, and one special token."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pairs = list(product(letters, letters))[: vocab_size - 257]
    tokens = [*BYTE_CHARACTERS, *(a + b for a, b in pairs), "<|end|>"]
    assert len(tokens) == vocab_size, f"no tokenizer of {vocab_size} tokens"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab_size - 1, "content": "<|end|>", "special": True, **special},
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(pair) for pair in pairs],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    said = {"bos_token": "<|end|>", "eos_token": "<|end|>", "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
