"""Runtimes of others against kvant's reading of the same files, and the protocols they keep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.api.runtime_check import check_runtime
from kvant.errors import ContextError, InputError, UsageError
from kvant.reference import ReferenceModel
from kvant.runtimes import StepRunner, open_artefact, run_artefact, stepping
from oracles.models import LLAMA, make_folder

pytestmark = pytest.mark.parity

RUNTIMES = {
    "onnx": ("onnxruntime", "onnx", "f32", "int4"),
    "onnx half": ("onnxruntime", "onnx", "f16", "int8"),
    "mlx": ("mlx", "mlx", "f32", "4bit"),
    "gguf": ("llama.cpp", "gguf", "f32", "Q4_K_M"),
}
_PACKAGES = {"onnxruntime": "onnxruntime", "mlx": "mlx_lm", "llama.cpp": "xllamacpp"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("runtimes") / "Tiny", LLAMA)


@pytest.fixture(scope="module", params=sorted(RUNTIMES))
def written(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """Runner, a model of floats, a quantised one."""
    runner, to, dtype, level = RUNTIMES[request.param]
    pytest.importorskip(_PACKAGES[runner])
    folder = tmp_path_factory.mktemp("written")
    floats, quantised = folder / f"floats{'.gguf' * (to == 'gguf')}", folder / "quantised"
    if to == "gguf":
        quantised = folder / "quantised.gguf"
        kvant.quantize(source, dtype.upper(), floats)
        kvant.quantize(source, level, quantised)
    else:
        kvant.convert(source, floats, to=to, dtype=dtype)
        kvant.quantize(source, level, quantised, to=to)
    return runner, floats, quantised


def runner_of(path: Path, name: str, context: int) -> StepRunner:
    found = run_artefact(open_artefact(path), name, threads=2, context=context, sequences=2)
    assert isinstance(found, StepRunner)
    return found


def matrix(runner: StepRunner | ReferenceModel, tokens: np.ndarray, first_row: int) -> np.ndarray:
    """All logits, after a check that tiles come as the protocol says."""
    out = np.full((*tokens.shape, runner.vocab_size), np.nan, np.float32)
    expected = (0, first_row)
    for sequence, row, tile in runner.logits(tokens, first_row=first_row):
        assert (sequence, row) == expected
        assert tile.dtype == np.float32
        out[sequence, row : row + len(tile)] = tile
        end = row + len(tile) == tokens.shape[1]
        expected = (sequence + 1, first_row) if end else (sequence, row + len(tile))
    assert expected == (len(tokens), first_row)
    return out[:, first_row:]


def tokens_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 384, shape).astype(np.int32)


def test_floats_and_codes_mean_the_same(written: tuple[str, Path, Path]) -> None:
    """The bars of the format: logits within 1e-3, divergence below 1e-3."""
    name, floats, quantised = written
    exact = check_runtime(floats, context=48, chunks=2)
    assert exact.ok, exact
    assert exact.measure == "relative"
    assert exact.runtime.startswith(name.split(".")[0])
    coarse = check_runtime(quantised, context=32, chunks=2)
    assert coarse.ok, coarse
    assert coarse.measure == "kld"
    assert coarse.tokens == 2 * 31


@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("first_row", [0, 17])
def test_chunks_change_nothing(
    written: tuple[str, Path, Path], chunk: int, first_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, floats, _ = written
    monkeypatch.setattr(stepping, "_CHUNK", chunk)
    tokens = tokens_of(2, 23)
    checkpoint = open_artefact(floats).checkpoint
    assert checkpoint is not None
    expected = matrix(ReferenceModel(checkpoint), tokens, first_row)
    found = matrix(runner_of(floats, name, 32), tokens, first_row)
    assert np.linalg.norm(found - expected) < 5e-3 * np.linalg.norm(expected)


def test_sequences_step_forget_and_go_on(written: tuple[str, Path, Path]) -> None:
    name, floats, _ = written
    runner = runner_of(floats, name, 64)
    tokens = tokens_of(2, 20)
    first, second = runner.sequence(), runner.sequence()
    empty = runner.step([(first, tokens[0, :12]), (second, tokens[1, :12])], logits="none")
    assert empty.shape == (0, 384)
    once = runner.step([(first, tokens[0, 12:13]), (second, tokens[1, 12:13])], logits="last")
    first.truncate(12)
    second.truncate(12)
    again = runner.step([(first, tokens[0, 12:13]), (second, tokens[1, 12:13])], logits="last")
    alone = matrix(runner_of(floats, name, 64), tokens[:, :13], 12)[:, 0]
    scale = np.linalg.norm(alone)
    assert np.linalg.norm(again - once) < 2e-3 * scale
    assert np.linalg.norm(once - alone) < 2e-3 * scale
    first.free()
    second.free()


def test_ids_and_lengths_are_checked(written: tuple[str, Path, Path]) -> None:
    name, floats, _ = written
    runner = runner_of(floats, name, 16)
    with pytest.raises(UsageError, match="Token ids should be from 0 to 383"):
        next(runner.logits(np.full((1, 4), 384, np.int32)))
    if name != "mlx":  # its cache grows
        with pytest.raises(ContextError):
            next(runner.logits(tokens_of(1, 17)))


def test_a_runtime_that_refuses(tmp_path: Path, written: tuple[str, Path, Path]) -> None:
    name, floats, _ = written
    artefact = open_artefact(floats)
    broken = tmp_path / floats.name
    if floats.is_dir():
        broken.mkdir()
        for path in floats.iterdir():
            (broken / path.name).write_bytes(path.read_bytes())
        graph = broken / ("model.onnx" if name == "onnxruntime" else "model.safetensors")
        graph.write_bytes(graph.read_bytes()[:3000])
    else:
        broken.write_bytes(floats.read_bytes()[:3000])
    object.__setattr__(artefact, "path", broken)
    with pytest.raises(InputError, match="does not load it"):
        run_artefact(artefact, name, threads=1, context=16)  # type: ignore[arg-type]


def test_one_table_over_all_formats(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    models = [tmp_path / "q.gguf", tmp_path / "onnx", tmp_path / "mlx", tmp_path / "vllm"]
    kvant.quantize(source, "Q4_K_M", models[0])
    for to, level in (("onnx", "int4"), ("mlx", "4bit"), ("vllm", "w4a16-g64")):
        kvant.quantize(source, level, tmp_path / to, to=to)
    base, *found = kvant.evaluate(models, source, context=64, chunks=34, runner={"mlx": "native"})
    assert [r.format for r in (base, *found)] == ["hf", "gguf", "onnx", "mlx", "vllm"]
    assert [r.runtime.split()[0].strip(",") for r in found if r.runtime is not None] == [
        "native",
        "onnxruntime",
        "native",
        "native",
    ]
    assert all(r.kld is not None and 0 < r.kld < 0.1 for r in found)
    assert all(r.read_rate is not None and r.read_rate > 0 for r in (base, *found))
    assert {r.corpus for r in (base, *found)} == {base.corpus}


def test_other_tokenizers_are_refused(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    kvant.convert(source, tmp_path / "onnx", to="onnx", dtype="f32")
    file = tmp_path / "onnx" / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["merges"] = values["model"]["merges"][::-1]
    file.write_text(json.dumps(values))
    with pytest.raises(UsageError, match="of the same text, token"):
        kvant.evaluate(tmp_path / "onnx", source, context=64, chunks=2)
