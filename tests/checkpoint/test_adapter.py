"""LoRA adapters merged while weights are read: W + s B A, in every row order and format."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from small_models import CONFIGS, LLAMA, random_weights, write_folder

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.checkpoint.adapter import merge_adapter
from kvant.cli.main import main
from kvant.errors import FileFormatError, InputError, KvantError, UnsupportedError
from kvant.files.safetensors import write_safetensors

F32 = npt.NDArray[np.float32]
TARGETS = ("q_proj", "v_proj", "down_proj")
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(TARGETS)}


def adapter(
    folder: Path, weights: dict[str, F32], targets: tuple[str, ...] = TARGETS, **config: Any
) -> tuple[Path, dict[str, F32]]:
    """An adapter, and the weights it makes of ``weights``."""
    rng = np.random.default_rng(5)
    rank = 4
    tensors: dict[str, F32] = {}
    merged = dict(weights)
    settings = {**CONFIG, **config}
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    for name, w in weights.items():
        module = name.removesuffix(".weight")
        if not module.endswith(targets) or w.ndim != 2:
            continue
        a = rng.standard_normal((rank, w.shape[1])).astype(np.float32) * 0.1
        b = rng.standard_normal((w.shape[0], rank)).astype(np.float32) * 0.1
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        merged[name] = w + np.float32(scale) * b @ a
    folder.mkdir(parents=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder, merged


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_weights_are_those_of_the_merged_model(tmp_path: Path, name: str, rslora: bool) -> None:
    config = CONFIGS[name]
    weights = random_weights(config)
    base = write_folder(tmp_path / "base", config, weights)
    targets = ("qkv_proj", "down_proj") if name == "phi3" else TARGETS
    folder, merged = adapter(tmp_path / "lora", weights, targets, use_rslora=rslora)
    expected = open_checkpoint(write_folder(tmp_path / "merged", config, merged))
    found = merge_adapter(open_checkpoint(base), folder)
    assert any("merged into" in note for note in found.notes)
    for each, weight in found.weights.items():
        np.testing.assert_allclose(
            weight.read_f32(), expected.weights[each].read_f32(), rtol=1e-6, atol=1e-7
        )


def test_into_a_gguf_file_whose_rows_lie_otherwise(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    base = kvant.convert(
        write_folder(tmp_path / "b", LLAMA, weights), tmp_path / "b.gguf", dtype="f32"
    )
    folder, merged = adapter(tmp_path / "lora", weights)
    expected = open_checkpoint(write_folder(tmp_path / "merged", LLAMA, merged))
    found = merge_adapter(open_checkpoint(base.paths[0]), folder)
    for each, weight in found.weights.items():
        np.testing.assert_allclose(
            weight.read_f32(), expected.weights[each].read_f32(), rtol=1e-6, atol=1e-7
        )


def test_quantised_as_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_weights(LLAMA)
    base = write_folder(tmp_path / "base", LLAMA, weights)
    folder, merged = adapter(tmp_path / "lora", weights)
    plain = write_folder(tmp_path / "merged", LLAMA, merged)
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    assert main(["quantize", str(base), "Q8_0", "--lora", str(folder), "-o", str(one)]) == 0
    assert "merged into 6 matrices" in "".join(capsys.readouterr())
    assert main(["quantize", str(plain), "Q8_0", "-o", str(two)]) == 0
    a, b = open_checkpoint(one), open_checkpoint(two)
    for name, weight in a.weights.items():
        np.testing.assert_allclose(
            weight.read_f32(), b.weights[name].read_f32(), rtol=1e-2, atol=1e-3
        )


def test_weights_that_are_saved_whole(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    base = write_folder(tmp_path / "base", LLAMA, weights)
    folder, _ = adapter(tmp_path / "lora", weights)
    head = np.ones((48, 32), np.float32)
    (folder / "adapter_model.safetensors").unlink()
    write_safetensors(
        folder / "adapter_model.safetensors", {"base_model.model.lm_head.weight": head}
    )
    found = merge_adapter(open_checkpoint(base), folder)
    assert np.array_equal(found.weights["output.weight"].read_f32(), head)


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, "'peft_type' should be \"LORA\""),
        ({"use_dora": True}, UnsupportedError, "'use_dora'"),
        ({"init_lora_weights": "pissa_niter_4"}, UnsupportedError, "'init_lora_weights'"),
        ({"lora_alpha": "much"}, FileFormatError, "'lora_alpha' should be a number"),
        ({"lora_alpha": None}, FileFormatError, "'lora_alpha' should be a number"),
    ],
)
def test_other_adapters_are_refused(
    tmp_path: Path, config: dict[str, Any], error: type[KvantError], says: str
) -> None:
    weights = random_weights(LLAMA)
    base = open_checkpoint(write_folder(tmp_path / "base", LLAMA, weights))
    folder, _ = adapter(tmp_path / "lora", weights)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    with pytest.raises(error, match=says):
        merge_adapter(base, folder)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"model.layers.9.self_attn.q_proj.lora_A.weight": (4, 32)}, "lora_A and lora_B"),
        (
            {
                "model.layers.9.self_attn.q_proj.lora_A.weight": (4, 32),
                "model.layers.9.self_attn.q_proj.lora_B.weight": (32, 4),
            },
            "belongs to another",
        ),
        (
            {
                "model.layers.0.self_attn.q_proj.lora_A.weight": (4, 33),
                "model.layers.0.self_attn.q_proj.lora_B.weight": (32, 4),
            },
            "belongs to another",
        ),
        (
            {
                "model.layers.0.self_attn.q_proj.lora_A.weight": (4, 32),
                "model.layers.0.self_attn.q_proj.lora_B.weight": (32, 5),
            },
            "belongs to another",
        ),
        ({"lm_head.weight": (3, 3)}, "belongs to another"),
    ],
)
def test_adapters_that_do_not_fit(
    tmp_path: Path, tensors: dict[str, tuple[int, int]], says: str
) -> None:
    weights = random_weights(LLAMA)
    base = open_checkpoint(write_folder(tmp_path / "base", LLAMA, weights))
    folder, _ = adapter(tmp_path / "lora", weights)
    made = {f"base_model.model.{n}": np.zeros(s, np.float32) for n, s in tensors.items()}
    (folder / "adapter_model.safetensors").unlink()
    write_safetensors(folder / "adapter_model.safetensors", made)
    with pytest.raises(FileFormatError, match=says):
        merge_adapter(base, folder)


def test_no_adapter_there(tmp_path: Path) -> None:
    base = open_checkpoint(write_folder(tmp_path / "base", LLAMA))
    with pytest.raises(InputError, match=r"got no adapter_config\.json"):
        merge_adapter(base, tmp_path)
