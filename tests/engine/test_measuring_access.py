"""The engine's finer access: layers one by one, inputs of linears, other weights for a while."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_models import MODELS, model, write_mixture

from kvant import _core
from kvant.checkpoint import Checkpoint
from kvant.engine import Engine, load_engine
from kvant.errors import CacheFullError, ContextError, UsageError
from kvant.graph.find import output_head
from kvant.graph.ir import WeightRef
from kvant.graph.ops import Linear, run
from kvant.packing import get, quantize
from kvant.reference.interpret import Interpreter

LENGTHS = (50, 7, 40)
TEXTS = [np.random.default_rng(n).integers(0, 280, n) for n in LENGTHS]
STACKED = np.concatenate(TEXTS)

NAMES = ("llama", "biases", "qwen2-tied", "qwen3", "odd-biases", "one-layer")
#: What else there is between linears: norms behind them, fused ones, other gates, windows.
NAMES += (
    "gpt2",
    "gemma2",
    "gemma3",
    "phi4-mini",
    "granite",
    "olmo2",
    "smollm3",
    "starcoder2",
    "mistral",
)


@pytest.fixture(scope="module", params=[*NAMES, "quantised"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Engine]:
    folder = tmp_path_factory.mktemp("access")
    if request.param == "quantised":
        source = write_mixture(folder / "m.gguf", model(folder, "qwen3"), "Q4_K")
    else:
        source = model(folder, request.param)
    return source, load_engine(source, threads=2, kv_tokens=1024)


@pytest.fixture
def engine(loaded: tuple[Checkpoint, Engine]) -> Engine:
    return loaded[1]


def by_layers(
    engine: Engine, capture: bool = False, **options: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The stream after the last layer, and all inputs, of `TEXTS`."""
    sequences = [(engine.sequence(), n) for n in LENGTHS]
    x = engine.embed(STACKED, LENGTHS)
    inputs: dict[str, np.ndarray] = {}
    for layer in range(engine.layers):
        last = layer == engine.layers - 1
        names = engine.linears(layer) if capture else []
        x, found = engine.run_layer(layer, x, sequences, capture=names, advance=last)
        inputs |= found
    assert [s.length for s, _ in sequences] == list(LENGTHS)
    for s, _ in sequences:
        s.free()
    return x, inputs


def judge_of(source: Checkpoint) -> Interpreter:
    def weight(ref: WeightRef) -> np.ndarray:
        return source.weights[ref.name].read_f32()

    return Interpreter(weight, lambda ref, ids: weight(ref)[ids])


def final_norm(loaded: tuple[Checkpoint, Engine], stream: np.ndarray) -> np.ndarray:
    source, _ = loaded
    norm = source.graph.producer(output_head(source.graph)[0].inputs[0])
    assert norm is not None
    found: np.ndarray = norm.op.accept(judge_of(source), [stream])
    return found


def test_embed(loaded: tuple[Checkpoint, Engine]) -> None:
    source, engine = loaded
    first = next(n.inputs[0] for n in source.graph.nodes if n.layer == 0)

    def expected(tokens: np.ndarray) -> np.ndarray:
        return run(source.graph, judge_of(source), tokens[None], until=first)[0]

    want = np.concatenate([expected(text) for text in TEXTS])
    np.testing.assert_allclose(engine.embed(STACKED, LENGTHS), want, rtol=1e-6)
    long = np.arange(engine.context if "gpt2" in str(source.path) else 3 * 512 + 5) % 280
    np.testing.assert_allclose(engine.embed(long), expected(long), rtol=1e-6)
    with pytest.raises(UsageError, match="add up"):
        engine.embed(STACKED, LENGTHS[:2])


def test_layers_one_by_one_are_a_step(loaded: tuple[Checkpoint, Engine]) -> None:
    engine = loaded[1]
    stream, _ = by_layers(engine)
    sequences = [engine.sequence() for _ in LENGTHS]
    work = list(zip(sequences, TEXTS, strict=True))
    hidden = engine.step(work, logits="hidden")
    np.testing.assert_allclose(final_norm(loaded, stream), hidden, rtol=1e-5, atol=1e-6)
    for s in sequences:
        s.free()
    logits = engine.step(work, logits="all")
    assert np.array_equal(engine.head(hidden), logits)


