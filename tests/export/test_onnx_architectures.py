"""Every architecture as ONNX, run by onnxruntime, against the interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.arch import architecture_names
from kvant.checkpoint import open_checkpoint
from kvant.errors import UnsupportedError
from kvant.export.onnx.read import dequantised
from kvant.export.target import TargetOptions, find_target
from kvant.reference import ReferenceModel
from oracles import models, ort

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.parity

DECODERS: dict[str, dict[str, Any]] = {
    "llama": models.LLAMA,
    "mistral": models.MISTRAL,
    "qwen2": models.QWEN2,
    "qwen3": models.QWEN3,
    "phi3": models.PHI3,
    "gemma2": models.GEMMA2,
    "gemma3": models.GEMMA3,
    "gpt2": models.GPT2,
    "starcoder2": models.STARCODER2,
    "olmo2": models.OLMO2,
    "smollm3": models.SMOLLM3,
    "granite": models.GRANITE,
}
EXPERTS = {"mixtral": models.MIXTRAL, "qwen3moe": models.QWEN3MOE, "olmoe": models.OLMOE}
IDS = np.random.default_rng(0).integers(0, 380, (2, 60))
PIECES = [33, 1, 1, 25]
"""Longer than the windows of the models that have one (24), so that they are felt."""


def write(source: Path, out: Path, level: str | None = None, **options: Any) -> Path:
    settings = options.pop("settings", {})
    said = TargetOptions(threads=2, settings=settings, **options)
    find_target("onnx").write(open_checkpoint(source), out, level, said)
    return out


def test_every_architecture_is_tried() -> None:
    assert {*DECODERS, *EXPERTS, "bert"} == set(architecture_names())


@pytest.mark.parametrize("standard", [False, True], ids=["fused", "standard"])
@pytest.mark.parametrize("name", DECODERS)
def test_floats_agree_whole_and_in_pieces(name: str, standard: bool, tmp_path: Path) -> None:
    source = models.make_folder(tmp_path / "source", DECODERS[name])
    wanted = ReferenceModel(open_checkpoint(source)).forward(IDS)
    out = write(source, tmp_path / "out", settings={"standard_ops": standard})
    session = ort.session(out)
    assert ort.relative(ort.logits(session, IDS), wanted) < 1e-5
    assert ort.relative(ort.logits(session, IDS[:1], PIECES), wanted[:1]) < 1e-5
    out = write(source, tmp_path / "halves", dtype="float16", settings={"standard_ops": standard})
    # Halves of activations: the rows that Gemma adds up are long, and its caps here low.
    bound = 2e-3 if name.startswith("gemma") else 1e-3
    wanted = ReferenceModel(dequantised(open_checkpoint(source), out)).forward(IDS)
    assert ort.relative(ort.logits(ort.session(out), IDS), wanted) < bound


VARIANTS = {
    "llama3": {**models.LLAMA, "rope_scaling": models.LLAMA3_ROPE},
    "long": {
        **models.PHI3,
        "original_max_position_embeddings": 40,
        "rope_scaling": models.longrope(64),
    },
    "partial": {**models.PHI3, "partial_rotary_factor": 0.5},
    "narrow": {**models.LLAMA, "head_dim": 24},
    "bias": {
        **models.LLAMA,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("standard", [False, True], ids=["fused", "standard"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_ropes_and_biases(kind: str, standard: bool, tmp_path: Path) -> None:
    source = models.make_folder(tmp_path / "source", VARIANTS[kind])
    reference = ReferenceModel(open_checkpoint(source))
    out = write(source, tmp_path / "out", settings={"standard_ops": standard})
    session = ort.session(out)
    for length in (30, 60):  # with a long rope on either side of the bound
        wanted = reference.forward(IDS[:, :length])
        assert ort.relative(ort.logits(session, IDS[:, :length]), wanted) < 1e-5


@pytest.mark.parametrize("standard", [False, True], ids=["fused", "standard"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encoders_pool(pooling: str, standard: bool, tmp_path: Path) -> None:
    source = models.make_folder(tmp_path / "source", models.BERT)
    (source / "modules.json").write_text('[{"type": "x.Pooling", "path": "1_Pooling"}]')
    (source / "1_Pooling").mkdir()
    key = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    (source / "1_Pooling" / "config.json").write_text(f'{{"{key}": true}}')
    reference = ReferenceModel(open_checkpoint(source))
    out = write(source, tmp_path / "out", settings={"standard_ops": standard})
    lengths = (60, 41)
    mask = (np.arange(60) < np.array(lengths)[:, None]).astype(np.int64)
    feed = {"input_ids": IDS, "attention_mask": mask}
    states, vectors = ort.session(out).run(["last_hidden_state", "sentence_embedding"], feed)
    for i, length in enumerate(lengths):
        wanted = reference.forward(IDS[i : i + 1, :length])[0]
        assert ort.relative(states[i, :length], wanted) < 1e-5
        vector = wanted[0] if pooling == "cls" else wanted.mean(0)
        assert ort.relative(vectors[i], vector / np.linalg.norm(vector)) < 1e-5


@pytest.mark.parametrize("name", EXPERTS)
def test_mixtures_are_refused_before_anything_is_there(name: str, tmp_path: Path) -> None:
    source = models.make_folder(tmp_path / "source", EXPERTS[name])
    with pytest.raises(UnsupportedError, match=f"{name} is a mixture of experts.*--to gguf"):
        write(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
