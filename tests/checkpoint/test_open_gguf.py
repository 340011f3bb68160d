"""GGUF files as checkpoints: the same model as the folder they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.small_models import CONFIGS, LLAMA, LLAMA3_ROPE, QWEN2, write_folder, write_gguf
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import Value, array, boolean, float32, string, strings, uint32
from kvant.files.gguf_value import ValueType
from kvant.reference import ReferenceModel

TOKENS = np.random.default_rng(1).integers(0, 48, (2, 40))


def _folder(tmp_path: Path, config: dict[str, Any]) -> Checkpoint:
    return open_checkpoint(write_folder(tmp_path / "m", config))


@pytest.mark.parametrize(
    "config",
    [
        *CONFIGS.values(),
        {**LLAMA, "tie_word_embeddings": True},
        {**LLAMA, "attention_bias": True, "mlp_bias": True},
        {**LLAMA, "rope_scaling": LLAMA3_ROPE},
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {**LLAMA, "head_dim": 16},
        {**QWEN2, "tie_word_embeddings": True},
    ],
)
def test_gguf_gives_the_same_logits(tmp_path: Path, config: dict[str, Any]) -> None:
    source = _folder(tmp_path, config)
    gguf = open_checkpoint(write_gguf(tmp_path / "m.gguf", source))
    assert gguf.format == "gguf"
    assert gguf.config.to_gguf("x") == source.config.to_gguf("x")
    said, again = source.config.tensors(), gguf.config.tensors()
    assert {n: t.tobytes() for n, t in said.items()} == {n: t.tobytes() for n, t in again.items()}
    assert list(gguf.weights) == list(source.weights)
    assert gguf.graph.weights == source.graph.weights
    for name, weight in source.weights.items():
        np.testing.assert_array_equal(gguf.weights[name].read_f32(), weight.read_f32())
    expected = ReferenceModel(source).forward(TOKENS)
    np.testing.assert_allclose(
        ReferenceModel(gguf).forward(TOKENS), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_llama_rows_are_interleaved_in_the_file(tmp_path: Path) -> None:
    source = _folder(tmp_path, LLAMA)
    gguf = open_checkpoint(write_gguf(tmp_path / "m.gguf", source))
    weight = gguf.weights["blk.0.attn_q.weight"]
    stored = weight.stored.read().view(np.float32)
    canonical = source.weights["blk.0.attn_q.weight"].read_f32()
    np.testing.assert_array_equal(stored[:8], canonical[[0, 4, 1, 5, 2, 6, 3, 7]])
    assert weight.rotary is not None
    assert weight.rotary.order == "interleaved"
    qwen = open_checkpoint(
        write_gguf(tmp_path / "q.gguf", open_checkpoint(write_folder(tmp_path / "q", QWEN2)))
    )
    rotary = qwen.weights["blk.0.attn_q.weight"].rotary
    assert rotary is not None
    assert rotary.order == "half"


def test_quantised_sources_are_decoded(tmp_path: Path) -> None:
    source = _folder(tmp_path, LLAMA)
    gguf = open_checkpoint(write_gguf(tmp_path / "m.gguf", source, packing="Q8_0"))
    assert gguf.storage()["Q8_0"].tensors == 14 + 2
    expected = ReferenceModel(source).forward(TOKENS)
    got = ReferenceModel(gguf).forward(TOKENS)
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    streamed = ReferenceModel(gguf, cache=False).forward(TOKENS)
    np.testing.assert_array_equal(streamed, got)


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ({"llama.expert_count": uint32(8)}, FileFormatError, "expert_used_count"),
        ({"llama.attention.sliding_window": uint32(2**31)}, FileFormatError, "sliding_window"),
        ({"llama.attention.scale": float32(0.1)}, UnsupportedError, "attention.scale"),
        ({"llama.attention.causal": boolean(False)}, UnsupportedError, "attention.causal"),
        ({"llama.rope.scaling.type": string("yarn")}, UnsupportedError, "none or linear"),
        ({"llama.rope.scaling.attn_factor": float32(0.5)}, UnsupportedError, "attn_factor"),
        ({"llama.block_count": string("2")}, FileFormatError, "llama.block_count"),
        ({"llama.block_count": uint32(0)}, FileFormatError, "llama.block_count"),
        ({"llama.block_count": uint32(2**31)}, FileFormatError, "llama.block_count"),
        ({"llama.rope.dimension_count": uint32(4)}, FileFormatError, "expected one value"),
        (
            {"llama.attention.head_count": array(ValueType.INT32, [4, 4])},
            FileFormatError,
            "head_count",
        ),
        (
            {"llama.attention.layer_norm_rms_epsilon": float32(float("nan"))},
            FileFormatError,
            "rms_epsilon",
        ),
        ({"llama.rope.freq_base": float32(float("inf"))}, FileFormatError, "freq_base"),
        ({"llama.vocab_size": uint32(47)}, FileFormatError, "(47, 32)"),
        ({"general.architecture": string("mamba")}, UnsupportedError, "mamba"),
        ({"general.architecture": uint32(1)}, FileFormatError, "general.architecture"),
    ],
)
def test_metadata_that_is_refused(
    tmp_path: Path, metadata: dict[str, Value], error: type, words: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", _folder(tmp_path, LLAMA), metadata)
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.expert_count": uint32(0)},
        {"llama.attention.causal": boolean(True)},
        {"llama.rope.scaling.type": string("none"), "llama.rope.scaling.factor": float32(8)},
        {"llama.rope.scaling.type": string("linear"), "llama.rope.scaling.factor": float32(0)},
        {"llama.rope.scaling.finetuned": boolean(True)},
        {"llama.tensor_data_layout": string("Meta AI original pth")},
    ],
)
def test_metadata_without_effect(tmp_path: Path, metadata: dict[str, Value]) -> None:
    path = write_gguf(tmp_path / "m.gguf", _folder(tmp_path, LLAMA), metadata)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.rope.linear == 1.0
    assert set(checkpoint.ignored) <= set(metadata)


def test_the_vocabulary_may_be_said_by_the_tokens(tmp_path: Path) -> None:
    source = _folder(tmp_path, LLAMA)
    tokens = {"tokenizer.ggml.tokens": strings([f"t{i}" for i in range(48)])}
    path = write_gguf(tmp_path / "m.gguf", source, tokens)
    metadata = open_checkpoint(path).gguf
    assert metadata is not None
    del metadata.metadata["llama.vocab_size"]
    assert source.architecture.from_gguf(metadata)[0].vocab_size == 48
    del metadata.metadata["tokenizer.ggml.tokens"]
    assert source.architecture.from_gguf(metadata)[0].vocab_size == 48


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}, UnsupportedError),
        ({"blk.2.attn_norm.weight": np.ones(32, np.float32)}, UnsupportedError),
        ({"rope_freqs.weight": np.ones(3, np.float32)}, FileFormatError),
        ({"rope_freqs.weight": np.array([1, 1, 0, 1], np.float32)}, FileFormatError),
        ({"rope_freqs.weight": np.array([1, 1, np.nan, 1], np.float32)}, FileFormatError),
        ({"rope_freqs.weight": np.array([1, 1, np.inf, 1], np.float32)}, FileFormatError),
    ],
)
def test_tensors_that_are_refused(
    tmp_path: Path, extra: dict[str, np.ndarray], error: type
) -> None:
    path = write_gguf(tmp_path / "m.gguf", _folder(tmp_path, LLAMA), extra=extra)
    with pytest.raises(error, match=next(iter(extra)).replace(".", r"\.")):
        open_checkpoint(path)


def test_rope_factors_mean_nothing_to_qwen(tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.ones(4, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", _folder(tmp_path, QWEN2), extra=extra)
    with pytest.raises(UnsupportedError, match="rope_freqs"):
        open_checkpoint(path)


def test_missing_tensors(tmp_path: Path) -> None:
    source = _folder(tmp_path, LLAMA)
    path = write_gguf(tmp_path / "m.gguf", source, drop=("blk.1.ffn_down.weight",))
    with pytest.raises(FileFormatError, match=r"'blk\.1\.ffn_down\.weight' of shape \(32, 96\)"):
        open_checkpoint(path)
    path = write_gguf(tmp_path / "v.gguf", source, drop=tuple(source.weights))
    with pytest.raises(UnsupportedError, match="without weights"):
        open_checkpoint(path)


def test_without_output_weight_a_model_is_tied(tmp_path: Path) -> None:
    source = _folder(tmp_path, LLAMA)
    gguf = open_checkpoint(write_gguf(tmp_path / "m.gguf", source, drop=("output.weight",)))
    assert gguf.config.tie_word_embeddings
    assert "output.weight" not in gguf.weights


def test_a_foreign_file(shared_data: Path) -> None:
    checkpoint = open_checkpoint(shared_data / "models" / "llama-2-tiny-random.gguf")
    assert checkpoint.info.name == "LLaMA v2"
    assert checkpoint.config.head_dim == 4
    assert checkpoint.config.vocab_size == 32000
    assert {n: c.tensors for n, c in checkpoint.storage().items()} == {"F16": 9, "F32": 3}
    logits = ReferenceModel(checkpoint).forward([[1, 15043, 3186]])
    assert logits.shape == (1, 3, 32000)
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_vocabularies_are_not_models(shared_data: Path) -> None:
    for name in ("llama-bpe", "qwen2", "gpt-2"):
        with pytest.raises(UnsupportedError, match=r"without weights|architecture"):
            open_checkpoint(shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf")
