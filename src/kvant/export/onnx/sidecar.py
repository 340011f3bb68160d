"""genai_config.json: what onnxruntime-genai asks to know of a decoder's graph.

Source: the configuration reference of onnxruntime-genai, and the files its model builder writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from kvant.checkpoint import Checkpoint
from kvant.errors import KvantError
from kvant.export.companions import companions, config_values, json_bytes
from kvant.export.onnx.model import MODEL_FILE
from kvant.tokenizer.hf_files import read_object

__all__ = ["genai_config", "sidecar_files"]

_TYPES = {"gemma3": "gemma3_text", "olmo2": "olmo", "gpt2": "decoder", "starcoder2": "decoder"}
"""What onnxruntime-genai calls an architecture, where not as kvant does; ``decoder`` is any."""

_SEARCH = {"temperature": float, "top_k": int, "top_p": float, "repetition_penalty": float}


def sidecar_files(
    checkpoint: Checkpoint, *, standard: bool
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Name and content of every file but graph and data, and notes.

    Raises:
        InputError: a file of the tokenizer's cannot be read.
    """
    files, notes = companions(checkpoint)
    try:  # what the weights are of: nothing but kvant reads it here
        files = {**files, "config.json": json_bytes(config_values(checkpoint, "float32"))}
    except KvantError as error:
        notes = (*notes, f"config.json was left out, so kvant cannot read the folder back: {error}")
    if "tokenizer.json" not in files and not notes:
        notes = (
            "The source has no tokenizer.json; onnxruntime-genai needs one and will not run "
            "this folder, onnxruntime does.",
        )
    if not checkpoint.graph.encodes:
        stated = _generation(checkpoint, files)
        config = genai_config(checkpoint, _ends(checkpoint), stated, standard=standard)
        files = {**files, "genai_config.json": json_bytes(config)}
    return files, tuple(notes)


def _generation(checkpoint: Checkpoint, files: Mapping[str, bytes]) -> Mapping[str, Any]:
    """generation_config.json: a folder's own, or what is written for a GGUF file.

    Raises:
        FileFormatError: the folder's is damaged.
    """
    if checkpoint.gguf is None:
        return read_object(checkpoint.path / "generation_config.json")
    found: dict[str, Any] = json.loads(files.get("generation_config.json", b"{}"))
    return found


def _token_ids(value: object, size: int) -> list[int]:
    """The ids among ``value``, one or a list."""
    found = value if isinstance(value, list) else [value]
    return [v for v in found if type(v) is int and 0 <= v < size]


def _ends(checkpoint: Checkpoint) -> dict[str, int | None]:
    """Ids of the tokens that begin, end and fill up texts."""
    try:
        definition = checkpoint.tokenizer()
    except KvantError:  # said by whoever has to read texts
        definition = None
    if definition is None:
        return {}
    return {name: definition.token_id(name) for name in ("bos", "eos", "pad")}


def genai_config(
    checkpoint: Checkpoint,
    ends: Mapping[str, int | None],
    generation: Mapping[str, Any],
    *,
    standard: bool,
) -> dict[str, Any]:
    """The content of genai_config.json.

    Args:
        checkpoint: a decoder.
        ends: ids of ``bos``, ``eos`` and ``pad``, where known.
        generation: generation_config.json.
        standard: without an operator that writes into the cache in place.
    """
    c = checkpoint.config
    ids = _token_ids(generation.get("eos_token_id"), c.vocab_size)
    ids = ids or _token_ids(ends.get("eos"), c.vocab_size)
    first = ids[0] if ids else None
    eos = ids if len(ids) > 1 else first
    state = checkpoint.graph.states[0]
    bos, pad = ends.get("bos"), ends.get("pad")
    model: dict[str, Any] = {
        "type": _TYPES.get(checkpoint.architecture.name, checkpoint.architecture.name),
        "vocab_size": c.vocab_size,
        "context_length": c.max_position_embeddings,
        "bos_token_id": first if bos is None else bos,
        "eos_token_id": eos,
        "pad_token_id": first if pad is None else pad,
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
    search: dict[str, Any] = {
        "do_sample": bool(generation.get("do_sample", False)),
        "max_length": c.max_position_embeddings,
        "past_present_share_buffer": not standard,
        "num_beams": 1,
    }
    for key, kind in _SEARCH.items():
        value = generation.get(key)
        if type(value) is int or (type(value) is float and math.isfinite(value)):
            search[key] = kind(value)
    return {"model": {k: v for k, v in model.items() if v is not None}, "search": search}
