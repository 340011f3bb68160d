"""Reading config.json: what is understood, what is refused, what is ignored."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.small_models import CONFIGS, LLAMA, LLAMA3_ROPE, QWEN2, QWEN3
from kvant.arch import ModelConfig, find_hf
from kvant.errors import FileFormatError, InputError, UnsupportedError


def _read(config: dict[str, Any]) -> tuple[ModelConfig, list[str]]:
    return find_hf(config, "config.json").from_hf(config, "config.json")


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_defaults_of_llama() -> None:
    """Llama 1's configs lack what came later; transformers' defaults are fixed for these."""
    config, _ = _read(_without(LLAMA, "num_key_value_heads", "rope_theta", "tie_word_embeddings"))
    assert config.num_key_value_heads == 4
    assert config.head_dim == 8
    assert config.rope.theta == 10000
    assert config.tie_word_embeddings is False


@pytest.mark.parametrize(
    "extra",
    [
        {"rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0},
        {"rope_scaling": {**LLAMA3_ROPE, "type": "llama3"}, "rope_theta": 500000.0},
        {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500000.0}},
        {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 5e5, "partial_rotary_factor": 1.0}},
    ],
)
def test_ways_to_say_llama3_scaling(extra: dict[str, Any]) -> None:
    expected, _ = _read({**LLAMA, "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0})
    config, _ = _read({**_without(LLAMA, "rope_theta"), **extra})
    assert config == expected
    assert len(config.rope.factors) == 4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": None},
        {"rope_scaling": {}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "factor": None}},
    ],
)
@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if "rope_theta" in c])
def test_ways_to_say_no_scaling(name: str, rope: dict[str, Any]) -> None:
    config, _ = _read({**CONFIGS[name], **rope})
    assert (config.rope.theta, config.rope.linear, config.rope.factors) == (10000.0, 1.0, ())


def test_extras_are_listed() -> None:
    _, ignored = _read(
        {**LLAMA, "torch_dtype": "bfloat16", "use_cache": True, "unsloth_version": "1"}
    )
    assert ignored == ["unsloth_version", "use_cache"]


@pytest.mark.parametrize(
    "extra",
    [
        # What published Llama and Qwen configs carry besides their fields.
        {"attention_dropout": 0.1, "initializer_range": 0.02, "pretraining_tp": 1},
        {"dtype": "bfloat16", "transformers_version": "5.23.0", "_name_or_path": "x/y"},
        {"_attn_implementation_autoset": True, "_flash_attn_2_enabled": True},
        {"rope_interleaved": False, "use_qk_norm": False, "residual_multiplier": 1.0},
        {"output_attentions": True, "output_router_logits": False, "num_logits_to_keep": 1},
        {"sliding_window": None, "quantization_config": None, "num_experts": 0},
        {"max_sequence_length": 2048, "is_llama_config": True, "is_causal": True},
        {"auto_map": {"AutoTokenizer": "tok.Tok"}, "transformers.js_config": {"dtype": "q4"}},
        {"conversation_template": "llama", "router_aux_loss_coef": 0.001},
        {"layer_types": ["full_attention", "full_attention"]},
    ],
)
def test_harmless_extras(extra: dict[str, Any]) -> None:
    assert _read({**LLAMA, **extra})[0] == _read(LLAMA)[0]


def test_published_qwen_keys() -> None:
    extra = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21}
    assert _read({**QWEN2, **extra, "use_mrope": False})[0] == _read(QWEN2)[0]
    assert _read({**QWEN3, **extra, "attention_bias": False})[0] == _read(QWEN3)[0]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"hidden_act": "gelu"}, ["'hidden_act'", "'silu'", "'gelu'"]),
        ({"hidden_act": None}, ["'hidden_act'", "null"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["rope", "linear, llama3", "'yarn'"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, ["'dynamic'"]),
        ({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2}}, ["'linear'"]),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta": 1}}, ["'beta'"]),
        ({"rope_scaling": {"type": ["linear"], "factor": 2}}, ["['linear']"]),
        ({"rope_scaling": {**LLAMA3_ROPE, "partial_rotary_factor": 0.5}}, ["partial_rotary"]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ["once more"]),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": LLAMA3_ROPE},
            ["differ"],
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised", "'gptq'"]),
        ({"quantization_config": {}, "quantisation": 1}, ["'quantisation'"]),
        ({"sliding_window": 4096}, ["sliding_window", "4096"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types"]),
        ({"layer_types": ["full_attention"]}, ["layer_types"]),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping", "30.0"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
        ({"num_local_experts": 8}, ["num_local_experts", "8"]),
        ({"num_experts_per_tok": 2}, ["num_experts_per_tok"]),
        ({"residual_multiplier": 0.22}, ["residual_multiplier"]),
        ({"embedding_multiplier": 12.0}, ["embedding_multiplier"]),
        ({"logits_scaling": 8.0}, ["logits_scaling"]),
        ({"attention_multiplier": 0.0078}, ["attention_multiplier"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"no_rope_layers": [1, 0]}, ["no_rope_layers"]),
        ({"use_qk_norm": True}, ["use_qk_norm", "true"]),
        ({"qkv_bias": True}, ["qkv_bias"]),
        ({"clip_qkv": 8.0}, ["clip_qkv"]),
        ({"use_parallel_residual": True}, ["use_parallel_residual"]),
        ({"is_causal": False}, ["is_causal", "false"]),
        ({"num_nextn_predict_layers": 1}, ["num_nextn_predict_layers"]),
        ({"auto_map": {"AutoModelForCausalLM": "m.M"}}, ["auto_map"]),
        ({"ROPE_INTERLEAVED": True}, ["ROPE_INTERLEAVED"]),
        ({"original_max_position_embeddings": 4096}, ["original_max_position_embeddings"]),
    ],
)
def test_what_would_change_the_computation_is_refused(
    extra: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        _read({**LLAMA, **extra})
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("config", "extra", "word"),
    [
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN2, {"rope_scaling": LLAMA3_ROPE}, "default, linear"),
        (QWEN2, {"head_dim": 16}, "hidden size"),
        (QWEN2, {"mlp_bias": True}, "mlp_bias"),
        (QWEN3, {"attention_bias": True}, "attention_bias"),
        (QWEN3, {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
    ],
)
def test_what_only_some_architectures_have(
    config: dict[str, Any], extra: dict[str, Any], word: str
) -> None:
    with pytest.raises(UnsupportedError, match=word):
        _read({**config, **extra})


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"hidden_size": "32"}, ["'hidden_size'", "whole number from 1", "'32'"]),
        ({"hidden_size": 32.0}, ["'hidden_size'", "32.0"]),
        ({"hidden_size": True}, ["got true"]),
        ({"hidden_size": None}, ["missing"]),
        ({"hidden_size": [32]}, ["[32]"]),
        ({"hidden_size": 0}, ["got 0"]),
        ({"hidden_size": -32}, ["-32"]),
        ({"hidden_size": 2**62}, ["1048576"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "4096"]),
        ({"vocab_size": 10**12}, ["vocab_size"]),
        ({"num_attention_heads": 0}, ["num_attention_heads"]),
        ({"num_attention_heads": 5}, ["head_dim", "6.4"]),
        ({"num_key_value_heads": 3}, ["4 attention heads", "3 key-value"]),
        ({"head_dim": 7}, ["7 elements", "even"]),
        ({"head_dim": 10**6}, ["head_dim"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps"]),
        ({"rms_norm_eps": -1e-5}, ["rms_norm_eps"]),
        ({"rms_norm_eps": 7}, ["rms_norm_eps"]),
        ({"rms_norm_eps": None}, ["rms_norm_eps", "missing"]),
        ({"rope_theta": 0}, ["rope_theta"]),
        ({"rope_theta": "10000"}, ["rope_theta"]),
        ({"rope_theta": 1e300}, ["rope_theta"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "object"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor", "missing"]),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, ["factor"]),
        ({"rope_scaling": {"type": "linear", "factor": -1.0}}, ["factor"]),
        ({"rope_scaling": _without(LLAMA3_ROPE, "low_freq_factor")}, ["low_freq_factor"]),
        (
            {"rope_scaling": _without(LLAMA3_ROPE, "original_max_position_embeddings")},
            ["original_max_position_embeddings", "missing"],
        ),
        ({"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}, ["high_freq_factor"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings"]),
        ({"attention_bias": 0}, ["attention_bias"]),
    ],
)
def test_bad_values(extra: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(FileFormatError) as caught:
        _read({**LLAMA, **extra})
    message = str(caught.value)
    assert message.startswith("config.json")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("config", "key"),
    [(QWEN2, "num_key_value_heads"), (QWEN3, "num_key_value_heads"), (QWEN3, "head_dim")],
)
def test_what_has_no_common_default_must_be_stated(config: dict[str, Any], key: str) -> None:
    with pytest.raises(FileFormatError, match=f"{key}' is missing"):
        _read(_without(config, key))


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["linear", "llama3", "full_attention", "silu"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*LLAMA3_ROPE, "type", "rope_theta", "x"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(
    base=st.sampled_from(sorted(CONFIGS)),
    changes=st.dictionaries(
        st.sampled_from(
            [*LLAMA, "head_dim", "rope_scaling", "rope_parameters", "layer_types", "auto_map"]
        )
        | st.text(max_size=12),
        _json,
        max_size=4,
    ),
)
def test_any_config_is_read_or_refused(base: str, changes: dict[str, Any]) -> None:
    config = {**CONFIGS[base], **changes}
    try:
        found, ignored = _read(config)
    except InputError as error:
        message = str(error)
    else:
        message = "config.json"
        assert found.num_attention_heads % found.num_key_value_heads == 0
        assert set(ignored) <= set(config)
    assert message.startswith("config.json")
    assert len(message) < 800
