"""Mixtures of experts in the engine: whom a token gets, what they read, what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import MODELS, TOKENS, damage, model, reference, relative, write_mixture

from kvant import _core
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.checkpoint.names import hf_parts
from kvant.engine import Engine, load_engine
from kvant.errors import DataError, NotEnoughMemoryError, UsageError
from kvant.graph.ir import WeightRef
from kvant.graph.ops import Moe, SwiGlu, run
from kvant.packing import get, quantize
from kvant.reference import Interpreter
from oracles.models import make_folder, weights_of

TEXT = np.array(TOKENS)


def logits_of(engine: Engine, text: Any = TEXT) -> np.ndarray:
    with engine.sequence() as sequence:
        return engine.step([(sequence, text)], logits="all")


def first_layer(engine: Engine, names: list[str]) -> Any:
    with engine.sequence() as sequence:
        x = engine.embed(TEXT)
        return engine.run_layer(0, x, [(sequence, len(TEXT))], capture=names)[1]


@pytest.fixture(scope="module", params=["qwen3moe", "mixtral", "many-experts", "odd-experts"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Engine]:
    source = model(tmp_path_factory.mktemp("experts"), request.param)
    return source, load_engine(source, threads=2, kv_tokens=256)


def _inputs_by_numpy(source: Checkpoint) -> tuple[Moe, np.ndarray, np.ndarray]:
    """The first mixture, what it reads, and the experts of every token, the likeliest first."""

    def weight(ref: WeightRef) -> np.ndarray:
        return source.weights[ref.name].read_f32()

    judge = Interpreter(weight, lambda ref, ids: weight(ref)[ids])
    node = next(n for n in source.graph.nodes if isinstance(n.op, Moe))
    assert isinstance(node.op, Moe)
    x = run(source.graph, judge, TEXT[None], until=node.inputs[0])[0]
    scores = x @ weight(node.op.router).T
    return node.op, x, np.argsort(-scores, -1, kind="stable")[:, : node.op.used]


def test_what_experts_read(loaded: tuple[Checkpoint, Engine]) -> None:
    source, engine = loaded
    op, x, chosen = _inputs_by_numpy(source)
    gate, up, down = (f"blk.0.ffn_{n}_exps.weight" for n in ("gate", "up", "down"))
    found = first_layer(engine, [down, gate, up])
    assert found[gate] is found[up]
    np.testing.assert_allclose(found[gate], x, atol=2e-3 * np.abs(x).max())
    np.testing.assert_array_equal(found.experts[gate], chosen)
    np.testing.assert_array_equal(found.experts[down], chosen.reshape(-1, 1))
    gates, ups = (source.weights[n].read_f32() for n in (gate, up))
    seen = 0
    for expert in range(op.experts):
        rows = found[gate][(found.experts[gate] == expert).any(1)]
        inner = found[down][(found.experts[down] == expert).any(1)]
        assert len(rows) == len(inner) == (chosen == expert).sum()
        seen += len(rows)
        want = Interpreter.swiglu(None, SwiGlu(), rows @ gates[expert].T, rows @ ups[expert].T)  # type: ignore[arg-type]
        np.testing.assert_allclose(inner, want, atol=1e-4)
    assert seen == len(TEXT) * op.used


def test_stacks_are_linears_and_routers_are_not(loaded: tuple[Checkpoint, Engine]) -> None:
    _, engine = loaded
    outer, inner = ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"], "ffn_down_exps"
    assert not any("ffn_gate_inp" in name for name in engine.linears(0))
    groups = engine.shared_inputs(0)
    assert outer in groups
    assert [f"blk.0.{inner}.weight"] in groups
    with pytest.raises(UsageError, match="no linear called"):
        first_layer(engine, ["blk.1.ffn_gate_exps.weight"])


def test_capturing_changes_nothing(loaded: tuple[Checkpoint, Engine]) -> None:
    engine = loaded[1]
    with engine.sequence() as sequence:
        x, work = engine.embed(TEXT), [(sequence, len(TEXT))]
        plain, _ = engine.run_layer(0, x, work)
        captured, _ = engine.run_layer(0, x, work, capture=engine.linears(0))
    assert np.array_equal(plain, captured)


def test_a_replaced_stack(loaded: tuple[Checkpoint, Engine], tmp_path: Path) -> None:
    source, engine = loaded
    before = logits_of(engine)
    name = "blk.0.ffn_up_exps.weight"
    w = source.weights[name].read_f32()
    flat = w.reshape(-1, w.shape[-1])
    packing = "Q8_0" if w.shape[-1] % 32 == 0 else "F16"
    rows = quantize(packing, flat) if packing == "Q8_0" else flat.astype(np.float16).view(np.uint8)
    other = _core.Weight.of_array(get(packing).storage.id, w.shape[-1], rows, len(w))
    file = write_mixture(tmp_path / "m.gguf", source, {name: packing})
    with engine.replaced({name: other}):
        assert np.array_equal(logits_of(engine), logits_of(load_engine(file, threads=1)))
    assert np.array_equal(logits_of(engine), before)
    single = _core.Weight.of_array(get(packing).storage.id, w.shape[-1], rows)
    with pytest.raises(UsageError, match="another shape"), engine.replaced({name: single}):
        pass


def test_experts_that_nobody_chose_are_not_read(tmp_path: Path) -> None:
    """With NaN in all others' weights, a token gets what it got."""
    source = model(tmp_path, "many-experts")
    before = load_engine(source, threads=2, kv_tokens=64)
    token = TEXT[:1]
    names = [f"blk.{layer}.ffn_down_exps.weight" for layer in range(before.layers)]
    used: dict[str, set[int]] = {}
    with before.sequence() as sequence:
        x = before.embed(token)
        for layer, name in enumerate(names):
            x, found = before.run_layer(layer, x, [(sequence, 1)], capture=[name])
            used[name] = set(found.experts[name].reshape(-1).tolist())
    expected = logits_of(before, token)

    config = MODELS["many-experts"]
    weights = weights_of(config)
    for ref in source.graph.weights.values():
        if ref.role.endswith("_exps"):
            mine = used[f"blk.{ref.layer}.ffn_down_exps.weight"]
            for expert, name in enumerate(hf_parts(ref, "qwen3moe")):
                if expert not in mine:
                    weights[name] = weights[name] * np.float32(np.nan)
    spoilt = make_folder(tmp_path / "spoilt", config, weights, tokenizer=False)
    after = load_engine(open_checkpoint(spoilt), threads=2, kv_tokens=64)
    assert np.array_equal(logits_of(after, token), expected)


