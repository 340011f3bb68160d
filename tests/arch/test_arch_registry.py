"""Architectures are found by their file's name, and each is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvant.arch
from checkpoint.small_models import CONFIGS, LLAMA, LLAMA3_ROPE
from kvant.arch import architecture, architecture_names, find_gguf, find_hf
from kvant.arch._fields import Flag
from kvant.checkpoint.names import HF_NAMES, HF_NAMES_OF
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import GgufFile, Value


def _gguf(metadata: dict[str, Value]) -> GgufFile:
    return GgufFile(Path("x.gguf"), 3, 32, metadata, {}, 0, 0)


def test_the_architectures_are_the_files() -> None:
    folder = Path(kvant.arch.__file__).parent
    files = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    assert set(architecture_names()) == files
    assert files >= {"llama", "mixtral", "qwen2", "qwen3", "qwen3moe"}


@pytest.mark.parametrize("name", architecture_names())
def test_each_is_small_and_complete(name: str) -> None:
    arch = architecture(name)
    assert arch.name == name
    assert arch.gguf_rows in ("half", "interleaved")
    assert arch.hf_classes
    lines = Path(kvant.arch.__file__).with_name(f"{name}.py").read_text().splitlines()
    assert len(lines) <= 90, "an architecture is a small file"


@pytest.mark.parametrize("name", architecture_names())
def test_each_role_has_a_hugging_face_name(name: str) -> None:
    arch = architecture(name)
    config, _ = arch.from_hf(CONFIGS[name], "config.json")
    roles = {ref.role for ref in arch.trace(config).weights.values()}
    missing = roles - set(HF_NAMES) - set(HF_NAMES_OF.get(name, {}))
    assert not missing, f"add {sorted(missing)} to HF_NAMES in kvant/checkpoint/names.py"


@pytest.mark.parametrize("name", architecture_names())
def test_config_survives_gguf(name: str) -> None:
    arch = architecture(name)
    changes = {"rope_theta": 500000, "rms_norm_eps": 2**-17, "layer_norm_epsilon": 2**-17}
    found = {key: value for key, value in changes.items() if key in CONFIGS[name]}
    config, _ = arch.from_hf({**CONFIGS[name], **found}, "")
    metadata = arch.to_gguf(config)
    assert metadata["general.architecture"].value == arch.gguf_name
    assert find_gguf(_gguf(metadata)).name == name
    again, ignored = arch.from_gguf(_gguf(metadata))
    # Without tensors a GGUF file looks tied; that and biases are all that tensors say.
    assert again.to_gguf(name) == config.to_gguf(name)
    if isinstance(arch.config.fields()["tie_word_embeddings"], Flag):
        assert again.tie_word_embeddings
    assert ignored == []


def test_linear_scaling_survives_gguf() -> None:
    arch = architecture("llama")
    config, _ = arch.from_hf({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}, "")
    assert config.rope.linear == 4.0
    metadata = arch.to_gguf(config)
    assert metadata["llama.rope.scaling.type"].value == "linear"
    assert arch.from_gguf(_gguf(metadata))[0].rope == config.rope


def test_llama3_scaling_becomes_a_tensor() -> None:
    arch = architecture("llama")
    config, _ = arch.from_hf({**LLAMA, "rope_scaling": LLAMA3_ROPE}, "")
    (name, factors), *rest = arch.extra_tensors(config).items()
    assert not rest
    assert name == "rope_freqs.weight"
    assert factors.dtype == "float32"
    assert factors.shape == (4,)
    assert tuple(factors.tolist()) == config.rope.factors
    assert arch.extra_tensors(arch.from_hf(LLAMA, "")[0]) == {}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "gpt9"}, UnsupportedError, "one of .*llama, .*qwen2, .*, got 'gpt9'"),
        ({"model_type": "_config"}, UnsupportedError, "got '_config'"),
        ({"model_type": "../llama"}, UnsupportedError, "'../llama'"),
        ({"model_type": None}, FileFormatError, "model_type"),
        ({"model_type": 3}, FileFormatError, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, UnsupportedError, "model class"),
        ({"architectures": []}, UnsupportedError, "got none"),
        ({"architectures": "LlamaForCausalLM"}, FileFormatError, "list of names"),
        ({"architectures": [3]}, FileFormatError, "list of names"),
    ],
)
def test_unknown_architectures(change: dict[str, object], error: type, words: str) -> None:
    with pytest.raises(error, match=words.replace("../", r"\.\./")):
        find_hf({**LLAMA, **change}, "config.json")


def test_the_class_may_be_left_out() -> None:
    assert find_hf({k: v for k, v in LLAMA.items() if k != "architectures"}, "").name == "llama"
