"""The scheduler against an engine that only remembers which token lies where."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.scheduler import (
    BlockPool,
    Limits,
    NeverFitsError,
    QueueFullError,
    Request,
    Scheduler,
    State,
    Step,
    block_keys,
)

BLOCK = 4


def following(tokens: Sequence[int]) -> int:
    """The only token that may follow: depends on all before it."""
    return hash(tuple(tokens)) % 97


class Memory:
    """Checks that every entry finds exactly its own text in its blocks, and writes the rest."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.slots: dict[tuple[int, int], int] = {}
        self.computed = 0

    def run(self, step: Step, rng: random.Random | None = None) -> dict[Request, list[int]]:
        """Run a step; what was drawn."""
        for old, new in step.copies:
            for i in range(BLOCK):
                if (old, i) in self.slots:
                    self.slots[new, i] = self.slots[old, i]
        drawn: dict[Request, list[int]] = {}
        writes: set[tuple[int, int]] = set()
        for entry in step.entries:
            text = [self.slots[self._slot(entry.blocks, i)] for i in range(entry.start)]
            known = entry.request.tokens
            assert text == known[: entry.start], "another text lies in its blocks"
            for i, token in enumerate(entry.tokens, entry.start):
                slot = self._slot(entry.blocks, i)
                assert slot not in writes, "two write to one place"
                assert self.pool.references(slot[0]) == 1 or self.slots.get(slot) == token
                writes.add(slot)
                self.slots[slot] = token
            self.computed += len(entry.tokens)
            if entry.draws:
                text = [*known]
                guesses = entry.tokens[len(entry.tokens) - entry.drafted :]
                accepted = [following(text)]
                for guess in guesses:
                    if guess != accepted[-1]:
                        break
                    accepted.append(following([*text, *accepted]))
                drawn[entry.request] = accepted
        return drawn

    @staticmethod
    def _slot(blocks: Sequence[int], position: int) -> tuple[int, int]:
        return blocks[position // BLOCK], position % BLOCK


def held(pool: BlockPool, requests: Sequence[Request]) -> None:
    """Every reference belongs to somebody."""
    counts = [0] * pool.count
    for request in requests:
        for block in request.blocks:
            counts[block] += 1
    assert counts == [pool.references(b) for b in range(pool.count)]
    assert pool.free == sum(1 for c in counts if c == 0)


def finish(scheduler: Scheduler, requests: Sequence[Request], steps: int = 10_000) -> Memory:
    """Run until nothing is left; checks at every step that nothing leaks."""
    memory = Memory(scheduler.pool)
    for _ in range(steps):
        step = scheduler.schedule()
        if step is None:
            break
        scheduler.complete(memory.run(step))
        for request in requests:
            if len(request.tokens) >= request.most_tokens:
                scheduler.end(request)
        held(scheduler.pool, requests)
    assert all(r.state is State.ENDED for r in requests)
    assert scheduler.pool.used == 0
    return memory


def text(prompt: Sequence[int], length: int) -> list[int]:
    """What a request must have written."""
    tokens = list(prompt)
    while len(tokens) < length:
        tokens.append(following(tokens))
    return tokens


@st.composite
def workloads(draw: st.DrawFn) -> tuple[int, Limits, list[tuple[list[int], int, str]], int]:
    running = draw(st.integers(1, 6))
    limits = Limits(running, 100, draw(st.integers(running, 24)))
    blocks = draw(st.integers(6, 20))
    shared = draw(st.lists(st.integers(0, 3), max_size=12))
    requests = []
    for _ in range(draw(st.integers(1, 10))):
        own = draw(st.lists(st.integers(0, 3), min_size=1, max_size=10))
        prompt = shared[: draw(st.integers(0, len(shared)))] + own
        most = min(len(prompt) + draw(st.integers(1, 14)), blocks * BLOCK)
        if most > len(prompt):
            requests.append((prompt, most, draw(st.sampled_from("abc"))))
    return blocks, limits, requests, draw(st.integers(0, 2**32))


@settings(max_examples=300, deadline=None)
@given(workloads())
def test_everyone_gets_their_own_text(
    workload: tuple[int, Limits, list[tuple[list[int], int, str]], int],
) -> None:
    """Whatever the order, preemption, sharing, guessing and cancelling: nothing mixed or lost."""
    blocks, limits, wanted, seed = workload
    rng = random.Random(seed)
    scheduler = Scheduler(BlockPool(blocks, BLOCK), limits)
    memory = Memory(scheduler.pool)
    coming = [Request(list(p), most, user) for p, most, user in wanted]
    everyone: list[Request] = []
    prompts = {id(r): list(r.tokens) for r in coming}
    cancelled: set[int] = set()
    for _ in range(5_000):
        while coming and rng.random() < 0.5:
            everyone.append(coming.pop())
            scheduler.add(everyone[-1])
        step = scheduler.schedule()
        if step is None:
            if not coming:
                break
            continue
        assert step.tokens <= limits.step_tokens
        assert len({id(e.request) for e in step.entries}) == len(step.entries)
        if everyone and rng.random() < 0.05:
            victim = rng.choice(everyone)
            if victim.state is not State.ENDED:
                cancelled.add(id(victim))
            scheduler.end(victim)
        if rng.random() < 0.05:
            scheduler.abandon()
        else:
            scheduler.complete(memory.run(step))
        for request in everyone:
            if request.state is State.ENDED:
                continue
            if len(request.tokens) >= request.most_tokens:
                scheduler.end(request)
            elif rng.random() < 0.3:
                right = following(request.tokens)
                request.draft = [rng.choice((right, 5)) for _ in range(rng.randrange(4))]
        held(scheduler.pool, everyone)
    assert not coming
    assert all(r.state is State.ENDED for r in everyone)
    assert scheduler.pool.used == 0
    for request in everyone:
        whole = text(prompts[id(request)], request.most_tokens)
        if id(request) in cancelled:
            assert request.tokens == whole[: len(request.tokens)]
        else:
            assert request.tokens == whole


def test_a_common_beginning_is_computed_once() -> None:
    """Also when all come at the same moment and none of it was there."""
    scheduler = Scheduler(BlockPool(200, BLOCK), Limits(32, 100, 64))
    prefix = list(range(40))
    requests = [Request([*prefix, 100 + i], 44) for i in range(16)]
    for request in requests:
        scheduler.add(request)
    memory = finish(scheduler, requests)
    assert memory.computed <= 40 + 16 * 3
    assert scheduler.hits == 15 * 40


def test_salted_texts_are_not_shared() -> None:
    """What one tenant wrote cannot be found by another, not even by timing."""
    scheduler = Scheduler(BlockPool(200, BLOCK), Limits(32, 100, 64))
    requests = [Request([*range(40), i], 44, salt=bytes([i])) for i in range(2)]
    for request in requests:
        scheduler.add(request)
    finish(scheduler, requests)
    assert scheduler.hits == 0


def test_a_fork_copies_what_it_writes_to() -> None:
    """Two answers to one prompt share its blocks, the last, half full one by copying."""
    scheduler = Scheduler(BlockPool(50, BLOCK), Limits(8, 100, 64))
    memory = Memory(scheduler.pool)
    parent = Request(list(range(10)), 16)
    scheduler.add(parent)
    step = scheduler.schedule()
    assert step is not None
    scheduler.complete(memory.run(step))
    child = Request([*range(10), 50], 16)
    scheduler.fork(parent, child)
    assert scheduler.pool.used == 3
    step = scheduler.schedule()
    assert step is not None
    assert len(step.copies) == 1
    assert step.tokens == 2
    scheduler.complete(memory.run(step))
    assert scheduler.pool.used == 4
    for _ in range(20):
        for request in (parent, child):
            if len(request.tokens) >= request.most_tokens:
                scheduler.end(request)
        step = scheduler.schedule()
        if step is None:
            break
        scheduler.complete(memory.run(step))
    assert parent.tokens == text(range(10), 16)
    assert child.tokens == text([*range(10), 50], 16)
    assert scheduler.pool.used == 0


def test_a_long_prompt_keeps_no_writer_waiting() -> None:
    """Who writes gets a token in every step while others read."""
    scheduler = Scheduler(BlockPool(300, BLOCK), Limits(4, 100, 16))
    memory = Memory(scheduler.pool)
    writer = Request([1], 60)
    scheduler.add(writer)
    step = scheduler.schedule()
    assert step is not None
    scheduler.complete(memory.run(step))
    scheduler.add(Request(list(range(400)), 401))
    for _ in range(20):
        before = len(writer.tokens)
        step = scheduler.schedule()
        assert step is not None
        assert step.tokens == 16
        scheduler.complete(memory.run(step))
        assert len(writer.tokens) == before + 1


def test_users_share_fairly() -> None:
    """One who asks a hundred times does not keep out one who asks once."""
    scheduler = Scheduler(BlockPool(400, BLOCK), Limits(4, 1000, 64))
    many = [Request([i, 7, 8, 9], 24, "many") for i in range(100)]
    for request in many:
        scheduler.add(request)
    memory = Memory(scheduler.pool)
    for _ in range(30):
        step = scheduler.schedule()
        assert step is not None
        scheduler.complete(memory.run(step))
        for request in many:
            if len(request.tokens) >= request.most_tokens:
                scheduler.end(request)
    one = Request([200, 7], 10, "one")
    scheduler.add(one)
    for _ in range(32):  # the answers before it, and its own
        step = scheduler.schedule()
        assert step is not None
        scheduler.complete(memory.run(step))
        for request in (*many, one):
            if len(request.tokens) >= request.most_tokens:
                scheduler.end(request)
        if one.state is State.ENDED:
            break
    assert one.state is State.ENDED


def test_limits_are_said() -> None:
    """What cannot be, at once; what cannot be now, as such."""
    scheduler = Scheduler(BlockPool(4, BLOCK), Limits(2, 2, 8))
    with pytest.raises(NeverFitsError, match="5 blocks"):
        scheduler.add(Request([1], 18))
    scheduler.add(Request([1], 17))
    scheduler.add(Request([1], 8))
    with pytest.raises(QueueFullError):
        scheduler.add(Request([1], 8))
    for bad in (Request([], 4), Request([1, 2], 2)):
        with pytest.raises(ValueError, match="room"):
            scheduler.add(bad)
    with pytest.raises(ValueError, match="everyone"):
        Limits(9, 1, 8)


def test_keys_depend_on_all_before_them() -> None:
    """The same block behind another text is another content."""
    a, b = block_keys([1, 2, 3, 4, 5, 6, 7, 8], 4), block_keys([0, 2, 3, 4, 5, 6, 7, 8], 4)
    assert len(a) == 2
    assert not set(a) & set(b)
    assert block_keys([1, 2, 3, 4, 5, 6, 7, 8, 9], 4, known=a[:1]) == a
    assert set(block_keys([1, 2, 3, 4], 4, b"x")).isdisjoint(a)


def test_it_imports_no_tensor_library() -> None:
    """Neither NumPy nor the core."""
    code = (
        "import sys, kvant.scheduler\n"
        "print([m for m in ('numpy', 'kvant._core', 'kvant.engine') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