def test_a_router_that_is_not_a_number(tmp_path: Path) -> None:
    file = write_mixture(tmp_path / "m.gguf", model(tmp_path, "many-experts"), "Q8_0")
    for name in ("blk.0.ffn_norm.weight", "blk.1.ffn_norm.weight"):
        damage(file.path, name, 3e38)  # the scores overflow
    engine = load_engine(open_checkpoint(file.path), threads=2, kv_tokens=64)
    with pytest.raises(DataError, match="NaN or infinity"):
        logits_of(engine)


def test_equal_scores_take_the_first(tmp_path: Path) -> None:
    config = MODELS["mixtral"]
    weights = weights_of(config)
    for name in weights:
        if name.endswith("block_sparse_moe.gate.weight"):
            weights[name] = np.zeros_like(weights[name])
    folder = make_folder(tmp_path / "m", config, weights, tokenizer=False)
    source = open_checkpoint(folder)
    engine = load_engine(source, threads=2, kv_tokens=64)
    found = first_layer(engine, ["blk.0.ffn_down_exps.weight"])
    assert np.array_equal(found.experts["blk.0.ffn_down_exps.weight"][:, 0], [0, 1] * len(TEXT))
    assert relative(logits_of(engine), reference(source)) < 1e-3


@pytest.mark.parametrize("shards", [1, 3])
def test_experts_in_several_files(tmp_path: Path, shards: int) -> None:
    """With three files, the experts of a stack lie in all of them."""
    config = MODELS["qwen3moe"]
    folder = make_folder(tmp_path / "m", config, shards=shards, tokenizer=False)
    source = open_checkpoint(folder)
    assert len({p.path for p in source.weights["blk.0.ffn_up_exps.weight"].stored.parts}) == shards  # type: ignore[attr-defined]
    expected = reference(source)
    for resident in (True, False):
        engine = load_engine(source, threads=2, kv_tokens=64, resident=resident)
        assert relative(logits_of(engine), expected) < 1e-3


def test_memory_is_counted(tmp_path: Path) -> None:
    source = model(tmp_path, "many-experts")
    engine = load_engine(source, threads=1, kv_tokens=64)
    with pytest.raises(NotEnoughMemoryError):
        load_engine(source, threads=1, kv_tokens=64, memory_limit=engine.memory.total // 2)
    load_engine(source, threads=1, kv_tokens=64, memory_limit=engine.memory.total * 3)
