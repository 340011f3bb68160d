"""Guesses: they change how many steps a text takes, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from engine_standin import Recorded, SpokenEngine
from hypothesis import given
from hypothesis import strategies as st

from kvant.checkpoint import Checkpoint
from kvant.engine import Engine, load_engine
from kvant.engine.batch import Batch, Limits, Request
from kvant.engine.results import Completion, Piece, collect
from kvant.engine.sampling import Sampling
from kvant.engine.speculative import (
    Drafter,
    DraftModel,
    Lookup,
    Pace,
    Speculator,
    Text,
    _Index,
    check_vocabulary,
)
from kvant.errors import UsageError
from kvant.tokenizer.build import Tokenizer

GREEDY = Sampling(temperature=0)


class Free(Pace):
    """Steps take as long whatever is in them, so that guessing always pays."""

    def known(self, tokens: int) -> bool:
        return True

    def seconds(self, tokens: int) -> float:
        return 1.0


class Told:
    """Guesses what ``tell`` says of a text's tokens."""

    trust = 0.9

    def __init__(self, tell: Callable[[list[int]], list[int]], costs: bool = False) -> None:
        self._tell, self.costs = tell, costs
        self.asked: list[int] = []

    def propose(self, wanted: Sequence[tuple[Text, int]]) -> list[list[int]]:
        self.asked += [count for _, count in wanted]
        return [self._tell(text.tokens)[:count] for text, count in wanted]

    def seconds(self, texts: int) -> float:
        return 0.1 if self.costs else 0.0

    def forget(self, text: Text) -> None: ...


def run(
    engine: Any, tokenizer: Tokenizer, requests: Sequence[Request], **options: Any
) -> tuple[list[Completion], Batch]:
    engine.kv.forget()
    batch = Batch(engine, tokenizer, context=engine.context, **options)
    pieces: dict[int, list[Piece]] = {batch.add(r): [] for r in requests}
    while not batch.idle:
        for number, piece in batch.step():
            assert isinstance(piece, Piece), piece
            pieces[number].append(piece)
    return [collect(p, 0, bool(p[0].logprobs)) for p in pieces.values()], batch


def some(tokenizer: Tokenizer) -> list[Request]:
    """Greedy and not, with penalties and without, ends in the middle of what was guessed."""
    text = tokenizer.encode("The king said: one two three four. The queen said: one two three")
    odd = Sampling(temperature=0.7, repetition_penalty=1.2, frequency_penalty=0.1, logprobs=2)
    return [
        Request(text, GREEDY, 50),
        Request(text[:20], replace(GREEDY, logprobs=3), 33, ("he",)),
        *(Request(text[i:], replace(odd, seed=i), 30 + i, ignore_end=True) for i in range(3)),
        Request(text, Sampling(temperature=0.3, top_k=5, seed=9), 41, (" a",), ignore_end=True),
    ]


@pytest.fixture(scope="module")
def tight(checkpoint: Checkpoint) -> Engine:
    return load_engine(checkpoint, threads=1, kv_tokens=12 * 32)


@pytest.fixture(scope="module")
def other(checkpoint: Checkpoint) -> Engine:
    """The same model with weights that were changed a little."""
    from kvant import _core
    from kvant.packing import get

    engine = load_engine(checkpoint, threads=1, kv_tokens=2048)
    name = "blk.0.ffn_down.weight"
    values = checkpoint.weights[name].read_f32()
    noise = np.random.default_rng(1).normal(0, values.std() / 4, values.shape)
    rows = np.ascontiguousarray(values + noise, np.float32)
    weight = _core.Weight.of_array(
        get("F32").storage.id, rows.shape[1], rows.view(np.uint8).reshape(len(rows), -1)
    )
    engine.replace({name: weight})
    return engine