def test_the_rest_from_any_layer_is_a_step(loaded: tuple[Checkpoint, Engine]) -> None:
    engine = loaded[1]
    sequences = [(engine.sequence(), n) for n in LENGTHS]
    work = [(s, t) for (s, _), t in zip(sequences, TEXTS, strict=True)]
    logits = engine.step(work, logits="all")
    for s, _ in sequences:
        s.truncate(0)
    rows = np.array([0, 3, 49, 50, 90], np.int32)
    stream = engine.embed(STACKED, LENGTHS)
    for layer in range(engine.layers + 1):
        for _ in range(2):
            assert np.array_equal(engine.run_rest(layer, stream, sequences, rows), logits[rows])
        if layer < engine.layers:
            stream, _ = engine.run_layer(layer, stream, sequences)
    assert all(s.length == 0 for s, _ in sequences)
    for wrong in (-1, engine.layers + 1):
        with pytest.raises(UsageError, match="Expected a layer from 0 to"):
            engine.run_rest(wrong, stream, sequences, rows)
    with pytest.raises(UsageError, match="hidden states"):
        engine.run_rest(0, stream[1:], sequences, rows)
    for s, _ in sequences:
        s.free()


def test_a_layer_in_any_chunks_and_again(engine: Engine) -> None:
    """A layer may run again on the same tokens, with other hidden states: what searching does."""
    text = TEXTS[0]
    x = engine.embed(text)
    with engine.sequence() as sequence:
        engine.run_layer(0, x * 3 + 1, [(sequence, len(text))])
        assert sequence.length == 0
        whole, _ = engine.run_layer(0, x, [(sequence, len(text))])
        parts = []
        for start, stop in ((0, 1), (1, 20), (20, 50)):
            rows = np.asfortranarray(x[start:stop])
            part, _ = engine.run_layer(0, rows, [(sequence, stop - start)], advance=True)
            parts.append(part)
        assert np.array_equal(np.concatenate(parts), whole)


def test_captures_are_what_numpy_computes(loaded: tuple[Checkpoint, Engine]) -> None:
    source, engine = loaded
    _, inputs = by_layers(engine, capture=True)
    graph, judge = source.graph, judge_of(source)
    linears = [n for n in graph.nodes if isinstance(n.op, Linear) and n.layer is not None]
    assert set(inputs) == {n.op.weight.name for n in linears if isinstance(n.op, Linear)}
    quantised = any(w.stored.type.name == "Q4_K" for w in source.weights.values())
    start = 0
    for text in TEXTS:
        rows = slice(start, start + len(text))
        start += len(text)
        for node in linears:
            assert isinstance(node.op, Linear)
            want = run(graph, judge, text[None], until=node.inputs[0])[0]
            got = inputs[node.op.weight.name][rows]
            error = np.linalg.norm(got - want) / np.linalg.norm(want)
            assert error < (3e-2 if quantised else 1e-3), node.op.weight.name


def test_capturing_changes_nothing(engine: Engine) -> None:
    assert np.array_equal(by_layers(engine, capture=True)[0], by_layers(engine)[0])


def test_linears_and_what_they_share(loaded: tuple[Checkpoint, Engine]) -> None:
    source, engine = loaded
    for layer in range(engine.layers):
        expected: dict[int, list[str]] = {}
        for node in source.graph.nodes:
            if isinstance(node.op, Linear) and node.layer == layer:
                expected.setdefault(node.inputs[0].id, []).append(node.op.weight.name)
        groups = engine.shared_inputs(layer)
        assert sorted(map(sorted, groups)) == sorted(map(sorted, expected.values()))
        assert sorted(engine.linears(layer)) == sorted(n for group in groups for n in group)


def logits_of(engine: Engine) -> np.ndarray:
    with engine.sequence() as sequence:
        return engine.step([(sequence, TEXTS[0])], logits="all")


def test_replaced_weights(loaded: tuple[Checkpoint, Engine]) -> None:
    """The same as a model that has them; afterwards everything is as before."""
    source, engine = loaded
    before = logits_of(engine)
    memory = engine.memory
    names = [n for n in engine.linears(0) if "attn_q" in n or "ffn_down" in n]  # also fused
    others, expected = {}, {}
    for i, name in enumerate(names):
        w = source.weights[name].read_f32()
        kind = "Q8_0" if w.shape[1] % 32 == 0 else "F16"
        rows = quantize(kind, w) if kind == "Q8_0" else w.astype(np.float16).view(np.uint8)
        others[name] = _core.Weight.of_array(get(kind).storage.id, w.shape[1], rows)
        assert (others[name].rows, others[name].columns) == w.shape
        expected[name] = kind
        assert i < 2
    with engine.replaced(others):
        changed = logits_of(engine)
        assert not np.array_equal(changed, before)
        with engine.replaced({names[0]: others[names[0]]}):
            assert np.array_equal(logits_of(engine), changed)
        assert np.array_equal(logits_of(engine), changed)
    assert np.array_equal(logits_of(engine), before)
    assert engine.memory.weights_bytes == memory.weights_bytes
    with pytest.raises(ZeroDivisionError), engine.replaced(others):
        _ = 1 // 0
    assert np.array_equal(logits_of(engine), before)


