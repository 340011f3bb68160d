"""What targets say before they work, and what their reports say of the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kvant
from checkpoint.small_models import CONFIGS, LLAMA, write_folder
from kvant.api import targets
from kvant.api.targets import write_target
from kvant.errors import FileFormatError, KvantError, OutputError


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("calibration began")

    monkeypatch.setattr(targets, "calibration_chunks", begun)


@pytest.mark.usefixtures("no_calibration")
@pytest.mark.parametrize(
    ("to", "level", "name", "words"),
    [
        ("mlx", "4bit", "bert", "no bert models"),
        ("mlx", "4bit", "llama", "fits no matrix"),
        ("vllm", "w4a16", "gpt2", "cannot be quantised for vLLM"),
        ("vllm", "w4a16", "llama", "fits no linear"),
        ("onnx", "int4", "mixtral", "mixture of experts"),
    ],
)
def test_refused_before_calibration(
    to: str, level: str, name: str, words: str, tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "source", CONFIGS[name])
    with pytest.raises(KvantError, match=words):
        write_target(source, to, level, tmp_path / "out", effort="balanced")


@pytest.mark.usefixtures("no_calibration")
def test_names_that_are_taken_are_refused_before_calibration(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="exists already"):
        write_target("demo", "mlx", "4bit", tmp_path / "out", effort="balanced")
    with pytest.raises(OutputError, match="more than a model"):
        write_target("demo", "mlx", "4bit", tmp_path / "out", effort="balanced", force=True)


@pytest.mark.parametrize(
    ("to", "level"), [("hf", None), ("mlx", "4bit-g32"), ("vllm", "w8a16"), ("onnx", "int8")]
)
def test_reports_name_what_was_left_aside(to: str, level: str | None, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", {**LLAMA, "use_cache": True})
    notes = write_target(source, to, level, tmp_path / "out").notes
    assert "Config keys without effect were ignored: use_cache." in notes
    (file,) = kvant.quantize("demo", "Q8_0", tmp_path / "demo.gguf", evidence=False).paths
    notes = write_target(file, to, level, tmp_path / "again").notes
    assert any("quantised" in note and "Q8_0" in note for note in notes)


def test_reports_name_what_is_rounded(tmp_path: Path) -> None:
    """Norms of 32 bits beside matrices of 16, as GGUF files have them."""
    (file,) = kvant.convert("demo", tmp_path / "demo.gguf", dtype="f16").paths
    for to, level in (("hf", None), ("mlx", "4bit"), ("vllm", "w8a16")):
        notes = write_target(file, to, level, tmp_path / to).notes
        wanted = "Weights stored as F32 are rounded to F16, which keeps fewer digits"
        assert any(wanted in note for note in notes)
        notes = write_target(file, to, level, tmp_path / f"{to}-all", dtype="f32").notes
        assert not any("rounded" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not JSON"), ("[1]", "JSON object"), ('{"top_k": NaN}', "NaN")]
)
def test_damaged_generation_config(text: str, words: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", LLAMA)
    (source / "generation_config.json").write_text(text)
    with pytest.raises(FileFormatError, match=f"generation_config.json: .*{words}"):
        write_target(source, "onnx", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stated", "ends"), [([], None), ("x", None), ([1, 2, 999], [1, 2]), ([7], 7), (True, None)]
)
def test_odd_ends_of_texts(stated: object, ends: object, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", LLAMA)
    said = {"eos_token_id": stated, "top_k": True, "temperature": 0.5}
    (source / "generation_config.json").write_text(json.dumps(said))
    write_target(source, "onnx", None, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert made["model"].get("eos_token_id") == ends
    assert made["search"]["temperature"] == 0.5
    assert "top_k" not in made["search"]


@pytest.mark.parametrize(
    ("name", "level", "kept"),
    [("granite", "4bit-g32", "8bit-g32"), ("granite", "nvfp4", "nvfp4")],
)
def test_mlx_modules_with_a_level_of_their_own(
    name: str, level: str, kept: str, tmp_path: Path
) -> None:
    """Where groups of 64, which mlx-lm asks for, do not divide the rows."""
    width = 96 if kept == "8bit-g32" else 80
    sizes = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": 2}
    source = write_folder(tmp_path / "source", {**CONFIGS[name], **sizes})
    artefact = write_target(source, "mlx", level, tmp_path / "out")
    levels = {t.name: t.packing for t in artefact.tensors}
    assert levels["blk.0.attn_output.weight"] == levels["blk.1.ffn_down.weight"] == kept
    assert levels["blk.0.attn_q.weight"] == level
