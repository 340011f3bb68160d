"""Blocks of the cache: nothing is lost, nothing is shared, nothing is half done."""

from __future__ import annotations

import gc
import threading
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvant.engine import Engine, KvBlocks, KvSequence, load_engine
from kvant.errors import CacheFullError, UsageError

BLOCK = KvBlocks(1).block_tokens


def blocks_of(sequence: KvSequence) -> list[int]:
    return [int(b) for b in sequence.table(sequence.block_count)]


class Pool(RuleBasedStateMachine):
    """Sequences that grow, are cut, freed and dropped, in a cache that is often full."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = KvBlocks(12)
        self.sequences: list[KvSequence] = []

    def index(self, data: st.DataObject) -> int:
        """Of a sequence; one that was drawn itself would be held for good."""
        return data.draw(st.integers(0, len(self.sequences) - 1))

    @rule()
    def begin(self) -> None:
        self.sequences.append(KvSequence(self.pool, 10_000))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=st.integers(1, 5 * BLOCK))
    def grow(self, data: st.DataObject, tokens: int) -> None:
        sequence = self.sequences[self.index(data)]
        before = blocks_of(sequence), self.pool.free_blocks, sequence.length
        missing = sequence.missing_blocks(tokens)
        if missing > self.pool.free_blocks:
            with pytest.raises(CacheFullError, match=r"tokens free, .* more are needed"):
                sequence.reserve(tokens)
            assert before == (blocks_of(sequence), self.pool.free_blocks, sequence.length)
            return
        sequence.reserve(tokens)
        assert blocks_of(sequence)[: len(before[0])] == before[0]
        sequence.length += tokens

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        sequence = self.sequences[self.index(data)]
        kept = data.draw(st.integers(0, sequence.length))
        before = blocks_of(sequence)
        sequence.truncate(kept)
        assert blocks_of(sequence) == before[: -(-kept // BLOCK)]
        for wrong in (-1, kept + 1):
            with pytest.raises(ValueError, match="cannot be cut"):
                sequence.truncate(wrong)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), how=st.sampled_from(["free", "leave", "drop", "cycle"]))
    def end(self, data: st.DataObject, how: str) -> None:
        index = self.index(data)
        free, held = self.pool.free_blocks, self.sequences[index].block_count
        if how == "free":
            self.sequences[index].free()
        elif how == "leave":
            with self.sequences[index]:
                pass
        sequence = self.sequences.pop(index)
        if how == "cycle":
            ring: list[object] = [sequence]
            ring.append(ring)
            del ring, sequence
            gc.collect()
        else:
            del sequence
        assert self.pool.free_blocks == free + held

    @invariant()
    def nothing_is_lost_or_shared(self) -> None:
        held = [b for s in self.sequences for b in blocks_of(s)]
        assert len(held) == len(set(held))
        assert set(held) <= set(range(self.pool.count))
        assert self.pool.free_blocks == self.pool.count - len(held)
        assert self.pool.free_tokens == self.pool.free_blocks * BLOCK

    @invariant()
    def at_most_the_last_block_is_partly_filled(self) -> None:
        for s in self.sequences:
            assert s.block_count == -(-s.length // BLOCK)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Interrupted(list[int]):
    """A list at each use of which a sequence is dropped, as the collector may do at any time."""

    waiting: ClassVar[list[KvSequence]] = []

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if self.waiting:
            self.waiting.pop()
        return found

    def pop(self, index: Any = -1) -> int:
        found = super().pop(index)
        if self.waiting:
            self.waiting.pop()
        return found


def test_a_sequence_collected_while_blocks_are_taken() -> None:
    pool = KvBlocks(30)
    for _ in range(3):
        sequence = KvSequence(pool, 10_000)
        sequence.reserve(3 * BLOCK)
        Interrupted.waiting.append(sequence)
    del sequence
    pool._blank = Interrupted(pool._blank)
    held = [b for _ in range(4) for b in pool.take(5)]
    assert not Interrupted.waiting
    assert sorted(held + pool.take(10)) == list(range(30))


def test_sequences_dropped_by_other_threads() -> None:
    pool = KvBlocks(64)
    stop = threading.Event()
    queue: list[KvSequence] = []

    def drop() -> None:
        while not stop.is_set() or queue:
            if queue:
                queue.pop()

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        for _ in range(3000):
            sequence = KvSequence(pool, 10_000)
            try:
                sequence.reserve(3 * BLOCK)
            except CacheFullError:
                continue
            assert len(set(blocks_of(sequence))) == 3
            queue.append(sequence)
            del sequence
    finally:
        stop.set()
        thread.join()
    assert sorted(pool.take(64)) == list(range(64))


@pytest.fixture(scope="module")
def small(checkpoint: object) -> Engine:
    return load_engine(checkpoint, threads=1, kv_tokens=4 * BLOCK)  # type: ignore[arg-type]


def test_a_full_cache_changes_nothing(small: Engine) -> None:
    a, b, c = (small.sequence() for _ in range(3))
    small.step([(a, [1] * 40), (b, [2] * 10)])
    before = [(s.length, blocks_of(s)) for s in (a, b, c)]
    for work in ([(c, [3] * 40)], [(a, [1] * 25), (b, [2] * 23)], [(b, [1]), (c, [2] * 33)]):
        with pytest.raises(CacheFullError, match="Free a sequence, use shorter texts, or load"):
            small.step(work)
        assert before == [(s.length, blocks_of(s)) for s in (a, b, c)]
    small.step([(c, [3] * 32)])  # exactly what is left
    assert small.kv.free_tokens == 0
    a.free()
    small.step([(b, [2] * 50)])
    del a, b, c, work
    assert small.kv.free_tokens == small.kv.capacity_tokens == 4 * BLOCK


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4))
def test_a_step_takes_no_more_than_it_needs(small: Engine, lengths: list[int]) -> None:
    sequences = [small.sequence() for _ in lengths]
    work = [(s, [5] * n) for s, n in zip(sequences, lengths, strict=True)]
    need = sum(-(-n // BLOCK) for n in lengths)
    if need > 4:
        with pytest.raises(CacheFullError):
            small.step(work)
        need = 0
    else:
        small.step(work)
    assert small.kv.free_blocks == 4 - need
    for s in sequences:
        s.free()


def test_a_sequence_of_another_engine(checkpoint: object, small: Engine) -> None:
    other = load_engine(checkpoint, threads=1, kv_tokens=BLOCK)  # type: ignore[arg-type]
    with other.sequence() as sequence, pytest.raises(UsageError, match="another engine"):
        small.step([(sequence, [1])])
    with small.sequence() as sequence, pytest.raises(UsageError, match="named twice"):
        small.step([(sequence, [1]), (sequence, [2])])
    assert small.kv.free_blocks == 4
