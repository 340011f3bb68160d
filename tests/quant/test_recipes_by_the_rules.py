"""Every preset gives every tensor the type llama-quantize gives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kvant.arch import find_hf
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.export.gguf.plan import plan_export
from kvant.files.gguf import TensorSpec, header_bytes
from kvant.graph.ir import WeightRef
from kvant.packing import known
from kvant.packing.types import BY_NAME
from kvant.quant.presets import PRESETS
from oracles.llama_quantize import FILE_TYPES, Facts, expected_type, find_tool, tool_types
from oracles.models import (
    BERT,
    GEMMA2,
    GEMMA3,
    GPT2,
    GRANITE,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    OLMO2,
    OLMOE,
    PHI3,
    QWEN2,
    QWEN3,
    QWEN3MOE,
    SMOLLM3,
    STARCODER2,
)

TINY = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 256}


def _model(base: dict[str, Any], layers: int, heads: int, kv_heads: int, **more: Any) -> Any:
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return {**base, **TINY, "head_dim": 32, "num_hidden_layers": layers, **shape, **more}


MODELS: dict[str, dict[str, Any]] = {
    "2-layers": _model(LLAMA, 2, 8, 8),
    "7-layers-gqa4": _model(LLAMA, 7, 8, 2),
    "8-layers-gqa8-tied": _model(LLAMA, 8, 8, 1, tie_word_embeddings=True),
    "16-layers": _model(LLAMA, 16, 8, 8),
    "32-layers-gqa4": _model(LLAMA, 32, 8, 2),
    "33-layers-tied": _model(QWEN3, 33, 8, 4, tie_word_embeddings=True),
    "qwen2-32-layers": _model(QWEN2, 32, 8, 1),
    "qwen3-8-layers": _model(QWEN3, 8, 8, 4),
    "80-layers-gqa8": _model(LLAMA, 80, 8, 1),
    "80-layers-gqa1": _model(LLAMA, 80, 8, 8),
    "80-layers-qwen2": _model(QWEN2, 80, 8, 8),
    "80-layers-qwen3": _model(QWEN3, 80, 8, 1),
    "rows-96": _model(LLAMA, 3, 3, 1, hidden_size=96, intermediate_size=288),
    "rows-96-tied": _model(LLAMA, 3, 3, 1, hidden_size=96, tie_word_embeddings=True),
    "rows-80": _model(LLAMA, 3, 5, 1, hidden_size=80, intermediate_size=240, head_dim=16),
    "rows-80-tied": _model(QWEN2, 3, 5, 1, hidden_size=80, head_dim=16, tie_word_embeddings=True),
    "ffn-288": _model(QWEN3, 9, 4, 1, intermediate_size=288),
    "ffn-250": _model(QWEN3, 9, 4, 1, intermediate_size=250),
    "bert-6-layers": {**BERT, "num_hidden_layers": 6, "hidden_size": 256, "vocab_size": 384},
    "gpt2-12-layers": {**GPT2, "n_layer": 12, "n_head": 8, "vocab_size": 256},
    "phi3-32-layers": _model(PHI3, 32, 8, 8),
    "phi3-8-layers-gqa4": _model(PHI3, 8, 8, 2),
    "gemma2-9-layers": _model(GEMMA2, 9, 8, 4, query_pre_attn_scalar=32),
    "gemma3-8-layers-gqa4": _model(GEMMA3, 8, 8, 2, query_pre_attn_scalar=32),
    "granite-8-layers-tied": _model(GRANITE, 8, 8, 2, tie_word_embeddings=True),
    "olmo2-16-layers": _model(OLMO2, 16, 8, 8),
    "smollm3-12-layers": _model(SMOLLM3, 12, 8, 2),
    "starcoder2-10-layers": _model(STARCODER2, 10, 8, 2),
    "mistral-32-layers": _model(MISTRAL, 32, 8, 2),
    "8-experts": _model(MIXTRAL, 8, 8, 2, num_local_experts=8),
    "8-experts-80-layers": _model(MIXTRAL, 80, 8, 1, num_local_experts=8),
    "4-experts": _model(MIXTRAL, 9, 8, 2, num_local_experts=4),
    "qwen3moe": _model(QWEN3MOE, 17, 8, 2, num_experts=16),
    "qwen3moe-8-experts-ffn-288": _model(
        QWEN3MOE, 9, 8, 2, num_experts=8, moe_intermediate_size=288
    ),
    "olmoe-8-experts": {**OLMOE, **TINY, "num_hidden_layers": 8},
    "bert-rows-96": {**BERT, **TINY, "hidden_size": 96, "intermediate_size": 288},
}


def _is_half(ref: WeightRef) -> bool:
    """As converters write it: norms, biases, routers and positions stay in single precision."""
    kept = ("ffn_gate_inp", "position_embd", "token_types")
    return len(ref.shape) > 1 and ref.role not in kept


def _header_only(path: Path, config: dict[str, Any]) -> Checkpoint:
    """A GGUF file of the model whose weights are a hole: nobody reads them here."""
    arch = find_hf(config, "config.json")
    if arch.name == "qwen2":  # its width of heads follows from the others
        config = {key: value for key, value in config.items() if key != "head_dim"}
    parsed, _ = arch.from_hf(config, "config.json")
    specs = [
        TensorSpec(ref.name, BY_NAME["F16" if _is_half(ref) else "F32"], ref.shape)
        for ref in arch.trace(parsed).weights.values()
    ]
    header, offsets = header_bytes(arch.to_gguf(parsed), specs)
    path.write_bytes(header)
    os.truncate(path, len(header) + offsets[-1] + specs[-1].nbytes + 32)
    return open_checkpoint(path)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Checkpoint, Facts]:
    config = MODELS[request.param]
    checkpoint = _header_only(tmp_path / "model.gguf", config)
    shape = checkpoint.config
    gqa = shape.num_attention_heads // shape.num_key_value_heads
    tied = bool(config.get("tie_word_embeddings", True))
    experts = config.get("num_experts") or config.get("num_local_experts") or 0
    arch = checkpoint.architecture.gguf_name
    return checkpoint, Facts(arch, checkpoint.config.num_hidden_layers, gqa, tied, experts)


def _ours(checkpoint: Checkpoint, name: str) -> dict[str, str]:
    recipe = next(r for r in PRESETS if r.name == name)
    return {t.name: t.assignment.packing for t in plan_export(checkpoint, recipe).tensors}


def _all_known(expected: dict[str, str]) -> bool:
    """False where the tool falls back to a packing that kvant does not have."""
    return all(known(packing) for packing in expected.values())


def test_presets_are_the_file_types() -> None:
    assert {r.name: (r.file_type, r.base) for r in PRESETS} == FILE_TYPES


def test_as_the_rules_say(model: tuple[Checkpoint, Facts]) -> None:
    checkpoint, facts = model
    for name in FILE_TYPES:
        expected = {
            weight.name: expected_type(name, weight.name, weight.shape, facts)
            for weight in checkpoint.weights.values()
        }
        if _all_known(expected):
            assert _ours(checkpoint, name) == expected, name


@pytest.mark.parity
@pytest.mark.skipif(find_tool() is None, reason="llama-quantize is not here (KVANT_LLAMA_BIN)")
def test_as_the_tool_does(model: tuple[Checkpoint, Facts]) -> None:
    tool = find_tool()
    assert tool is not None
    checkpoint, _ = model
    for name in FILE_TYPES:
        expected = tool_types(tool, checkpoint.path, name)
        if _all_known(expected):
            assert _ours(checkpoint, name) == expected, name
