"""What lies beside the graph: genai_config.json and the tokenizer's files.

Source: the configuration reference of onnxruntime-genai, and the files its model builder writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvant.checkpoint import Checkpoint
from kvant.errors import InputError, KvantError
from kvant.export.onnx.model import MODEL_FILE
from kvant.files.config_json import read_json
from kvant.tokenizer import to_hf_config, to_hf_json

__all__ = ["genai_config", "sidecar_files"]

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)

_GENAI_TYPES = {
    "gemma3": "gemma3_text",
    "olmo2": "olmo",
    "gpt2": "decoder",
    "starcoder2": "decoder",
}
"""What onnxruntime-genai calls an architecture, where not as kvant does; ``decoder`` is any."""

_SEARCH_KEYS = {"temperature": float, "top_k": int, "top_p": float, "repetition_penalty": float}


def sidecar_files(
    checkpoint: Checkpoint, *, standard: bool
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Name and content of every file but graph and data, and notes.

    Raises:
        InputError: a file of the tokenizer's cannot be read.
    """
    files: dict[str, bytes] = {}
    notes: list[str] = []
    definition = None
    try:
        definition = checkpoint.tokenizer()
    except KvantError as error:
        notes.append(f"The tokenizer was not understood and only copied: {error}")
    if checkpoint.format == "hf":
        for name in _COPIED:
            path = checkpoint.path / name
            if path.exists():
                files[name] = _content(path)
    if "tokenizer.json" not in files and definition is not None:
        files["tokenizer.json"] = _json(to_hf_json(definition))
        files["tokenizer_config.json"] = _json(to_hf_config(definition))
    if "tokenizer.json" not in files:
        notes.append("The source has no tokenizer that tokenizer.json can hold; none was written.")
    if not checkpoint.graph.encodes:
        ends: dict[str, int | list[int] | None] = {}
        if definition is not None:
            ends = {n: definition.token_id(n) for n in ("bos", "eos", "pad")}
        config = genai_config(checkpoint, ends, standard=standard)
        files["genai_config.json"] = _json(config)
    return files, tuple(notes)


def genai_config(
    checkpoint: Checkpoint, ends: Mapping[str, int | list[int] | None], *, standard: bool
) -> dict[str, Any]:
    """The content of genai_config.json.

    Args:
        checkpoint: a decoder.
        ends: ids of ``bos``, ``eos`` and ``pad``, where known.
        standard: without an operator that writes into the cache in place.
    """
    c = checkpoint.config
    settings = _generation(checkpoint)
    eos = settings.get("eos_token_id", ends.get("eos"))
    bos = ends.get("bos")
    pad = ends.get("pad")
    first = eos[0] if isinstance(eos, list) else eos
    state = checkpoint.graph.states[0]
    model: dict[str, Any] = {
        "type": _GENAI_TYPES.get(checkpoint.architecture.name, checkpoint.architecture.name),
        "vocab_size": c.vocab_size,
        "context_length": c.max_position_embeddings,
        "bos_token_id": bos if bos is not None else first,
        "eos_token_id": eos,
        "pad_token_id": pad if pad is not None else first,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": MODEL_FILE,
            "head_size": state.head_dim,
            "hidden_size": c.hidden_size,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": state.heads,
            "num_hidden_layers": c.num_hidden_layers,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    model = {k: v for k, v in model.items() if v is not None}
    search: dict[str, Any] = {
        "do_sample": bool(settings.get("do_sample", False)),
        "max_length": c.max_position_embeddings,
        "past_present_share_buffer": not standard,
        "num_beams": 1,
    }
    for key, kind in _SEARCH_KEYS.items():
        value = settings.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            search[key] = kind(value)
    return {"model": model, "search": search}


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """generation_config.json, where there is one."""
    if checkpoint.format != "hf":
        return {}
    path = checkpoint.path / "generation_config.json"
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if v is not None}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
