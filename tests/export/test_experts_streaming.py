"""Experts on their way to a file: gathered, in bounded memory, each with its own importance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.checkpoint import open_checkpoint
from kvant.errors import DataError
from kvant.export.gguf import stream as streaming
from kvant.export.gguf.stream import TensorJob, stream
from kvant.files.atomic import AtomicFile
from kvant.packing import get, quantize
from oracles.models import MIXTRAL, QWEN3MOE, make_folder, weights_of

NAME = "blk.0.ffn_gate_exps.weight"


@pytest.mark.parametrize("run_bytes", [1, 3000, 70_000, 1 << 21])
def test_importance_of_each_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_bytes: int
) -> None:
    """Whatever the cut into runs, every expert is as if it had been quantised alone."""
    monkeypatch.setattr(streaming, "RUN_BYTES", run_bytes)
    source = open_checkpoint(make_folder(tmp_path / "m", QWEN3MOE)).weights[NAME]
    experts, _, columns = source.shape
    importance = np.exp(np.random.default_rng(0).standard_normal((experts, columns)))
    importance = importance.astype(np.float32)
    target = get("Q4_K").storage
    with AtomicFile(tmp_path / "out") as file:
        job = TensorJob(NAME, source.stored, target, file, 0, None, importance)
        stream([job], threads=2)
        got = np.empty(job.rows * target.row_bytes(columns), np.uint8)
        with open(file.fd, "rb", closefd=False) as raw:
            raw.seek(0)
            got[:] = np.frombuffer(raw.read(), np.uint8)
    values = source.read_f32()
    expected = [quantize("Q4_K", values[e], importance[e]) for e in range(experts)]
    assert got.tobytes() == np.concatenate(expected).tobytes()


@pytest.mark.parametrize("config", [QWEN3MOE, MIXTRAL], ids=["qwen3moe", "mixtral"])
def test_shards_and_threads_make_no_difference(tmp_path: Path, config: dict[str, object]) -> None:
    files = []
    for shards, threads in ((1, 1), (3, 3)):
        folder = make_folder(tmp_path / f"m{shards}" / "M", config, dtype="BF16", shards=shards)
        (path,) = kvant.quantize(
            folder, "Q4_K_M", tmp_path / f"{shards}.gguf", threads=threads
        ).paths
        files.append(path.read_bytes())
        assert kvant.verify(path, folder).ok
    assert files[0] == files[1]


def test_nan_in_an_expert_names_the_stack(tmp_path: Path) -> None:
    weights = weights_of(QWEN3MOE)
    weights["model.layers.0.mlp.experts.2.gate_proj.weight"][7, 9] = np.nan
    folder = make_folder(tmp_path / "m", QWEN3MOE, weights)
    with pytest.raises(DataError, match=rf"{NAME} holds nan at \[{2 * 256 + 7}, 9\]"):
        kvant.quantize(folder, "Q4_K_M", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_routers_stay_in_single_precision(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", QWEN3MOE, dtype="BF16")
    for recipe in ("Q2_K", "Q8_0", "F16"):
        (path,) = kvant.quantize(
            folder, recipe, tmp_path / f"{recipe}.gguf", tensors=["ffn_gate=Q6_K"]
        ).paths
        stored = {n: w.stored.type.name for n, w in open_checkpoint(path).weights.items()}
        assert stored["blk.0.ffn_gate_inp.weight"] == "F32"
        assert stored[NAME] == "Q6_K"
