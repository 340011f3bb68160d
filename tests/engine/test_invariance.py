"""What a token gets depends on its own sequence alone, to the last bit.

Not on the number of threads, the cut of a text into steps, the neighbours in a step, what the cache
held before, or on whether weights lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from engine_models import model, write_mixture
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.checkpoint import Checkpoint
from kvant.engine import Engine, KvSequence, load_engine

LENGTH = 150
TEXT = np.random.default_rng(1).integers(0, 280, LENGTH)
#: One of each kind of kernel, and linears that read one input in three roundings.
MIXTURE = {
    "token_embd.weight": "Q6_K",
    "output.weight": "Q6_K",
    "blk.0.attn_q.weight": "Q4_K",
    "blk.0.attn_k.weight": "Q8_0",
    "blk.0.attn_v.weight": "F16",
    "blk.0.attn_output.weight": "Q3_K",
    "blk.0.ffn_gate.weight": "Q4_0",
    "blk.0.ffn_up.weight": "BF16",
    "blk.0.ffn_down.weight": "Q2_K",
    "blk.1.attn_q.weight": "Q5_0",
    "blk.1.attn_k.weight": "Q5_K",
    "blk.1.attn_v.weight": "Q5_1",
    "blk.1.attn_output.weight": "Q4_1",
}

EXPERTS = {
    "blk.0.ffn_gate_exps.weight": "Q4_K",
    "blk.0.ffn_up_exps.weight": "F16",
    "blk.0.ffn_down_exps.weight": "Q4_0",
    "blk.1.ffn_gate_exps.weight": "BF16",
    "blk.1.ffn_up_exps.weight": "Q6_K",
    "blk.1.ffn_down_exps.weight": "Q2_K",
}

#: name -> (model, packing, options)
ENGINES = {
    "floats": ("odd-biases", None, {}),
    "mixture": ("llama", MIXTURE, {}),
    "experts": ("many-experts", "Q8_0", {}),
    "a mixture of experts": ("qwen3moe", EXPERTS, {}),
    "windows and caps": ("gemma2", None, {}),
    "two ropes": ("gemma3-capped", "Q8_0", {"kv_type": "q8_0"}),
    "positions": ("gpt2", "Q4_K", {}),
    "fused": ("phi3-long", "Q8_0", {}),
    "8-bit cache": ("qwen3", "Q4_0", {"kv_type": "q8_0"}),
}


@pytest.fixture(scope="module", params=ENGINES)
def options(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, dict[str, object]]:
    name, packing, options = ENGINES[request.param]
    folder = tmp_path_factory.mktemp("invariance")
    source = model(folder, name)
    if packing is not None:
        source = write_mixture(folder / "m.gguf", source, packing)  # type: ignore[arg-type]
    return source, {"kv_tokens": 2048, "threads": 2, **options}


@pytest.fixture(scope="module")
def engine(options: tuple[Checkpoint, dict[str, object]]) -> Engine:
    return load_engine(options[0], **options[1])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(engine: Engine) -> np.ndarray:
    with engine.sequence() as sequence:
        return engine.step([(sequence, TEXT)], logits="all")


@pytest.fixture(autouse=True)
def _nothing_is_kept(engine: Engine) -> Iterator[None]:
    yield
    assert engine.kv.free_blocks == engine.kv.count


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("step_tokens", [512, 64, 8])
def test_threads_and_pieces_of_a_step(
    options: tuple[Checkpoint, dict[str, object]],
    expected: np.ndarray,
    threads: int,
    step_tokens: int,
) -> None:
    chosen = {**options[1], "threads": threads, "step_tokens": step_tokens}
    other = load_engine(options[0], **chosen)  # type: ignore[arg-type]
    assert other.threads == threads
    with other.sequence() as sequence:
        assert np.array_equal(other.step([(sequence, TEXT)], logits="all"), expected)


def test_weights_left_in_the_file(
    options: tuple[Checkpoint, dict[str, object]], expected: np.ndarray
) -> None:
    other = load_engine(options[0], **{**options[1], "resident": False})  # type: ignore[arg-type]
    assert other.memory.weights_bytes == 0
    with other.sequence() as sequence:
        assert np.array_equal(other.step([(sequence, TEXT[:100])], logits="all"), expected[:100])
        for i in range(100, 103):
            assert np.array_equal(other.step([(sequence, TEXT[i : i + 1])])[0], expected[i])


def test_one_token_at_a_time(engine: Engine, expected: np.ndarray) -> None:
    with engine.sequence() as sequence:
        found = [engine.step([(sequence, [t])])[0] for t in TEXT]
    assert np.array_equal(np.stack(found), expected)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=8, unique=True))
def test_any_chunks_of_a_text(engine: Engine, expected: np.ndarray, cuts: list[int]) -> None:
    with engine.sequence() as sequence:
        found = [
            engine.step([(sequence, part)], logits="all") for part in np.split(TEXT, sorted(cuts))
        ]
    assert np.array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 16, 20])
def test_batches_of_any_size(engine: Engine, expected: np.ndarray, count: int) -> None:
    """Sequences of one text and unlike lengths, that go on token by token beside each other."""
    sequences = [engine.sequence() for _ in range(count)]
    work = [(s, TEXT[: 3 + 5 * i]) for i, s in enumerate(sequences)]
    found = engine.step(work)
    for step in range(3):
        rows = [2 + 5 * i + step for i in range(count)]
        assert np.array_equal(found, expected[rows])
        found = engine.step([(s, [TEXT[s.length]]) for s in sequences])
    for s in sequences:
        s.free()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_neighbours(engine: Engine, expected: np.ndarray, data: st.DataObject) -> None:
    """A text in any chunks, each beside any other texts, which come, go on, are cut and go."""
    mine = engine.sequence()
    others: list[KvSequence] = []
    while mine.length < LENGTH:
        size = data.draw(st.integers(1, min(70, LENGTH - mine.length)), "tokens")
        work = [(mine, TEXT[mine.length : mine.length + size])]
        for other in others:
            action = data.draw(st.sampled_from(["go on", "rest", "cut", "free"]), "neighbour")
            if action == "cut":
                other.truncate(other.length // 2)
            elif action == "free":
                other.free()
            elif action == "go on" and other.length < 100:
                work.append((other, data.draw(_texts, "its tokens")))
        if len(others) < 6 and data.draw(st.booleans(), "one more"):
            others.append(engine.sequence())
            work.append((others[-1], data.draw(_texts, "its tokens")))
        place = data.draw(st.integers(0, len(work) - 1), "place")
        work[0], work[place] = work[place], work[0]
        begin = sum(len(tokens) for _, tokens in work[:place])
        first = mine.length
        found = engine.step(work, logits="all")
        assert np.array_equal(found[begin : begin + size], expected[first : first + size])
    for sequence in (mine, *others):
        sequence.free()


_texts = st.lists(st.integers(0, 279), min_size=1, max_size=40)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, LENGTH), min_size=1, max_size=5), wrong=st.integers(1, 60))
def test_cut_and_go_on(
    engine: Engine, expected: np.ndarray, lengths: list[int], wrong: int
) -> None:
    """What is forgotten leaves no trace, in the last block least of all."""
    with engine.sequence() as sequence:
        engine.step([(sequence, TEXT)], logits="none")
        for length in lengths:
            if length > sequence.length:
                continue
            sequence.truncate(length)
            engine.step([(sequence, (TEXT[:wrong] * 7 + 3) % 280)], logits="none")
            sequence.truncate(length)
        rest = TEXT[sequence.length :]
        if len(rest):
            first = sequence.length
            found = engine.step([(sequence, rest)], logits="all")
            assert np.array_equal(found, expected[first:])


def test_rows_asked_for(engine: Engine, expected: np.ndarray) -> None:
    """The last row, all, hidden states and their head are the same numbers."""
    with engine.sequence() as sequence:
        assert engine.step([(sequence, TEXT[:90])], logits="none").shape == (0, engine.vocab_size)
        hidden = engine.step([(sequence, TEXT[90:])], logits="hidden")
        assert hidden.shape == (LENGTH - 90, engine.hidden_size)
        assert np.array_equal(engine.head(hidden), expected[90:])
        assert np.array_equal(engine.head(hidden[7:8]), expected[97:98])
        assert engine.head(hidden[:0]).shape == (0, engine.vocab_size)
        sequence.truncate(90)
        assert np.array_equal(engine.step([(sequence, TEXT[90:])])[0], expected[-1])


def test_the_same_bits_again(engine: Engine, expected: np.ndarray) -> None:
    for _ in range(3):
        with engine.sequence() as sequence:
            assert np.array_equal(engine.step([(sequence, TEXT)], logits="all"), expected)
