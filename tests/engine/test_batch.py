"""The batch: the same bits in any company, with any history, and nothing lost or left behind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engine_standin import Recorded, SpokenEngine

from kvant.checkpoint import Checkpoint
from kvant.engine import Engine, load_engine
from kvant.engine.batch import Batch, Limits, QueueFullError, Request
from kvant.engine.results import Completion, Piece, collect
from kvant.engine.sampling import Sampling
from kvant.errors import CacheFullError, ContextError, DataError, KvantError, UsageError
from kvant.tokenizer.build import Tokenizer

GREEDY = Sampling(temperature=0)
BLOCK = 32
STORY = "Once upon a time there was a king who had three sons, and the youngest of them was "


def finish(batch: Batch, wanted: dict[int, int] | None = None) -> dict[int, Completion]:
    """Run until idle; completions by number."""
    pieces: dict[int, list[Piece]] = {}
    found: dict[int, Completion] = {}
    while not batch.idle:
        for number, piece in batch.step():
            assert isinstance(piece, Piece), piece
            pieces.setdefault(number, []).append(piece)
            if piece.finish_reason:
                found[number] = collect(pieces[number], 0, bool(pieces[number][0].logprobs))
    return found


def run(engine: Any, tokenizer: Tokenizer, requests: Sequence[Request], **o: Any) -> Any:
    batch = Batch(engine, tokenizer, context=engine.context, **o)
    numbers = [batch.add(r) for r in requests]
    found = finish(batch)
    return [found[n] for n in numbers], batch


def some(tokenizer: Tokenizer, count: int, *, tokens: int = 40) -> list[Request]:
    """Requests of many lengths that draw with seeds; some share a beginning."""
    rng = random.Random(7)
    story = tokenizer.encode(STORY * 8)
    found = []
    for i in range(count):
        prompt = [*story[: rng.choice([3, 40, 70, 130])], rng.randrange(256, 4000)]
        sampling = Sampling(temperature=0.8, seed=i, top_p=0.95, repetition_penalty=1.1, logprobs=1)
        found.append(Request(prompt, sampling, rng.randint(5, tokens), ignore_end=True))
    return found


@pytest.fixture(scope="module")
def tight(checkpoint: Checkpoint) -> Engine:
    """A cache of 12 blocks."""
    return load_engine(checkpoint, threads=1, kv_tokens=12 * BLOCK)


def alone(engine: Any, tokenizer: Tokenizer, requests: Sequence[Request]) -> list[Completion]:
    """Each by itself, with nothing in the cache."""
    found = []
    for request in requests:
        engine.kv.forget()
        found += run(engine, tokenizer, [request])[0]
    return found


def test_the_same_bits_in_any_company(
    engine: Recorded, tight: Engine, tokenizer: Tokenizer
) -> None:
    requests = some(tokenizer, 12, tokens=60)
    expected = alone(engine, tokenizer, requests)
    engine.kv.forget()
    cold, batch = run(engine, tokenizer, requests)
    assert cold == expected
    hits = batch.stats().cached_tokens
    warm, batch = run(engine, tokenizer, requests)
    assert warm == expected
    assert batch.stats().cached_tokens > hits > 0
    assert sum(c.usage.cached_tokens for c in warm) == batch.stats().cached_tokens
    for limits in (Limits(3, 100, 7), Limits(12, 100, 33)):
        assert run(engine, tokenizer, requests, limits=limits)[0] == expected


def test_the_same_bits_where_requests_make_room(
    engine: Recorded, tight: Engine, tokenizer: Tokenizer
) -> None:
    requests = [
        replace(r, max_tokens=70, salt=bytes([i])) for i, r in enumerate(some(tokenizer, 6))
    ]
    for tokens in ([3, 4, 5, 6], [3, 40, 41, 3]):
        short = [replace(r, prompt=r.prompt[-n:]) for r, n in zip(requests, tokens, strict=False)]
        expected = alone(engine, tokenizer, short)
        tight.kv.forget()
        crowded, batch = run(tight, tokenizer, short * 2)
        assert crowded == expected * 2
        assert batch.stats().preemptions > 0
        assert batch.stats().blocks_used == 0


def test_a_prefix_is_read_once(engine: Recorded, tokenizer: Tokenizer) -> None:
    engine.kv.forget()
    shared = tokenizer.encode(STORY * 8)[: 4 * BLOCK]
    requests = [Request([*shared, 300 + i], GREEDY, 4) for i in range(6)]
    engine.steps.clear()
    _, batch = run(engine, tokenizer, requests)
    assert sum(map(sum, engine.steps)) == len(shared) + 6 + 6 * 3
    stats = batch.stats()
    assert (stats.prompt_tokens, stats.cached_tokens) == (6 * (len(shared) + 1), 5 * len(shared))
    assert stats.computed_tokens == sum(map(sum, engine.steps))
    assert stats.written_tokens == 24
    # Of the same text again only its last block, because what follows it is asked for.
    again, _ = run(engine, tokenizer, [Request(shared, GREEDY, 4)])
    assert again[0].usage.cached_tokens == len(shared) - BLOCK
    other, _ = run(engine, tokenizer, [Request(shared, GREEDY, 4, salt=b"x")])
    assert other[0].usage.cached_tokens == 0
    assert other == again


def test_other_weights_find_nothing(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    engine = load_engine(checkpoint, threads=1, kv_tokens=256)
    request = Request(tokenizer.encode(STORY * 3)[:70], GREEDY, 4)
    run(engine, tokenizer, [request])
    name = engine.linears(0)[0]
    before = engine._plan.weight(engine._lowered.matrices[name])
    engine.replace({name: before})
    assert run(engine, tokenizer, [request])[0][0].usage.cached_tokens == 0


def test_a_fork_shares_until_it_differs(engine: Recorded, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode(STORY)[:20]
    draws = [Request(prompt, Sampling(seed=i), 30, ignore_end=True) for i in range(3)]
    expected = alone(engine, tokenizer, draws)
    batch = Batch(engine, tokenizer, context=engine.context)  # type: ignore[arg-type]
    first = batch.add(draws[0])
    pieces = [p for n, p in batch.step()]
    engine.steps.clear()
    others = [batch.fork(first, r) for r in draws[1:]]
    found = finish(batch)
    assert [found[n] for n in others] == expected[1:]
    assert found[first].tokens == expected[0].tokens[sum(len(p.tokens) for p in pieces) :]
    assert engine.steps[0] == [1, 1, 1]  # nothing of the prompt was read again but its last token


def test_copied_blocks_hold_the_same(checkpoint: Checkpoint) -> None:
    engine = load_engine(checkpoint, threads=1, kv_tokens=4 * BLOCK)
    tokens = np.arange(300, 320, dtype=np.int32)
    out = np.empty((2, engine.vocab_size), np.float32)

    def step(ids: npt.NDArray[np.int32], start: int, block: int, row: int) -> None:
        entries, rows = np.array([[0, len(ids), start]]), np.array([len(ids) - 1], np.int32)
        table = np.array([[block]], np.int32)
        engine.step_blocks(ids, entries, table, rows, out[row : row + 1])

    step(tokens[:19], 0, 0, 0)
    engine.copy_blocks([(0, 3)])
    step(tokens[19:], 19, 0, 0)
    step(tokens[19:], 19, 3, 1)
    assert (out[0] == out[1]).all()
    with pytest.raises(ValueError, match="block there is not"):
        engine.copy_blocks([(0, 4)])


def test_cancelling_at_any_time(tight: Engine, tokenizer: Tokenizer) -> None:
    rng = random.Random(3)
    requests = some(tokenizer, 30, tokens=20)
    expected = alone(tight, tokenizer, requests)
    tight.kv.forget()
    batch = Batch(tight, tokenizer, context=tight.context, limits=Limits(5, 100, 64))
    pieces: dict[int, list[Piece]] = {batch.add(r): [] for r in requests}
    cancelled = set(rng.sample(sorted(pieces), 12))
    left = set(cancelled)
    while not batch.idle:
        for number, piece in batch.step():
            assert isinstance(piece, Piece)
            pieces[number].append(piece)
        if left and rng.random() < 0.3:
            batch.cancel(left.pop())
    for number, wanted in enumerate(expected):
        tokens = [t for p in pieces[number] for t in p.tokens]
        assert tokens == list(wanted.tokens[: len(tokens)])
        if number not in cancelled:
            assert collect(pieces[number], 0, True) == wanted
    batch.cancel(0)
    assert tight.kv.free_blocks == tight.kv.count


def test_what_is_refused(tight: Engine, tokenizer: Tokenizer) -> None:
    batch = Batch(tight, tokenizer, context=tight.context, limits=Limits(waiting=1))
    with pytest.raises(ContextError):
        batch.add(Request([5] * tight.context, GREEDY))
    with pytest.raises(UsageError, match=r"from 0 to 4095, got 5 to 4096"):
        batch.add(Request([5, 4096], GREEDY))
    with pytest.raises(CacheFullError, match=r"up to 1,001 tokens .* the cache holds 384"):
        batch.add(Request([5], GREEDY, 1000))
    batch.add(Request([5], GREEDY, 10))
    with pytest.raises(QueueFullError):
        batch.add(Request([6], GREEDY, 10))
    held = tight.sequence()
    tight.step([(held, [1] * (12 * BLOCK))])
    with pytest.raises(CacheFullError, match="outside this batch"):
        batch.step()
    held.free()
    assert len(finish(batch)) == 1


def test_a_failed_step_loses_nothing(tight: Engine, tokenizer: Tokenizer) -> None:
    request = some(tokenizer, 1)[0]
    expected = alone(tight, tokenizer, [request])
    engine = Recorded(tight)
    batch = Batch(engine, tokenizer, context=tight.context)  # type: ignore[arg-type]
    number = batch.add(request)
    step, calls = engine.step_blocks, 0

    def broken(*arguments: Any) -> None:
        nonlocal calls
        step(*arguments)
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    engine.step_blocks = broken  # type: ignore[method-assign]
    pieces = [p for _, p in batch.step() + batch.step()]
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    while not batch.idle:
        pieces += [p for _, p in batch.step()]
    assert collect(pieces, 0, True) == expected[0]  # type: ignore[arg-type]
    assert number == 0


def test_one_bad_request_ends_alone(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    def rows(tokens: list[int]) -> npt.ArrayLike:
        row = np.zeros(checkpoint.config.vocab_size, np.float32)
        row[7] = np.nan if tokens[0] == 9 and len(tokens) > 3 else 1
        return row

    engine = SpokenEngine(checkpoint.config.vocab_size, 1024, rows)
    batch = Batch(engine, tokenizer, context=1024)  # type: ignore[arg-type]
    good = [batch.add(Request([i], GREEDY, 5)) for i in (8, 10)]
    bad = batch.add(Request([9], GREEDY, 5))
    errors: dict[int, KvantError] = {}
    tokens = dict.fromkeys((*good, bad), 0)
    while not batch.idle:
        for number, event in batch.step():
            if isinstance(event, KvantError):
                errors[number] = event
            else:
                tokens[number] += len(event.tokens)
    assert list(errors) == [bad]
    assert isinstance(errors[bad], DataError)
    assert tokens == {good[0]: 5, good[1]: 5, bad: 3}
    assert engine.idle


def test_users_share(tight: Engine, tokenizer: Tokenizer) -> None:
    """Who asks for much does not keep away who asks for little."""
    batch = Batch(tight, tokenizer, context=tight.context, limits=Limits(2, 100, 64))
    for i in range(8):
        batch.add(Request([300 + i] * 9, GREEDY, 6, user="many", ignore_end=True))
    few = batch.add(Request([999] * 9, GREEDY, 6, user="few", ignore_end=True))
    order = list(finish(batch))
    assert order.index(few) <= 2


def test_usage(engine: Recorded, tokenizer: Tokenizer) -> None:
    batch = Batch(engine, tokenizer, context=engine.context)  # type: ignore[arg-type]
    number = batch.add(Request(tokenizer.encode("Hello there"), GREEDY, 3, ignore_end=True))
    assert batch.usage(number).completion_tokens == 0
    assert batch.stats().waiting == 1
    events = []
    while not batch.idle:
        events += batch.step()
        assert batch.stats().blocks_used <= 1
    last = events[-1][1]
    assert isinstance(last, Piece)
    assert last.usage is not None
    assert last.usage.completion_tokens == 3
    assert last.usage.queue_seconds >= 0
    assert last.usage.prompt_seconds > 0
    assert last.usage.generation_seconds > 0
    with pytest.raises(KeyError):
        batch.usage(number)
