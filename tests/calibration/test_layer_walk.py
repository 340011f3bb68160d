"""Layer by layer: the inputs are those of a plain forward pass, and the end is the engine's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kvant import _core
from kvant.calibration import LayerWalk
from kvant.calibration.states import States
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import Engine, load_engine
from kvant.errors import CacheFullError, ContextError, OutputError, UsageError
from kvant.graph.ir import WeightRef
from kvant.graph.ops import Linear, run
from kvant.packing import get, quantize
from kvant.reference.interpret import Interpreter
from oracles.models import LLAMA, QWEN2, QWEN3, make_folder

SMALL = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 288}
MODELS = {
    "llama": LLAMA,
    "qwen2-tied": {**QWEN2, **SMALL, "tie_word_embeddings": True},
    "qwen3": {**QWEN3, **SMALL},
}
LENGTHS = (50, 7, 40, 1, 63, 20, 33)
CHUNKS = [np.random.default_rng(n).integers(0, 280, n) for n in LENGTHS]


@pytest.fixture(scope="module", params=list(MODELS))
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Engine]:
    folder = tmp_path_factory.mktemp("walk") / request.param
    source = open_checkpoint(make_folder(folder, MODELS[request.param], tokenizer=False))
    # Steps of 48 tokens: some chunks share one, some take more than one.
    return source, load_engine(source, threads=2, kv_tokens=512, step_tokens=48)


@pytest.fixture
def engine(loaded: tuple[Checkpoint, Engine]) -> Engine:
    return loaded[1]


def walk_all(walk: LayerWalk) -> tuple[dict[str, np.ndarray], np.ndarray]:
    found: dict[str, np.ndarray] = {}
    while not walk.at_head:
        parts = list(walk.inputs())
        found |= {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
        walk.advance()
    return found, np.concatenate(list(walk.head_inputs()))


def test_inputs_are_what_numpy_computes(loaded: tuple[Checkpoint, Engine]) -> None:
    source, engine = loaded
    found, _ = walk_all(LayerWalk(engine, CHUNKS))

    def weight(ref: WeightRef) -> np.ndarray:
        return source.weights[ref.name].read_f32()

    judge = Interpreter(weight, lambda ref, ids: weight(ref)[ids])
    linears = [n for n in source.graph.nodes if isinstance(n.op, Linear) and n.layer is not None]
    assert set(found) == {n.op.weights[0].name for n in linears}
    for node in linears:
        name, value = node.op.weights[0].name, node.inputs[0]
        want = np.concatenate([run(source.graph, judge, c[None], until=value)[0] for c in CHUNKS])
        assert np.linalg.norm(found[name] - want) < 1e-3 * np.linalg.norm(want), name


def test_the_end_is_a_step_bit_for_bit(engine: Engine) -> None:
    walk = LayerWalk(engine, CHUNKS)
    _, hidden = walk_all(walk)
    sequences = [engine.sequence() for _ in CHUNKS]
    try:
        work = list(zip(sequences, CHUNKS, strict=True))
        assert np.array_equal(engine.head(hidden), engine.step(work, logits="all"))
    finally:
        for sequence in sequences:
            sequence.free()
    assert engine.kv.free_blocks == engine.kv.count


def test_on_disk_and_in_one_pass_the_same(engine: Engine, tmp_path: Path) -> None:
    want, head = walk_all(LayerWalk(engine, CHUNKS))
    walk = LayerWalk(engine, CHUNKS, max_memory=1000, folder=tmp_path)
    assert walk.on_disk
    assert not list(tmp_path.iterdir())  # it has no name
    while not walk.at_head:
        names = [group[0] for group in walk.groups]
        parts = list(walk.inputs_and_advance(names))
        for name in names:
            assert np.array_equal(np.concatenate([p[name] for p in parts]), want[name])
    assert np.array_equal(np.concatenate(list(walk.head_inputs())), head)
    assert not LayerWalk(engine, CHUNKS, max_memory=1 << 20).on_disk


def test_shared_inputs_are_one_array(engine: Engine) -> None:
    walk = LayerWalk(engine, CHUNKS)
    batch = next(walk.inputs())
    for group in walk.groups:
        assert all(batch[name] is batch[group[0]] for name in group)
    assert set(batch) == {name for group in walk.groups for name in group}
    assert engine.kv.free_blocks == engine.kv.count  # a pass left early holds nothing


def test_replaced_weights_are_seen_within_and_after_the_layer(
    loaded: tuple[Checkpoint, Engine],
) -> None:
    """What sequential quantisation does, next to an engine that keeps its weights."""
    source, engine = loaded
    twin = load_engine(source, threads=1, kv_tokens=512, step_tokens=48)
    plain, quantised = LayerWalk(engine, CHUNKS), LayerWalk(twin, CHUNKS)
    name, later = "blk.0.attn_v.weight", "blk.0.attn_output.weight"
    w = source.weights[name].read_f32()
    before = np.concatenate([b[later] for b in quantised.inputs([later])])
    packed = _core.Weight.of_array(get("Q4_0").storage.id, w.shape[1], quantize("Q4_0", w))
    old = twin.replace({name: packed})
    after = np.concatenate([b[later] for b in quantised.inputs([later])])
    assert not np.array_equal(after, before)
    out = np.concatenate(list(quantised.outputs()))
    quantised.advance()
    plain.advance()
    assert np.array_equal(np.concatenate(list(quantised.hidden())), out)
    sizes = []
    for a, b in zip(plain.inputs(), quantised.inputs(), strict=True):
        assert {n: x.shape for n, x in a.items()} == {n: x.shape for n, x in b.items()}
        assert not np.array_equal(a["blk.1.attn_q.weight"], b["blk.1.attn_q.weight"])
        sizes.append(len(a["blk.1.attn_q.weight"]))
    assert sum(sizes) == plain.tokens
    assert max(sizes) <= engine.step_tokens
    twin.replace(old)
    again = LayerWalk(twin, CHUNKS)
    assert np.array_equal(np.concatenate([b[later] for b in again.inputs([later])]), before)


def test_replacing_all_or_nothing(loaded: tuple[Checkpoint, Engine]) -> None:
    source, engine = loaded
    walk = LayerWalk(engine, CHUNKS[:2])
    first, second = engine.linears(0)[:2]
    one = next(walk.outputs())
    bad = _core.Weight.of_array(0, 3, np.zeros((2, 12), np.uint8))
    width = next(walk.inputs([first]))[first].shape[1]
    rows = len(source.weights[first].read_f32())
    zeros = _core.Weight.of_array(0, width, np.zeros((rows, width * 4), np.uint8))
    with pytest.raises(UsageError, match="another shape"):
        engine.replace({first: zeros, second: bad})
    assert np.array_equal(next(walk.outputs()), one)


def test_mistakes(engine: Engine, tmp_path: Path) -> None:
    for chunks in ([], [[1, 2], []]):
        with pytest.raises(UsageError, match="none of them empty"):
            LayerWalk(engine, chunks)
    with pytest.raises(UsageError, match="Token ids"):
        LayerWalk(engine, [[1, 288 * 9]])
    with pytest.raises(ContextError):
        LayerWalk(engine, [[1] * (engine.context + 1)])
    with pytest.raises(OutputError, match="scratch space"):
        LayerWalk(engine, CHUNKS, max_memory=0, folder=tmp_path / "missing")
    walk = LayerWalk(engine, CHUNKS)
    with pytest.raises(UsageError, match="0 have run"):
        next(walk.head_inputs())
    next(walk.inputs_and_advance())
    with pytest.raises(UsageError, match="left before its end"):
        next(walk.inputs())
    walk = LayerWalk(engine, [[1, 2, 3]])
    while not walk.at_head:
        walk.advance()
    with pytest.raises(UsageError, match="have run"):
        walk.advance()


def test_a_cache_that_is_too_small(loaded: tuple[Checkpoint, Engine]) -> None:
    small = load_engine(loaded[0], threads=1, kv_tokens=32, step_tokens=48)
    with pytest.raises(CacheFullError, match="larger cache"):
        LayerWalk(small, CHUNKS)
    # One that takes the longest chunk and no more: fewer chunks a batch, the same figures.
    small = load_engine(loaded[0], threads=1, kv_tokens=64, step_tokens=256)
    want, _ = walk_all(LayerWalk(loaded[1], CHUNKS))
    found, _ = walk_all(LayerWalk(small, CHUNKS))
    assert all(np.array_equal(found[name], want[name]) for name in want)


def test_a_full_disk_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left"):
        States(10, 10, max_memory=0, folder=tmp_path)
