"""Continuous batching: after every step requests may join, leave, or make room for others.

The rules:

- A step computes at most ``step_tokens`` tokens. Requests that write come first, one token each
  (and their drafts); what is left goes to prompts, in pieces (chunked prefill).
- A request takes blocks as it grows. When there are none, the one that came last makes room: its
  blocks are released, and it is computed again when there is room (its full blocks may still be
  found in the cache then). The one that came first always goes on, so all of them end.
- A prompt whose beginning is in the cache shares those blocks. A prompt whose next block is just
  being computed for another request waits for it instead of computing it too.
- Who waits is admitted in fair turns between users; those who had to make room, before all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvant.scheduler.blocks import BlockPool, Key, block_keys
from kvant.scheduler.fairness import READ, WRITTEN, FairQueue
from kvant.scheduler.request import Entry, Request, State, Step

__all__ = ["Limits", "NeverFitsError", "QueueFullError", "Scheduler"]


class QueueFullError(Exception):
    """As many requests wait as may; try again later."""


class NeverFitsError(Exception):
    """A request would not fit even alone: it needs ``needed`` blocks of ``there``."""

    def __init__(self, needed: int, there: int) -> None:
        super().__init__(f"it may need {needed} blocks of the cache, which has {there}")
        self.needed, self.there = needed, there


@dataclass(frozen=True, slots=True)
class Limits:
    """How much at once. ``step_tokens`` is at least ``running``.

    With 256 tokens a step products run as fast as they can, and whoever writes or comes meanwhile
    waits half as long for the step to end as with 512.
    """

    running: int = 64
    waiting: int = 1024
    step_tokens: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.running <= self.step_tokens:
            raise ValueError("a step must have room for a token of everyone who runs")


class Scheduler:
    """Decides what each step computes. Not for several threads at once."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self.running: list[Request] = []
        self._queue = FairQueue()
        self._resumed: deque[Request] = deque()
        self._arrivals = 0
        self._step: Step | None = None
        self.hits = self.asked = 0
        """Tokens of prompts found in the cache, and tokens of prompts in all."""

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue) + len(self._resumed)

    # ---- coming and going ------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take a request.

        Raises:
            ValueError: it has no tokens, or no room for one more.
            NeverFitsError: the whole cache is too small for it.
            QueueFullError: too many wait.
        """
        if not request.tokens or request.most_tokens <= len(request.tokens):
            raise ValueError("a request has tokens, and room for one more")
        # The last token written is never computed.
        needed = self.pool.blocks_for(request.most_tokens - 1)
        if needed > self.pool.count:
            raise NeverFitsError(needed, self.pool.count)
        if self.waiting >= self.limits.waiting:
            raise QueueFullError(f"{self.waiting} requests wait already")
        self._arrivals += 1
        request.order, request.state = self._arrivals, State.WAITING
        self._queue.arrive(request)

    def end(self, request: Request) -> None:
        """A request is done, or nobody wants it any more; at any time, also twice."""
        if request.state is State.ENDED:
            return
        if request.state is State.RUNNING:
            self.running.remove(request)
        elif request in self._resumed:
            self._resumed.remove(request)
        else:
            self._queue.remove(request)
        request.state = State.ENDED
        self._queue.leave(request.user)
        if not request.in_step:  # otherwise its blocks are being written to
            self._release(request, 0)

    def fork(self, parent: Request, child: Request) -> None:
        """Take a request that begins as ``parent`` does, sharing what is computed of it.

        Both are told apart from the first token on that differs; a block they share is copied when
        one of them writes to it. Where no more may run at once, or ``parent`` does not, the child
        waits like any other.

        Raises:
            As `add`.
        """
        common = 0
        if parent.state is State.RUNNING and not parent.in_step:
            same = zip(parent.tokens[: parent.computed], child.tokens[:-1], strict=False)
            differs = (i for i, (a, b) in enumerate(same) if a != b)
            common = next(differs, min(parent.computed, len(child.tokens) - 1))
        self.add(child)
        if not common or len(self.running) >= self.limits.running:
            return
        if child.salt != parent.salt:
            return
        self._queue.remove(child)
        child.blocks = parent.blocks[: self.pool.blocks_for(common)]
        self.pool.refer(child.blocks)
        child.computed = child.cached = common
        child.published = min(parent.published, common // self.pool.block_tokens)
        child.keys = parent.keys[: child.published]
        child.state = State.RUNNING
        self.hits += common
        self.asked += child.prompt_tokens
        self.running.append(child)

    # ---- a step ----------------------------------------------------------------------------------

    def schedule(self) -> Step | None:
        """What to run now; None where there is nothing to do. Then `complete` or `abandon`."""
        if self._step is not None:
            raise ValueError("the step before is not completed")
        left = self.limits.step_tokens
        entries: list[Entry] = []
        copies: list[tuple[int, int]] = []
        made_room = False
        # Those who write before those who read, so that a long prompt keeps nobody waiting.
        order = sorted(self.running, key=lambda r: (r.pending > 1, r.order))
        writers = sum(1 for r in order if r.pending == 1)
        for request in order:
            writers -= request.pending == 1
            # Guesses take nothing from those who come after.
            room = left - max(0, writers)
            if request.state is not State.RUNNING or room <= 0:
                continue
            made_room |= self._grow(request, room, copies)
            if request.state is State.RUNNING:
                entries.append(self._entry(request, room))
                left -= len(entries[-1].tokens)
        if not made_room:
            self._admit(left, entries)
        if not entries:
            return None
        self._step = Step(tuple(entries), tuple(copies))
        return self._step

    def _count(self, request: Request, room: int) -> tuple[int, int]:
        """Tokens of a request in the next step, and guesses behind them."""
        count = min(request.pending, room)
        if count < request.pending:
            return count, 0
        most = min(room - count, request.most_tokens - len(request.tokens) - 1)
        return count, max(0, min(len(request.draft), most))

    def _entry(self, request: Request, room: int) -> Entry:
        count, drafted = self._count(request, room)
        start = request.computed
        tokens = (*request.tokens[start : start + count], *request.draft[:drafted])
        request.in_step = True
        draws = count == request.pending
        return Entry(request, tokens, start, tuple(request.blocks), draws, drafted)

    def _grow(self, request: Request, room: int, copies: list[tuple[int, int]]) -> bool:
        """Get the blocks for its next tokens; whether anyone had to make room for it."""
        pool, made_room = self.pool, False
        while True:
            count, drafted = self._count(request, room)
            at, partly = divmod(request.computed, pool.block_tokens)
            copied = bool(partly) and pool.references(request.blocks[at]) > 1
            missing = pool.blocks_for(request.computed + count + drafted) - len(request.blocks)
            missing = max(0, missing)
            if missing + copied <= pool.free:
                if copied:  # a fork shares the block it would write to
                    (new,) = pool.take(1)
                    copies.append((request.blocks[at], new))
                    pool.release([request.blocks[at]])
                    request.blocks[at] = new
                request.blocks += pool.take(missing)
                return made_room
            if request.draft:  # guesses are not worth anybody's place
                request.draft = []
                continue
            # Who is in the step already keeps its blocks.
            last = max((r for r in self.running if not r.in_step), key=lambda r: r.order)
            self._preempt(last)
            made_room = True
            if last is request:
                return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        request.state = State.WAITING
        request.preemptions += 1
        request.draft = []
        self._release(request, 0)
        # Who came first resumes first.
        at = sum(1 for r in self._resumed if r.order < request.order)
        self._resumed.insert(at, request)

    def _admit(self, left: int, entries: list[Entry]) -> None:
        busy = self._being_computed()
        if left == 0 or len(self.running) >= self.limits.running:
            return
        for request in [*self._resumed, *self._queue.turn()]:
            if left == 0 or len(self.running) >= self.limits.running:
                return
            request.keys = block_keys(
                request.tokens, self.pool.block_tokens, request.salt, request.keys
            )
            # One token at least is computed: what follows it is what is asked.
            usable = request.keys[: (len(request.tokens) - 1) // self.pool.block_tokens]
            found = self.pool.known(usable)
            if found < len(usable) and usable[found] in busy:
                continue
            shared = usable[:found]
            computed = found * self.pool.block_tokens
            count = min(len(request.tokens) - computed, left)
            needed = self.pool.blocks_for(computed + count) - found
            spare = 0 if not self.running else len(self.running)  # room for who runs to go on
            if self.pool.free_without(shared) < needed + spare:
                return  # nobody overtakes: what is small would starve what is large
            if request in self._resumed:
                self._resumed.remove(request)
            else:
                self._queue.remove(request)
            request.blocks = self.pool.share(shared) + self.pool.take(needed)
            request.computed, request.published = computed, found
            request.state, request.draft = State.RUNNING, []
            if request.cached is None:
                request.cached = computed
                self.hits += computed
                self.asked += request.prompt_tokens
            self.running.append(request)
            entries.append(self._entry(request, left))
            left -= count
            busy.update(usable[found : self.pool.blocks_for(len(request.tokens))])

    def _being_computed(self) -> set[Key]:
        """Contents that requests which read their prompts will have."""
        busy: set[Key] = set()
        for request in self.running:
            if request.computed < request.prompt_tokens:
                busy.update(request.keys[request.published :])
        return busy

    def complete(self, drawn: Mapping[Request, Sequence[int]]) -> None:
        """The step has run.

        Args:
            drawn: for each entry that draws, the tokens that follow: one, and before it those of
                its draft that were right. Entries whose request has ended may be left out.
        """
        for entry in self._finish_step():
            request = entry.request
            if request.state is State.ENDED:
                self._release(request, 0)
                continue
            new = list(drawn[request]) if entry.draws else []
            if entry.draws and not 1 <= len(new) <= entry.drafted + 1:
                raise ValueError(f"{len(new)} tokens for {entry.drafted} guesses")
            wrong = entry.drafted - max(0, len(new) - 1)
            request.computed = entry.start + len(entry.tokens) - wrong
            request.tokens += new
            request.draft = []
            self._publish(request)
            self._release(request, self.pool.blocks_for(request.computed))
            read = len(entry.tokens) - entry.drafted - (1 if entry.draws else 0)
            self._queue.serve(request.user, READ * max(0, read) + WRITTEN * len(new))

    def abandon(self) -> None:
        """The step failed; its requests have lost nothing, and may be ended or tried again."""
        for entry in self._finish_step():
            if entry.request.state is State.ENDED:
                self._release(entry.request, 0)

    def _finish_step(self) -> tuple[Entry, ...]:
        if self._step is None:
            raise ValueError("there is no step to complete")
        entries, self._step = self._step.entries, None
        for entry in entries:
            entry.request.in_step = False
        return entries

    def _publish(self, request: Request) -> None:
        size = self.pool.block_tokens
        full = request.computed // size
        if full > request.published:
            if full > len(request.keys):
                request.keys = block_keys(request.tokens, size, request.salt, request.keys)
            for i in range(request.published, full):
                self.pool.publish(request.blocks[i], request.keys[i])
            request.published = full

    def _release(self, request: Request, keep: int) -> None:
        self.pool.release(request.blocks[keep:])
        del request.blocks[keep:]
        if not keep:
            request.computed = request.published = 0
