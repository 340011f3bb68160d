"""Files kvant writes, read by gguf-py and llama.cpp: tensors, metadata, checksums, splits."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xxhash

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.files.gguf import read_gguf
from oracles.llama import Llama
from oracles.llama_quantize import find_tool
from oracles.models import LLAMA, LLAMA3_ROPE, QWEN2, QWEN3, make_folder

pytestmark = pytest.mark.parity

CARD = """---
license: apache-2.0
language: [en, "no"]
base_model: acme/Base-1B
tags: [test]
---
# A model
"""


def _fields(gguf: ModuleType, path: Path) -> dict[str, Any]:
    return {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("recipe", ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_1", "Q8_0", "BF16"])
def test_gguf_py_reads_the_same_weights(
    gguf: ModuleType, source: Path, tmp_path: Path, recipe: str
) -> None:
    (path,) = kvant.quantize(source, recipe, tmp_path / "m.gguf").paths
    ours = open_checkpoint(path)
    reader = gguf.GGUFReader(path)
    assert [t.name for t in reader.tensors] == list(ours.weights)
    sums = reader.fields["kvant.tensor.xxh64"].contents()
    for tensor, checksum in zip(reader.tensors, sums, strict=True):
        weight = ours.weights[tensor.name]
        assert tensor.tensor_type.name == weight.stored.type.name
        assert tuple(int(n) for n in reversed(tensor.shape)) == weight.shape
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        order = ours.architecture.gguf_rows
        np.testing.assert_array_equal(values, weight.read_f32(order=order))
        assert xxhash.xxh64_intdigest(np.ascontiguousarray(tensor.data).data) == checksum


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**LLAMA, "rope_scaling": LLAMA3_ROPE}, {"llama.attention.head_count_kv": 2}),
        (
            {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        ),
        (QWEN2, {"qwen2.rope.freq_base": 10000.0}),
        (QWEN3, {"qwen3.attention.key_length": 128, "qwen3.attention.value_length": 128}),
    ],
    ids=["llama3", "linear", "qwen2", "qwen3"],
)
def test_metadata(
    gguf: ModuleType, tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path / "Acme-Tiny-0.5M-Chat-v1.2", config, dtype="BF16")
    (folder / "README.md").write_text(CARD)
    (path,) = kvant.quantize(folder, "Q4_K_M", tmp_path).paths
    fields = _fields(gguf, path)
    arch = config["model_type"]
    expected = {
        "general.architecture": arch,
        "general.type": "model",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "general.license": "apache-2.0",
        "general.languages": ["en", "no"],
        "general.tags": ["test"],
        "general.base_model.count": 1,
        "general.base_model.0.repo_url": "https://huggingface.co/acme/Base-1B",
        "general.version": "v1.2",
        "general.finetune": "Chat",
        f"{arch}.block_count": 2,
        f"{arch}.embedding_length": 256,
        f"{arch}.feed_forward_length": 512,
        f"{arch}.context_length": 256,
        f"{arch}.attention.head_count": 4,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 383,
        "kvant.version": kvant.__version__,
        "kvant.recipe": "Q4_K_M",
        **expected,
    }
    assert {key: fields.get(key) for key in expected} == expected
    assert len(fields["tokenizer.ggml.tokens"]) == 384
    assert not any(isinstance(v, str) and str(tmp_path) in v for v in fields.values())


def test_the_recipe_is_written_down(gguf: ModuleType, source: Path, tmp_path: Path) -> None:
    overrides = ["attn_v=Q8_0", r"blk\.0\.ffn_down=Q6_K"]
    (path,) = kvant.quantize(source, "Q4_K_S", tmp_path / "m.gguf", tensors=overrides).paths
    fields = _fields(gguf, path)
    assert fields["kvant.recipe.overrides"] == overrides
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert types["blk.1.attn_v.weight"] == "Q8_0"
    assert types["blk.0.ffn_down.weight"] == "Q6_K"
    assert types["blk.1.ffn_down.weight"] == "Q4_K"


@pytest.mark.parametrize("which", [0, -1])
def test_llamacpp_loads_splits(llama: Llama, source: Path, tmp_path: Path, which: int) -> None:
    (whole,) = kvant.quantize(source, "Q4_K_M", tmp_path / "whole.gguf").paths
    parts = kvant.quantize(source, "Q4_K_M", tmp_path / "part.gguf", split_size=300_000).paths
    assert len(parts) > 3
    tokens = list(range(40))
    if which == 0:
        np.testing.assert_array_equal(llama.logits(parts[0], tokens), llama.logits(whole, tokens))
    else:  # llama.cpp wants the first
        with pytest.raises(ValueError, match="split"):
            llama.logits(parts[which], tokens)


def test_gguf_py_reads_splits(gguf: ModuleType, source: Path, tmp_path: Path) -> None:
    parts = kvant.quantize(source, "Q4_K_M", tmp_path / "part.gguf", split_size=300_000).paths
    names: list[str] = []
    for number, path in enumerate(parts):
        fields = _fields(gguf, path)
        assert (fields["split.no"], fields["split.count"]) == (number, len(parts))
        assert ("general.architecture" in fields) == (number == 0)
        reader = gguf.GGUFReader(path)
        sums = reader.fields["kvant.tensor.xxh64"].contents()
        for tensor, checksum in zip(reader.tensors, sums, strict=True):
            assert xxhash.xxh64_intdigest(np.ascontiguousarray(tensor.data).data) == checksum
            names.append(tensor.name)
    assert names == list(open_checkpoint(parts[0]).weights)
    total = _fields(gguf, parts[0])["split.tensors.count"]
    assert total == len(names)


def test_llamacpp_loads_every_recipe(llama: Llama, source: Path, tmp_path: Path) -> None:
    for recipe in kvant.formats().recipes:
        (path,) = kvant.quantize(source, recipe, tmp_path).paths
        logits = llama.logits(path, range(16))
        assert np.isfinite(logits).all(), recipe.name
        assert logits.std() > 0.1


def test_checksums_are_those_of_llama_gguf_hash(source: Path, tmp_path: Path) -> None:
    tool = find_tool()
    hasher = tool.with_name("llama-gguf-hash") if tool else None
    if hasher is None or not hasher.exists():
        pytest.skip("llama-gguf-hash is not here (KVANT_LLAMA_BIN)")
    (path,) = kvant.quantize(source, "Q4_K_M", tmp_path / "m.gguf").paths
    done = subprocess.run(
        [str(hasher), "--xxh64", str(path)], capture_output=True, text=True, check=True
    )
    file = read_gguf(path)
    sums = dict(zip(file.tensors, file.get_array("kvant.tensor.xxh64"), strict=True))
    printed = re.findall(r"^xxh64 +(\w+) +.*?gguf:(\S+)$", done.stdout, re.MULTILINE)
    assert {name: int(value, 16) for value, name in printed} == sums
