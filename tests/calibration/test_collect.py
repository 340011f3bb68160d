"""Importance as the engine collects it, next to NumPy's own forward pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kvant.calibration import Chunks, Text, importance_bytes, model_fingerprint
from kvant.calibration import collect as collecting
from kvant.calibration.collect import collect_importance
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import Engine
from kvant.engine.session import Inputs
from kvant.errors import DataError, NotEnoughMemoryError
from kvant.graph.ir import WeightRef
from kvant.graph.ops import Linear, run
from kvant.reference.interpret import Interpreter
from oracles.models import LLAMA, QWEN3, make_folder, weights_of

IDS = np.random.default_rng(8).integers(0, 384, (9, 128)).astype(np.int32)
CHUNKS = Chunks(IDS, (Text("a", 1.0, 600), Text("b", 1.0, 552)))


@pytest.fixture(scope="module", params=["llama", "qwen3-tied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    config = LLAMA if request.param == "llama" else {**QWEN3, "tie_word_embeddings": True}
    folder = tmp_path_factory.mktemp("collect") / "m"
    return open_checkpoint(make_folder(folder, config, dtype="BF16", tokenizer=False))


def test_mean_squares_are_numpys(source: Checkpoint) -> None:
    found = collect_importance(source, CHUNKS, threads=2)

    def weight(ref: WeightRef) -> np.ndarray:
        return source.weights[ref.name].read_f32()

    judge = Interpreter(weight, lambda ref, ids: weight(ref)[ids])
    linears = [n for n in source.graph.nodes if isinstance(n.op, Linear)]
    assert set(found.sums) == {n.op.weights[0].name for n in linears}
    for node in linears:
        name = node.op.weights[0].name
        x = run(source.graph, judge, IDS, until=node.inputs[0])
        want = np.square(x.astype(np.float64)).mean((0, 1))
        got = found.moments[name]
        assert np.linalg.norm(got - want) < 5e-3 * np.linalg.norm(want), name
        assert found.counts[name] == IDS.size
    assert (found.chunk, found.chunks) == (128, 9)
    assert found.datasets == ("a", "b")
    assert found.model == model_fingerprint(source)
    assert found.corpus == CHUNKS.digest


def test_the_same_bytes_however_it_is_done(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = importance_bytes(collect_importance(source, CHUNKS, threads=1))
    assert importance_bytes(collect_importance(source, CHUNKS, threads=3)) == want
    replaced: list[int] = []
    real = collecting._layer_weights

    def counted(checkpoint: Checkpoint, engine: Engine, layer: int) -> object:
        replaced.append(layer)
        return real(checkpoint, engine, layer)

    monkeypatch.setattr(collecting, "_layer_weights", counted)
    # Less than the model takes: one layer at a time, and hidden states in a scratch file.
    _, resident = collecting._load(source, 512, 1, 1 << 40)
    assert resident
    limit = 1 << 20
    while True:
        try:
            engine, resident = collecting._load(source, 512, 1, limit)
            break
        except NotEnoughMemoryError:
            limit += 1 << 18
    assert not resident
    assert limit < engine.memory.total + source.parameters * 2
    done: list[tuple[int, int]] = []
    found = collect_importance(
        source,
        CHUNKS,
        threads=1,
        max_memory=limit,
        scratch=tmp_path,
        progress=lambda *p: done.append(p),
    )
    assert replaced == [0, 1]
    assert importance_bytes(found) == want
    assert not list(tmp_path.iterdir())
    assert done[-1] == (IDS.size * 3, IDS.size * 3)
    assert [d for d, _ in done] == sorted({d for d, _ in done})


def test_too_little_memory_says_how_much(source: Checkpoint) -> None:
    with pytest.raises(NotEnoughMemoryError, match="MB"):
        collect_importance(source, CHUNKS, max_memory=1 << 20)


def test_activations_that_overflow(tmp_path: Path) -> None:
    weights = weights_of(LLAMA)
    weights["model.layers.1.mlp.up_proj.weight"] *= np.float32(1e30)
    source = open_checkpoint(make_folder(tmp_path / "m", LLAMA, weights, tokenizer=False))
    with pytest.raises(DataError, match=r"blk\.1\.ffn_down\.weight' is NaN or infinite in column"):
        collect_importance(source, CHUNKS)


def test_experts_by_themselves() -> None:
    """Gate and up read a token's row for all of its experts; down, a row for each of them."""
    up, down, plain = "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.a.weight"
    shapes = {up: (4, 6, 8), down: (4, 8, 6), plain: (6, 8)}
    source = SimpleNamespace(weights={n: SimpleNamespace(shape=s) for n, s in shapes.items()})
    rng = np.random.default_rng(2)
    gathered = collecting._Gathered(source)  # type: ignore[arg-type]
    rows, want = [], np.zeros((4, 8))
    for tokens in (5, 3):
        x = rng.standard_normal((tokens, 8)).astype(np.float32)
        inner = rng.standard_normal((tokens * 2, 6)).astype(np.float32)
        chosen = np.stack([rng.permutation(3)[:2] for _ in range(tokens)]).astype(np.int32)
        batch = Inputs()
        batch.update({up: x, down: inner, plain: x})
        batch.experts = {up: chosen, down: chosen.reshape(-1, 1)}
        gathered.add(batch)
        rows.append((x, inner, chosen))
        for token, pair in enumerate(chosen):
            for expert in pair:
                want[expert] += x[token].astype(float) ** 2
    gathered.share({up: [up, "blk.0.ffn_gate_exps.weight"], down: [down], plain: [plain]})
    np.testing.assert_allclose(gathered.sums[up], want, rtol=1e-5)
    assert gathered.sums["blk.0.ffn_gate_exps.weight"] is gathered.sums[up]
    counts = sum(np.bincount(c.reshape(-1), minlength=4) for _, _, c in rows)
    assert gathered.seen[up].tolist() == gathered.seen[down].tolist() == counts.tolist()
    assert counts[3] == 0
    np.testing.assert_allclose(
        gathered.sums[down].sum(0), sum(np.square(i).sum(0) for _, i, _ in rows), rtol=1e-5
    )
    assert gathered.sums[plain].shape == (8,)
    assert gathered.seen[plain].tolist() == [8]