def test_replaced_as_if_it_had_been_loaded_so(tmp_path: Path) -> None:
    source = model(tmp_path, "llama")
    name = "blk.1.ffn_up.weight"
    engine = load_engine(source, threads=1)
    packed = quantize("Q2_K", source.weights[name].read_f32())
    mixture = load_engine(write_mixture(tmp_path / "m.gguf", source, {name: "Q2_K"}), threads=1)
    with engine.replaced({name: _core.Weight.of_array(get("Q2_K").storage.id, 256, packed)}):
        assert np.array_equal(logits_of(engine), logits_of(mixture))


def test_replacing_the_head_of_a_tied_model_leaves_the_embedding(tmp_path: Path) -> None:
    source = model(tmp_path, "tied")
    engine = load_engine(source, threads=1)
    before = logits_of(engine)
    w = source.weights["token_embd.weight"].read_f32()
    doubled = _core.Weight.of_array(0, w.shape[1], (2 * w).view(np.uint8))
    with engine.replaced({"token_embd.weight": doubled}):
        assert np.array_equal(logits_of(engine), 2 * before)
        assert np.array_equal(engine.embed([3, 4]), w[3:5])


def test_what_makes_no_sense(loaded: tuple[Checkpoint, Engine]) -> None:
    engine = loaded[1]
    width = engine.hidden_size
    x = np.zeros((3, width), np.float32)
    sequence = engine.sequence()
    for layer, hidden, work in (
        (-1, x, [(sequence, 3)]),
        (engine.layers, x, [(sequence, 3)]),
        (0, x, [(sequence, 2)]),
        (0, x[:, 1:], [(sequence, 3)]),
        (0, x[:0], []),
        (0, x, [(sequence, 3), (engine.sequence(), 0)]),
        (0, x, [(sequence, 4), (engine.sequence(), -1)]),
    ):
        with pytest.raises(UsageError):
            engine.run_layer(layer, hidden, work)
    many = np.zeros((engine.step_tokens + 1, width), np.float32)
    with pytest.raises(UsageError, match="A layer takes 1 to"):
        engine.run_layer(0, many, [(sequence, len(many))])
    with pytest.raises(UsageError, match="Layer 0 has no linear called 'blk"):
        engine.run_layer(0, x, [(sequence, 3)], capture=["blk.9.attn_q.weight"])
    with pytest.raises(UsageError, match="named twice"):
        engine.run_layer(0, x, [(sequence, 1), (sequence, 2)])
    with pytest.raises(UsageError, match="hidden states"):
        engine.head(x[:, 1:])
    wrong = {"output_norm.weight": _core.Weight.of_array(0, 1, _bytes(1, 1))}
    with pytest.raises(UsageError, match="no linear called"), engine.replaced(wrong):
        pass
    name = engine.linears(0)[0]
    before = logits_of(engine)
    wrong = {name: _core.Weight.of_array(0, width, _bytes(5, width))}
    with pytest.raises(UsageError, match="another shape"), engine.replaced(wrong):
        pass
    assert np.array_equal(logits_of(engine), before)
    assert sequence.length == 0
    sequence.free()


def _bytes(rows: int, columns: int) -> np.ndarray:
    return np.zeros((rows, columns * 4), np.uint8)


def test_limits_of_layers(tmp_path: Path) -> None:
    engine = load_engine(model(tmp_path, "one-layer"), threads=1, kv_tokens=32)
    x = np.zeros((33, engine.hidden_size), np.float32)
    with engine.sequence() as sequence:
        with pytest.raises(CacheFullError):
            engine.run_layer(0, x, [(sequence, 33)])
        assert sequence.block_count == 0
        sequence.length = MODELS["one-layer"]["max_position_embeddings"]
        with pytest.raises(ContextError):
            engine.run_layer(0, x[:1], [(sequence, 1)])
        sequence.length = 0
