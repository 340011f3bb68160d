"""Hugging Face folders: what opens, and what each fault says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.small_models import CONFIGS, LLAMA, QWEN2, random_weights, write_folder
from kvant.checkpoint import StorageCount, open_checkpoint
from kvant.checkpoint.names import hf_name
from kvant.errors import DataError, FileFormatError, InputError, UnsupportedError
from kvant.files.safetensors import write_safetensors
from oracles.models import as_stored

TIED = {**LLAMA, "tie_word_embeddings": True}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_the_graph(tmp_path: Path, name: str) -> None:
    weights = random_weights(CONFIGS[name])
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", CONFIGS[name], weights))
    assert checkpoint.format == "hf"
    assert checkpoint.architecture.name == name
    assert list(checkpoint.weights) == list(checkpoint.graph.weights)
    assert checkpoint.unused == checkpoint.notes == ()
    assert checkpoint.parameters == sum(w.size for w in weights.values())
    assert checkpoint.storage() == {
        "F32": StorageCount(len(weights), checkpoint.parameters, 4 * checkpoint.parameters)
    }
    norms = {"olmo2": "post_ffw_norm", "bert": "layer_output_norm"}
    for role in ("attn_output", norms.get(name, "ffn_norm")):
        ref = checkpoint.graph.weights[f"blk.1.{role}.weight"]
        read = as_stored(ref, name, checkpoint.weights[ref.name].read_f32())
        np.testing.assert_array_equal(read, weights[hf_name(ref, name)])
    assert checkpoint.tokenizer() is None


def test_mixed_types_are_counted_apart(tmp_path: Path) -> None:
    weights: dict[str, Any] = random_weights(TIED)
    weights[EMBEDDING] = weights[EMBEDDING].astype(np.float16)
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", TIED, weights))
    assert checkpoint.storage()["F16"] == StorageCount(1, 48 * 32, 2 * 48 * 32)
    assert list(checkpoint.storage()) == ["F32", "F16"]


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", TIED))
    assert "output.weight" not in checkpoint.weights
    assert checkpoint.graph.output.width == 48


def test_a_head_that_repeats_the_embedding_is_noted(tmp_path: Path) -> None:
    weights = random_weights(TIED)
    weights[HEAD] = weights[EMBEDDING].copy()
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", TIED, weights))
    assert checkpoint.unused == (HEAD,)
    assert HEAD in checkpoint.notes[0]


def test_a_head_that_contradicts_the_ties_is_refused(tmp_path: Path) -> None:
    weights = random_weights(TIED)
    weights[HEAD] = weights[EMBEDDING].copy()
    weights[HEAD][-1, -1] += 1
    with pytest.raises(UnsupportedError, match="tie_word_embeddings"):
        open_checkpoint(write_folder(tmp_path / "m", TIED, weights))
    weights[HEAD] = weights[EMBEDDING][:-1]
    with pytest.raises(UnsupportedError, match="tie_word_embeddings"):
        open_checkpoint(write_folder(tmp_path / "n", TIED, weights))


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    del weights[HEAD]
    with pytest.raises(FileFormatError, match=r"lm_head\.weight.*missing.*tie_word_embeddings"):
        open_checkpoint(write_folder(tmp_path / "m", LLAMA, weights))


def test_a_missing_weight_is_named_with_its_shape(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    del weights["model.layers.1.mlp.up_proj.weight"]
    del weights["model.norm.weight"]
    with pytest.raises(FileFormatError) as caught:
        open_checkpoint(write_folder(tmp_path / "m", LLAMA, weights))
    message = str(caught.value)
    assert "'model.layers.1.mlp.up_proj.weight' of shape (96, 32) (and 1 more)" in message


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    weights["model.layers.0.self_attn.k_proj.weight"] = np.zeros((32, 32), np.float32)
    with pytest.raises(FileFormatError) as caught:
        open_checkpoint(write_folder(tmp_path / "m", LLAMA, weights))
    message = str(caught.value)
    assert "k_proj" in message
    assert "(16, 32)" in message
    assert "(32, 32)" in message


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_a_needed_weight_of_another_type(tmp_path: Path, dtype: type) -> None:
    weights: dict[str, Any] = random_weights(LLAMA)
    weights["model.norm.weight"] = np.ones(32, dtype)
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight.*is of type"):
        open_checkpoint(write_folder(tmp_path / "m", LLAMA, weights))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "lm_head.bias",
    ],
)
def test_weights_the_graph_lacks_are_refused(tmp_path: Path, name: str) -> None:
    weights = {**random_weights(LLAMA), name: np.ones(3, np.float32)}
    with pytest.raises(UnsupportedError, match=f"1 more: '{name}'"):
        open_checkpoint(write_folder(tmp_path / "m", LLAMA, weights))


def test_other_tensors_are_listed(tmp_path: Path) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "score.weight": np.ones((2, 32), np.float32),
        "v_head.summary.flags": np.ones(2, np.uint8),
    }
    weights: dict[str, Any] = {**random_weights(LLAMA), **extra}
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", LLAMA, weights))
    assert checkpoint.unused == tuple(sorted(extra))
    assert "1 stored rope frequencies" in checkpoint.notes[0]


def test_shards(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    split = [dict(list(weights.items())[i::2]) for i in (0, 1)]
    for name, part in zip(names, split, strict=True):
        write_safetensors(folder / name, part, metadata={})
    index = {"weight_map": {t: n for n, p in zip(names, split, strict=True) for t in p}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(folder)
    assert [path.name for path in checkpoint.files] == names
    read = checkpoint.weights["output_norm.weight"].read_f32()
    np.testing.assert_array_equal(read, weights["model.norm.weight"])


def test_not_finite_weights_are_refused_when_read(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    weights["model.layers.0.mlp.up_proj.weight"][5, 7] = np.nan
    weights["model.layers.0.mlp.down_proj.weight"][2, 3] = np.inf
    weights["model.layers.1.mlp.up_proj.weight"][:] = 3e38  # the sum overflows, no element does
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", LLAMA, weights))
    with pytest.raises(DataError, match=r"'blk\.0\.ffn_up\.weight' holds nan at row 5, column 7"):
        checkpoint.weights["blk.0.ffn_up.weight"].read_f32()
    with (
        checkpoint.weights["blk.0.ffn_down.weight"].open() as fd,
        pytest.raises(DataError, match="holds inf at row 2, column 3"),
    ):
        checkpoint.weights["blk.0.ffn_down.weight"].read_rows_f32(fd, 1, 4)
    assert checkpoint.weights["blk.1.ffn_up.weight"].read_f32().max() > 2e38


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no config.json. Name the folder"),
        ({"model-q4.gguf": b""}, "name one, such as 'model-q4.gguf'"),
        ({"adapter_config.json": b"{}"}, "merge it"),
        ({"params.json": b"{}", "consolidated.00.pth": b""}, "Meta's own format"),
    ],
)
def test_folders_that_are_no_model(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        open_checkpoint(tmp_path)


def test_a_pickle_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UnsupportedError, match=r"pickle.*safetensors"):
        open_checkpoint(tmp_path)


def test_a_config_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FileFormatError, match="JSON object, got list"):
        open_checkpoint(tmp_path)


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(UnsupportedError, match="Name the folder"):
        open_checkpoint(write_folder(tmp_path / "m", QWEN2) / "model.safetensors")
