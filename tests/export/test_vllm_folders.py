"""vLLM's folders as transformers and compressed-tensors load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from checkpoint.small_models import CONFIGS, write_folder
from export.test_hf_folders import our_logits, their_logits
from kvant.api.targets import write_target
from kvant.checkpoint import open_checkpoint
from kvant.errors import UnsupportedError, UsageError
from kvant.export.vllm.levels import SCHEMES
from oracles.models import LLAMA, make_folder

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")


@pytest.mark.parametrize("level", list(SCHEMES))
def test_transformers_computes_what_we_do(tmp_path: Path, level: str) -> None:
    source = make_folder(tmp_path / "source", LLAMA, dtype="BF16")
    artefact = write_target(source, "vllm", level, tmp_path / "out", dtype="f32")
    assert {t.packing for t in artefact.tensors} == {"F32", level}
    if SCHEMES[level].activations:
        weights_agree(tmp_path / "out")  # inputs are rounded, too, when it runs
        return
    if not SCHEMES[level].symmetric:
        # transformers 5.24 with compressed-tensors 0.20 loads no packed zero points, not even
        # llm-compressor's: the library decompresses each layer itself.
        layers_agree(tmp_path / "out")
        return
    theirs, ours = their_logits(tmp_path / "out"), our_logits(tmp_path / "out")
    assert np.abs(theirs - ours).max() < 1e-4 * np.abs(ours).max()


def weights_agree(folder: Path) -> None:
    """Every weight as compressed-tensors decompresses it."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    plain = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=plain
    )
    state = {n: p.detach().float().numpy() for n, p in model.named_parameters()}
    checkpoint = open_checkpoint(folder)
    for weight in checkpoint.weights.values():
        name = weight.stored.name
        np.testing.assert_array_equal(state[name], weight.read_f32(), err_msg=name)


def layers_agree(folder: Path) -> None:
    """Every quantised weight as compressed-tensors decompresses its tensors."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(said).config_groups["group_0"]
    count = 0
    for weight in open_checkpoint(folder).weights.values():
        path = weight.stored.name.removesuffix(".weight")
        if f"{path}.weight_packed" not in tensors:
            continue
        own = {n.removeprefix(f"{path}."): t for n, t in tensors.items() if n.startswith(path)}
        found = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
        np.testing.assert_array_equal(found.float().numpy(), weight.read_f32(), err_msg=path)
        count += 1
    assert count == 14


def test_what_config_json_says(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {**CONFIGS["qwen3moe"], "hidden_size": 64})
    with pytest.raises(UsageError, match=r"stored alike, got .*attn_k\.weight=float"):
        kvant.quantize(source, "w4a16-g32", tmp_path / "out", to="vllm", tensors=["attn_k=float"])
    artefact = kvant.quantize(
        source,
        "w4a16-g32",
        tmp_path / "out",
        to="vllm",
        tensors=["attn_[qkv]=w8a16", "blk.1.attn_output=float"],
    )
    (joined,) = [note for note in artefact.notes if "refuses to load different levels" in note]
    assert "blk.0.ffn_down_exps.weight, blk.0.ffn_gate_exps.weight" in joined
    said: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
    config = said["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    usual = config["config_groups"]["group_0"]
    assert usual["targets"] == ["Linear"]
    assert usual["weights"]["num_bits"] == 4
    assert usual["weights"]["group_size"] == 32
    assert usual["input_activations"] is None
    other = config["config_groups"]["group_1"]
    assert other["weights"]["strategy"] == "channel"
    names = [
        rf"re:^model\.layers\.{i}\.self_attn\.{part}$"
        for i in range(2)
        for part in ("qkv_proj", "q_proj", "k_proj", "v_proj")
    ]
    assert sorted(other["targets"]) == sorted(names)
    assert config["ignore"][0] == "lm_head"
    assert "model.layers.0.mlp.gate" in config["ignore"]
    assert "model.layers.1.self_attn.o_proj" in config["ignore"]
    # Rows of experts' down projections have 48 weights.
    assert "model.layers.0.mlp.experts.3.down_proj" in config["ignore"]
    model = open_checkpoint(tmp_path / "out")
    assert model.weights["blk.0.attn_v.weight"].stored.stored_as == "compressed-tensors 8 bits"
    assert model.weights["blk.0.attn_output.weight"].stored.stored_as == "compressed-tensors 4 bits"


def test_mixtures_for_a_budget(tmp_path: Path) -> None:
    """transformers, which knows nothing of fused linears, computes them as well."""
    source = make_folder(tmp_path / "source", {**LLAMA, "num_hidden_layers": 4}, dtype="BF16")
    ends = [
        write_target(source, "vllm", level, dtype="f32", dry_run=True).bits_per_weight
        for level in ("w4a16-g32", "w8a16")
    ]
    found = kvant.quantize(
        *(source, None, tmp_path / "out"),
        to="vllm",
        bpw=sum(ends) / 2,
        effort="fast",
        dtype="f32",
    )
    assert len({t.packing for t in found.tensors}) > 2
    theirs, ours = their_logits(tmp_path / "out"), our_logits(tmp_path / "out")
    assert np.abs(theirs - ours).max() < 1e-4 * np.abs(ours).max()


def test_models_without_linears_are_refused(tmp_path: Path) -> None:
    for name in ("gpt2", "bert"):
        source = write_folder(tmp_path / name, CONFIGS[name])
        with pytest.raises(UnsupportedError, match="unquantised"):
            write_target(source, "vllm", "w8a8", tmp_path / "out")
        write_target(source, "vllm", None, tmp_path / f"{name}-floats")


def test_effort_loses_less(tmp_path: Path) -> None:
    kvant.quantize("demo", "w4a16", tmp_path / "plain", to="vllm")
    kvant.quantize("demo", "w4a16", tmp_path / "better", to="vllm", effort="balanced", tokens=4096)
    folders = [tmp_path / "plain", tmp_path / "better"]
    losses = [r.kld or 0 for r in kvant.evaluate(folders, "demo", chunks=8)[1:]]
    assert losses[1] < 0.6 * losses[0]
