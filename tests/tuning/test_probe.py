"""What a replacement costs: the same as a whole model that has it, measured the plain way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvant.calibration import Chunks, collect_importance
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import load_engine
from kvant.export.gguf.plan import plan_export
from kvant.export.gguf.write import write_plan
from kvant.packing import dequantize, quantize
from kvant.quant.recipe import Recipe
from kvant.quant.weighting import BY_SIZE
from kvant.tuning.candidates import candidates, choose_packings
from kvant.tuning.probe import Probe, Replacement, chunks_of
from kvant.tuning.rounding import packed_rows, relative_errors
from oracles.models import LLAMA, QWEN3, make_folder

TIED = {**QWEN3, "tie_word_embeddings": True, "num_hidden_layers": 3}
CHUNKS = np.random.default_rng(0).integers(0, 380, (5, 96)).astype(np.int32)
UNSCORED = 48  # half of so short a chunk


@pytest.fixture(scope="module", params=["llama", "tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("probe") / "m"
    config = {"llama": LLAMA, "tied": TIED}[request.param]
    return open_checkpoint(make_folder(folder, config, dtype="BF16"))


def logits(source: Checkpoint) -> np.ndarray:
    engine = load_engine(source, threads=2, kv_tokens=1024)
    rows = []
    for chunk in CHUNKS:
        with engine.sequence() as sequence:
            rows.append(engine.step([(sequence, chunk)], logits="all")[UNSCORED:])
    return np.stack(rows).astype(np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(base: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean of each chunk."""
    p, q = log_softmax(base), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(-1).mean(-1)


def variant(source: Checkpoint, tensors: dict[str, str], path: Path) -> Checkpoint:
    recipe = Recipe("own", "BF16", "", 32, "full", tensors=tensors)
    write_plan(plan_export(source, recipe), path, threads=2, force=True)
    return open_checkpoint(path)


def test_as_whole_models(source: Checkpoint, tmp_path: Path) -> None:
    """Single tensors of each kind, and groups over several layers, in any order."""
    last = source.config.num_hidden_layers - 1
    head = "output.weight" if "output.weight" in source.weights else "token_embd.weight"
    replacements = [
        {head: "Q3_K"},
        {f"blk.{last}.ffn_down.weight": "Q2_K"},
        {"token_embd.weight": "Q2_K"},
        {"blk.0.attn_k.weight": "Q3_K"},
        {"blk.1.ffn_up.weight": "Q4_0", "blk.0.attn_v.weight": "Q2_K", head: "Q4_K"},
    ]
    probe = Probe(source, load_engine(source, threads=2, kv_tokens=1024), CHUNKS)
    steps: list[tuple[int, int]] = []
    found = probe.measure(
        [Replacement(r) for r in replacements],
        lambda name, packing: packed_rows(source.weights[name], packing, None, threads=2),
        progress=lambda done, total: steps.append((done, total)),
    )
    base = logits(source)
    for row, tensors in zip(found, replacements, strict=True):
        want = divergence(base, logits(variant(source, tensors, tmp_path / "v.gguf")))
        assert want.min() > 1e-5
        np.testing.assert_allclose(row, want, rtol=1e-3, atol=1e-8)
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_the_model_is_as_before(source: Checkpoint) -> None:
    engine = load_engine(source, threads=2, kv_tokens=1024)
    free = engine.kv.free_blocks
    probe = Probe(source, engine, CHUNKS)

    def rows(name: str, packing: str) -> np.ndarray:
        return packed_rows(source.weights[name], packing, None, threads=1)

    one = Replacement({"blk.0.ffn_gate.weight": "Q2_K"})
    first = probe.measure([one], rows)
    again = probe.measure([Replacement({"blk.1.ffn_gate.weight": "Q2_K"}), one], rows)
    assert np.array_equal(again[1], first[0])
    assert engine.kv.free_blocks == free
    same = probe.measure([Replacement({"blk.0.ffn_gate.weight": "BF16"})], rows)
    assert np.all(same < 1e-7)


def test_rounding_is_what_numpy_computes(source: Checkpoint) -> None:
    weight = source.weights["blk.0.attn_q.weight"]
    importance = np.random.default_rng(1).uniform(0.1, 2, 256).astype(np.float32)
    packings = candidates(256, "BF16", choose_packings())
    found = relative_errors(weight, packings, importance, threads=2)
    w = weight.read_f32().astype(np.float64)
    for packing in packings:
        packed = packed_rows(weight, packing, importance, threads=2)
        if packing not in BY_SIZE:
            assert np.array_equal(packed, quantize(packing, w.astype(np.float32), importance))
        error = ((w - dequantize(packing, packed)) ** 2 * importance).sum()
        assert found[packing] == pytest.approx(error / (w**2 * importance).sum(), rel=1e-9)
    assert found["BF16"] == 0
    assert found["Q2_K"] > found["Q3_K"] > found["Q4_K"] > found["Q6_K"] > found["Q8_0"] > 0


def test_chunks_come_from_all_over_the_text() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    assert chunks_of(tokens, 3, 100)[:, 0].tolist() == [0, 400, 900]
    assert chunks_of(tokens, 50, 100).shape == (10, 100)
    assert chunks_of(tokens, 1, 100)[0, 0] == 0


def test_candidates() -> None:
    fast = choose_packings()
    assert candidates(256, "BF16", fast)[:3] == ("Q2_K", "Q3_K", "IQ4_XS")
    assert candidates(256, "BF16", fast)[-1] == "BF16"
    narrow = {"IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F32"}
    assert set(candidates(96, "F32", fast)) == narrow
    assert candidates(40, "F16", fast) == ("F16",)
    assert candidates(256, "Q4_K", fast)[-1] == "Q4_K"
    assert "Q8_0" not in candidates(256, "Q4_K", fast)
    assert [p.name for p in choose_packings(("q4_k", "Q6_K"))] == ["Q4_K", "Q6_K"]
    assert set(choose_packings()) <= set(choose_packings(("all",)))


def test_packed_rows_are_those_of_a_file(source: Checkpoint, tmp_path: Path) -> None:
    """With importance, whatever weighs errors on the way."""
    names = [n for n, w in source.weights.items() if len(w.shape) == 2 and "blk.0" in n]
    chunk = CHUNKS.reshape(-1)[:480].reshape(5, 96)
    importance = collect_importance(source, Chunks(chunk, ()), threads=2)
    for packing in ("Q2_K", "Q3_K", "Q4_K", "Q8_0"):
        recipe = Recipe("own", "BF16", "", 32, "full", tensors=dict.fromkeys(names, packing))
        path = tmp_path / "a.gguf"
        plan = plan_export(source, recipe, importance=importance)
        write_plan(plan, path, threads=2, force=True)
        written = open_checkpoint(path)
        for name in names:
            with written.weights[name].open() as fd:
                rows = written.weights[name].read_rows(fd, 0, written.weights[name].stored.rows)
            known = importance.for_tensor(name)
            assert np.array_equal(
                packed_rows(source.weights[name], packing, known, threads=2), rows
            )