@pytest.mark.parametrize("most", [1, 4, 15])
@pytest.mark.parametrize("kind", ["lookup", "draft", "nonsense"])
def test_the_same_bits(
    engine: Recorded, tight: Engine, other: Engine, tokenizer: Tokenizer, kind: str, most: int
) -> None:
    requests = some(tokenizer)
    expected, plain = run(engine, tokenizer, requests)
    rng = random.Random(1)

    def drafter() -> Drafter:
        if kind == "lookup":
            return Lookup()
        if kind == "draft":
            return DraftModel(other, engine.vocab_size)
        return Told(lambda _: [rng.randrange(4096) for _ in range(rng.randrange(16))])

    speculator = Speculator(drafter(), most, Free())
    found, batch = run(engine, tokenizer, requests, speculation=speculator)
    assert found == expected
    stats = batch.stats()
    assert stats.drafted > stats.accepted
    if kind != "nonsense":
        assert stats.accepted > (5 if kind == "lookup" else 20)
        assert stats.steps < plain.stats().steps
    assert other.kv.free_blocks == other.kv.count
    # Where requests make room for each other, and a step has little.
    crowded, batch = run(
        tight,
        tokenizer,
        requests * 2,
        speculation=Speculator(drafter(), most, Free()),
        limits=Limits(12, 100, 24),
    )
    assert crowded == expected * 2
    alone = [run(tight, tokenizer, [r], speculation=speculator)[0][0] for r in requests]
    assert alone == expected


def test_a_draft_model_draws_with_the_same_numbers(engine: Recorded, tokenizer: Tokenizer) -> None:
    """Two models with one distribution agree always, however it is drawn from."""
    requests = [
        Request(tokenizer.encode("Once"), Sampling(temperature=1.0, seed=i), 25, ignore_end=True)
        for i in range(4)
    ]
    drafter = DraftModel(engine, engine.vocab_size)  # type: ignore[arg-type]
    _, batch = run(engine, tokenizer, requests, speculation=Speculator(drafter, 6, Free()))
    stats = batch.stats()
    assert stats.accepted == stats.drafted > 60


def test_a_draft_model_without_room(engine: Recorded, checkpoint: Any, tokenizer: Any) -> None:
    small = load_engine(checkpoint, threads=1, kv_tokens=64)
    requests = some(tokenizer)
    expected, _ = run(engine, tokenizer, requests)
    speculator = Speculator(DraftModel(small, engine.vocab_size), 4, Free())
    assert run(engine, tokenizer, requests, speculation=speculator)[0] == expected
    assert small.kv.free_blocks == small.kv.count


