"""Hugging Face folders out of any source, as transformers loads them; all roads between formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from checkpoint.small_models import CONFIGS, write_folder, write_gguf
from kvant.api.targets import write_target
from kvant.arch import find_hf
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.errors import DataError, OutputError
from kvant.export.tensors import FloatTensor
from kvant.export.work import Job
from kvant.files.safetensors import read_folder
from kvant.reference import ReferenceModel
from oracles.models import (
    GEMMA2,
    LLAMA,
    LLAMA3_ROPE,
    PHI3,
    QWEN2,
    longrope,
    make_folder,
    weights_of,
)

LONG_PHI3 = {
    **{**PHI3, "original_max_position_embeddings": 64, "pad_token_id": None},
    "rope_scaling": longrope(PHI3["hidden_size"] // PHI3["num_attention_heads"]),
}
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], np.int32)


def our_logits(folder: Path) -> np.ndarray:
    """The interpreter's, over what the folder's tensors decode to."""
    found: np.ndarray = ReferenceModel(open_checkpoint(folder)).forward(TOKENS[None])[0]
    return found


def their_logits(folder: Path) -> np.ndarray:
    """transformers'."""
    torch = pytest.importorskip("torch")
    auto = pytest.importorskip("transformers").AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor(TOKENS[None].astype(np.int64))).logits[0].numpy()
    return found


def weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: weight.read_f32() for name, weight in checkpoint.weights.items()}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_there_and_back(tmp_path: Path, name: str) -> None:
    """A folder, its GGUF file, and the folder made of that: the same config and weights."""
    source = open_checkpoint(write_folder(tmp_path / "source", CONFIGS[name]))
    file = write_gguf(tmp_path / "model.gguf", source)
    write_target(file, "hf", None, tmp_path / "out")
    back = open_checkpoint(tmp_path / "out")
    assert back.architecture.name == source.architecture.name
    for key, value in vars(source.config).items():
        assert getattr(back.config, key) == value or isinstance(value, float), key
    expected = weights(source)
    for key, values in weights(back).items():
        gain = 2.0**-23 if name.startswith("gemma") and "norm" in key else 0
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=gain, err_msg=key)
    stored = read_folder(tmp_path / "out").tensors
    assert sorted(stored) == sorted(read_folder(tmp_path / "source").tensors)


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "rope_scaling": LLAMA3_ROPE},
        {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        LONG_PHI3,
        QWEN2,
        GEMMA2,
    ],
    ids=["llama3", "linear", "longrope", "biases", "gemma2"],
)
def test_transformers_computes_what_the_gguf_file_does(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    source = make_folder(tmp_path / "source", config, dtype="F32")
    (file,) = kvant.convert(source, tmp_path / "model.gguf", dtype="f32").paths
    kvant.convert(file, tmp_path / "out", to="hf")
    expected = their_logits(source)
    assert np.abs(their_logits(tmp_path / "out") - expected).max() < 1e-4 * np.abs(expected).max()


def test_rope_factors_that_no_config_says(tmp_path: Path) -> None:
    odd = {**LLAMA3_ROPE, "low_freq_factor": 1.37}
    source = make_folder(tmp_path / "source", {**LLAMA, "rope_scaling": odd}, dtype="F32")
    (file,) = kvant.convert(source, tmp_path / "model.gguf").paths
    with pytest.raises(kvant.KvantError, match="no parameters of Llama 3's"):
        kvant.convert(file, tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (file,) = kvant.convert("demo", tmp_path, dtype="bf16").paths
    kvant.convert(file, tmp_path / "out", to="hf")
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    from kvant.builtin import demo_path

    theirs = transformers.AutoTokenizer.from_pretrained(demo_path())
    text = "Once upon a time, there were 3 <|im_start|>dragons…"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    chat = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(
        chat, tokenize=False
    )
    assert ours.eos_token == theirs.eos_token
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["eos_token_id"] == 4093


@pytest.mark.parametrize("to", ["float32", "float16", "bfloat16"])
def test_dtypes(tmp_path: Path, to: str) -> None:
    kvant.convert("demo", tmp_path / "out", to="hf", dtype=to)
    kinds = {t.type.name for t in read_folder(tmp_path / "out").tensors.values()}
    assert kinds == {{"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[to]}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == to


def test_numbers_a_dtype_cannot_hold(tmp_path: Path) -> None:
    values = weights_of(LLAMA)
    values["model.norm.weight"][7] = 1e6
    source = make_folder(tmp_path / "big", LLAMA, values, dtype="BF16")
    with pytest.raises(DataError, match=r"output_norm.weight has the weight .* --dtype bfloat16"):
        kvant.convert(source, tmp_path / "out", to="hf", dtype="f16")
    values["model.norm.weight"][7] = np.nan
    source = make_folder(tmp_path / "nan", LLAMA, values, dtype="F32")
    for level, to in ((None, "hf"), ("4bit", "mlx"), ("w8a8", "vllm")):
        with pytest.raises(DataError, match="nan"):
            write_target(source, to, level, tmp_path / "out")
    values = weights_of(LLAMA)
    values["model.layers.1.mlp.up_proj.weight"][3, 5] = np.inf
    source = make_folder(tmp_path / "inf", LLAMA, values, dtype="F32")
    for level, to in ((None, "hf"), ("4bit", "mlx"), ("w8a8", "vllm")):
        with pytest.raises(DataError, match="inf"):
            write_target(source, to, level, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_roads(tmp_path: Path) -> None:
    """HF, MLX, vLLM, GGUF in turns: each step says what was lost before it."""
    kvant.quantize("demo", "8bit", tmp_path / "mlx", to="mlx")
    kvant.quantize(tmp_path / "mlx", "w8a16", tmp_path / "vllm", to="vllm")
    kvant.quantize(tmp_path / "vllm", "Q8_0", tmp_path / "model.gguf", evidence=False)
    last = kvant.convert(tmp_path / "model.gguf", tmp_path / "hf", to="hf")
    assert any("Verified" in note for note in last.notes)
    (result,) = kvant.evaluate([tmp_path / "hf"], "demo", chunks=8)[1:]
    assert result.kld is not None
    assert result.kld < 2e-3


def test_what_does_not_read_back_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FloatTensor.job

    def broken(self: FloatTensor, sink: Any) -> Any:
        job = whole(self, sink)
        if self.piece.name.endswith("layers.1.self_attn.k_proj.weight"):
            return Job(job.piece, lambda fd, start, stop: None)
        return job

    monkeypatch.setattr(FloatTensor, "job", broken)
    with pytest.raises(OutputError, match=r"blk.1.attn_k.weight differs from the source"):
        kvant.convert("demo", tmp_path / "out", to="hf")
    assert not list(tmp_path.iterdir())
    artefact = kvant.convert("demo", tmp_path / "out", to="hf", verify=False)
    assert not any("Verified" in note for note in artefact.notes)


def test_the_source_is_not_replaced(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", LLAMA)
    with pytest.raises(OutputError, match="is the source itself"):
        kvant.convert(source, source, to="hf", force=True)
    assert find_hf(json.loads((source / "config.json").read_text()), "").name == "llama"
