"""What configs of single families say in more than one way, and what of them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.small_models import CONFIGS, random_weights, write_folder, write_gguf
from kvant.arch import find_gguf, find_hf
from kvant.checkpoint import open_checkpoint
from kvant.errors import ContextError, FileFormatError, InputError, UnsupportedError
from kvant.files.gguf import GgufFile, Value, ValueType, array, string, uint32
from kvant.reference import ReferenceModel
from oracles.models import longrope

FULL, SLIDING = "full_attention", "sliding_attention"


def _read(name: str, **changes: Any) -> Any:
    config = {**CONFIGS[name], **changes}
    config = {key: value for key, value in config.items() if value != "absent"}
    return find_hf(config, "config.json").from_hf(config, "config.json")[0]


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        ("mistral", {}, [20, 20]),
        ("mistral", {"sliding_window": None}, [0, 0]),
        ("mistral", {"sliding_window": "absent"}, [4096, 4096]),
        ("starcoder2", {"sliding_window": "absent"}, [0, 0]),
        ("phi3", {"sliding_window": 7}, [7, 7]),
        ("gemma2", {}, [20, 0]),
        ("gemma2", {"layer_types": [FULL, SLIDING]}, [0, 20]),
        ("gemma3", {"sliding_window_pattern": "absent"}, [20, 20]),
        ("gemma3", {"sliding_window_pattern": 1}, [0, 0]),
        ("gemma3", {"_sliding_window_pattern": 2, "sliding_window_pattern": "absent"}, [20, 0]),
    ],
)
def test_windows(name: str, changes: dict[str, Any], sizes: list[int]) -> None:
    config = _read(name, **changes)
    assert [config.windows.of(layer) for layer in range(2)] == sizes
    arch = find_hf(CONFIGS[name], "")
    again = arch.from_gguf(GgufFile(Path("x"), 3, 32, arch.to_gguf(config), {}, 0, 0))[0]
    assert [again.windows.of(layer) for layer in range(2)] == sizes


@pytest.mark.parametrize(
    "ropes",
    [
        {"rope_theta": 1e6, "rope_local_base_freq": 5000.0},
        {
            "rope_theta": "absent",
            "rope_parameters": {
                FULL: {"rope_type": "default", "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
        {"rope_theta": "absent", "rope_local_base_freq": 5000.0},
    ],
)
def test_ways_to_say_two_ropes(ropes: dict[str, Any]) -> None:
    config = _read("gemma3", **ropes)
    assert (config.rope.theta, config.local_rope.theta) == (1e6, 5000.0)
    metadata = find_hf(CONFIGS["gemma3"], "").to_gguf(config)
    assert metadata["gemma3.rope.freq_base_swa"].value == 5000.0


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_long_ropes(kind: str) -> None:
    said = {**longrope(8), "type": kind}
    config = _read("phi3", rope_scaling=said, original_max_position_embeddings=32)
    rope = config.rope
    assert (len(rope.factors), len(rope.long_factors), rope.original) == (4, 4, 32)
    assert rope.magnitude == pytest.approx((1 + np.log(4) / np.log(32)) ** 0.5)
    inner = {**said, "original_max_position_embeddings": 32, "factor": 4.0}
    assert _read("phi3", rope_scaling=inner).rope == rope
    stated = {**inner, "attention_factor": 1.5}
    assert _read("phi3", rope_scaling=stated).rope.magnitude == 1.5
    assert set(config.tensors()) == {"rope_factors_long.weight", "rope_factors_short.weight"}


REFUSED: list[tuple[str, dict[str, Any], type[InputError], str]] = [
    ("gpt2", {"activation_function": "relu"}, UnsupportedError, "activation_function"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, UnsupportedError, "inverse_layer"),
    ("gpt2", {"n_head": 5}, UnsupportedError, "add up to"),
    ("mistral", {"sliding_window": -1}, FileFormatError, "sliding_window"),
    ("mistral", {"layer_types": [FULL, SLIDING]}, UnsupportedError, "layer_types"),
    ("mistral", {"attention_bias": True}, UnsupportedError, "attention_bias"),
    ("gemma2", {"final_logit_softcapping": None}, FileFormatError, "final_logit_softcapping"),
    ("gemma2", {"tie_word_embeddings": False}, UnsupportedError, "tie_word_embeddings"),
    ("gemma2", {"query_pre_attn_scalar": 9}, UnsupportedError, "query_pre_attn_scalar"),
    ("gemma2", {"hidden_activation": "gelu"}, UnsupportedError, "hidden_activation"),
    ("gemma2", {"layer_types": [FULL, "chunked_attention"]}, UnsupportedError, "layer_types"),
    ("gemma2", {"layer_types": [FULL]}, UnsupportedError, "layer_types"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, UnsupportedError, "attn_logit_softcapping"),
    ("gemma3", {"use_bidirectional_attention": True}, UnsupportedError, "bidirectional"),
    ("gemma3", {"sliding_window_pattern": 0}, FileFormatError, "sliding_window_pattern"),
    (
        "gemma3",
        {"rope_theta": "absent", "rope_parameters": {FULL: {}, SLIDING: {"rope_type": "linear"}}},
        UnsupportedError,
        "sliding layers",
    ),
    ("phi3", {"rope_scaling": longrope(8)}, FileFormatError, "original_max_position"),
    (
        "phi3",
        {"rope_scaling": longrope(6), "original_max_position_embeddings": 32},
        FileFormatError,
        "list of 4 numbers, got 3",
    ),
    (
        "phi3",
        {"rope_scaling": {**longrope(8), "type": "yarn"}, "original_max_position_embeddings": 32},
        UnsupportedError,
        "default, longrope, got 'yarn'",
    ),
    ("phi3", {"partial_rotary_factor": 1.5}, UnsupportedError, "partial_rotary_factor"),
    ("phi3", {"partial_rotary_factor": 0.7}, FileFormatError, "even number"),
    ("phi3", {"partial_rotary_factor": True}, UnsupportedError, "partial_rotary_factor"),
    ("olmo2", {"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, UnsupportedError, "no_rope_layers"),
    ("smollm3", {"no_rope_layer_interval": 3}, UnsupportedError, "no_rope_layers"),
    ("smollm3", {"use_sliding_window": True}, UnsupportedError, "use_sliding_window"),
    ("starcoder2", {"use_bias": False}, UnsupportedError, "use_bias"),
    ("starcoder2", {"hidden_act": "relu"}, UnsupportedError, "hidden_act"),
    ("granite", {"logits_scaling": 0}, FileFormatError, "logits_scaling"),
    ("granite", {"position_embedding_type": "nope"}, UnsupportedError, "position_emb"),
]


@pytest.mark.parametrize(("name", "changes", "error", "words"), REFUSED)
def test_what_is_refused(
    name: str, changes: dict[str, Any], error: type[InputError], words: str
) -> None:
    with pytest.raises(error) as caught:
        _read(name, **changes)
    assert words in str(caught.value)


METADATA: list[tuple[str, dict[str, Value], type[InputError], str]] = [
    ("granite", {"granite.rope.scaling.finetuned": Value(ValueType.BOOL, False)}, UnsupportedError,
     "finetuned"),
    ("olmo2", {"olmo2.attention.sliding_window": uint32(64)}, UnsupportedError, "sliding_window"),
    ("gemma2", {"gemma2.attention.sliding_window_pattern": array(ValueType.BOOL, [True])},
     FileFormatError, "each of the 2 layers"),
    ("gemma3", {"gemma3.attention.sliding_window_pattern": string("x")}, FileFormatError,
     "sliding_window_pattern"),
    ("phi3", {"phi3.rope.dimension_count": uint32(7)}, FileFormatError, "even number"),
    ("phi3", {"phi3.rope.dimension_count": uint32(10)}, FileFormatError, "heads of 8"),
    ("mistral", {"llama.expert_count": uint32(4)}, UnsupportedError, "expert_count"),
    ("mistral", {"llama.attention.sliding_window": string("x")}, FileFormatError, "an integer"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "metadata", "error", "words"), METADATA)
def test_metadata_that_is_refused(
    tmp_path: Path, name: str, metadata: dict[str, Value], error: type[InputError], words: str
) -> None:
    source = open_checkpoint(write_folder(tmp_path / "m", CONFIGS[name]))
    path = write_gguf(tmp_path / "m.gguf", source, metadata)
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    assert words in str(caught.value)


def test_one_set_of_factors_without_the_other(tmp_path: Path) -> None:
    said = {"rope_scaling": longrope(8), "original_max_position_embeddings": 32}
    source = open_checkpoint(write_folder(tmp_path / "m", {**CONFIGS["phi3"], **said}))
    extra = {"rope_factors_long.weight": np.ones(4, np.float32)}
    plain = open_checkpoint(write_folder(tmp_path / "n", CONFIGS["phi3"]))
    path = write_gguf(tmp_path / "one.gguf", plain, extra=extra)
    with pytest.raises(FileFormatError, match=r"rope_factors_short.*is missing"):
        open_checkpoint(path)
    both = open_checkpoint(write_gguf(tmp_path / "both.gguf", source))
    assert both.config.rope == source.config.rope  # type: ignore[attr-defined]


def test_a_llama_file_with_a_window_is_a_mistral(tmp_path: Path) -> None:
    source = open_checkpoint(write_folder(tmp_path / "m", CONFIGS["mistral"]))
    path = write_gguf(tmp_path / "m.gguf", source)
    assert open_checkpoint(path).architecture.name == "mistral"
    none = {**CONFIGS["mistral"], "sliding_window": None}
    source = open_checkpoint(write_folder(tmp_path / "n", none))
    other = open_checkpoint(write_gguf(tmp_path / "n.gguf", source))
    assert other.architecture.name == "llama"
    tokens = np.arange(40)[None]
    expected = ReferenceModel(source).forward(tokens)
    np.testing.assert_allclose(ReferenceModel(other).forward(tokens), expected, atol=1e-5)
    assert find_gguf(other.gguf).name == "llama"  # type: ignore[arg-type]


def test_more_tokens_than_positions(tmp_path: Path) -> None:
    source = open_checkpoint(write_folder(tmp_path / "m", CONFIGS["gpt2"]))
    with pytest.raises(ContextError) as caught:
        ReferenceModel(source).forward(np.zeros((1, 129), int))
    assert (caught.value.needed, caught.value.context) == (129, 128)


def test_a_norm_that_is_missing_is_not_taken_from_elsewhere(tmp_path: Path) -> None:
    weights = random_weights(CONFIGS["gemma2"])
    del weights["model.layers.0.pre_feedforward_layernorm.weight"]
    with pytest.raises(FileFormatError, match="pre_feedforward_layernorm"):
        open_checkpoint(write_folder(tmp_path / "m", CONFIGS["gemma2"], weights))