def test_sampling_keeps_the_distribution(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Chi-square of pairs of tokens against their exact probabilities."""
    chances = {300: (0.5, 0.3, 0.2), 301: (0.1, 0.2, 0.7), 302: (0.4, 0.4, 0.2), 5: (0.6, 0.3, 0.1)}
    names = [300, 301, 302]

    def rows(tokens: list[int]) -> npt.ArrayLike:
        row = np.full(checkpoint.config.vocab_size, -80, np.float32)
        row[names] = np.log(chances[tokens[-1]])
        return row

    engine = SpokenEngine(checkpoint.config.vocab_size, 1024, rows)
    count = 4000
    sampling = Sampling()
    requests = [Request([5], replace(sampling, seed=i), 3, ignore_end=True) for i in range(count)]
    speculator = Speculator(Told(lambda tokens: [301, 302]), 2, Free())
    limits = Limits(100, 100, 512)  # guesses are made where nobody waits
    seen: Counter[tuple[int, ...]] = Counter()
    for at in range(0, count, 40):
        part = requests[at : at + 40]
        found, _ = run(engine, tokenizer, part, speculation=speculator, limits=limits)
        seen.update(c.tokens for c in found)
    assert speculator.counts[1] > 500
    statistic = 0.0
    for a in names:
        for b in names:
            for c in names:
                p = chances[5][a - 300] * chances[a][b - 300] * chances[b][c - 300]
                statistic += (seen[a, b, c] - count * p) ** 2 / (count * p)
    assert sum(seen.values()) == count
    assert statistic < 54.1  # 26 degrees of freedom, one in a thousand


@pytest.mark.parametrize("costs", [False, True])
def test_what_does_not_pay_ends(checkpoint: Checkpoint, tokenizer: Tokenizer, costs: bool) -> None:
    def rows(tokens: list[int]) -> npt.ArrayLike:
        row = np.zeros(checkpoint.config.vocab_size, np.float32)
        row[300 + len(tokens)] = 9
        return row

    class Linear(Free):
        """Each token takes a tenth of a step more."""

        def seconds(self, tokens: int) -> float:
            return 1.0 + 0.1 * tokens

    def asked(tell: Callable[[list[int]], list[int]], requests: int) -> list[int]:
        engine = SpokenEngine(checkpoint.config.vocab_size, 1024, rows)
        drafter = Told(tell, costs)
        work = [Request([i + 5], GREEDY, 100, ignore_end=True) for i in range(requests)]
        run(
            engine,
            tokenizer,
            work,
            speculation=Speculator(drafter, 8, Linear()),
            limits=Limits(64, 64, 512),
        )
        return drafter.asked

    right = asked(lambda tokens: [300 + len(tokens) + i for i in range(8)], 1)
    assert right[-2] == 8
    assert len(right) < 20
    wrong = asked(lambda tokens: [7] * 8, 1)
    assert sum(wrong[:10]) > 10
    # Free guesses are compared and not run; those that cost are tried more and more seldom.
    assert set(wrong[30:]) == {1} if not costs else len(wrong) < 40
    # With 40 tokens in a step time is dear: to be right every other time is not enough. For one
    # text it is.
    half = [asked(lambda tokens: [300 + len(tokens) if len(tokens) % 2 else 7], n) for n in (1, 40)]
    assert sum(half[1]) / 40 < sum(half[0]) * 0.8


def test_a_step_has_room_for_its_logits(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    rows = 0

    def row(tokens: list[int]) -> npt.ArrayLike:
        nonlocal rows
        rows += 1
        return np.eye(1, checkpoint.config.vocab_size, 300)[0]

    engine = SpokenEngine(checkpoint.config.vocab_size, 1024, row)
    speculator = Speculator(Told(lambda _: [300] * 15), 15, Free())
    batch = Batch(engine, tokenizer, context=1024, speculation=speculator)  # type: ignore[arg-type]
    for i in range(50):
        batch.add(Request([i + 5], GREEDY, 20, ignore_end=True))
    most = 0
    while not batch.idle:
        rows = 0
        batch.step()
        most = max(most, rows)
    assert most == 128


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 5), st.data())
def test_lookup_against_looking(tokens: list[int], count: int, data: st.DataObject) -> None:
    index = _Index((4, 3, 2))
    for cut in sorted(data.draw(st.lists(st.integers(1, len(tokens)), max_size=4))):
        index.following(tokens[:cut], 1)  # what was indexed before changes nothing
    expected: list[int] = []
    for size in (4, 3, 2):
        ends = [e for e in range(size, len(tokens)) if tokens[e - size : e] == tokens[-size:]]
        if len(tokens) >= size and ends:
            whole = list(tokens)
            for i in range(count):
                whole.append(whole[ends[-1] + i])
            expected = whole[len(tokens) :]
            break
    assert index.following(tokens, count) == expected


def test_pace() -> None:
    pace = Pace()
    assert pace.seconds(3) == 0
    pace.note(1, 1.0)
    assert 1.0 < pace.seconds(4) < 1.5
    pace.note(9, 3.0)
    assert pace.seconds(5) == pytest.approx(2.0)
    pace.note(9, 1.0)
    assert 1.0 < pace.seconds(9) < 3.0
    for _ in range(1100):
        pace.note(1, 1.0)
    assert not pace.known(9)


def test_vocabularies(tokenizer: Tokenizer) -> None:
    check_vocabulary(tokenizer, tokenizer)
    d = tokenizer.definition
    changed = replace(d, tokens=[*d.tokens[:7], "another", *d.tokens[8:]])

    class Another:
        definition = changed

    with pytest.raises(UsageError, match="token 7 is another"):
        check_vocabulary(tokenizer, Another())  # type: ignore[arg-type]
