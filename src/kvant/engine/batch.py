"""Requests that come and go, all in one batch: the scheduler's decisions, run on the engine.

After every step requests may join or leave. What a request gets does not depend on its neighbours,
on how its prompt was cut, on what the cache already had of it, or on whether it had to make room:
the engine's arithmetic does not depend on what else is in a step, blocks found in the cache hold
the bits that would be computed again, and each request draws with its own random numbers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kvant.engine.answer import Answer, Request
from kvant.engine.constrain import Grammars, Matcher
from kvant.engine.results import Piece, Usage
from kvant.engine.sampling import Draw, Turn
from kvant.engine.speculative import Speculator
from kvant.engine.steps import Floats, Steps
from kvant.engine.stopping import end_tokens
from kvant.errors import CacheFullError, ContextError, DataError, KvantError, UsageError
from kvant.scheduler import Entry, Limits, NeverFitsError, QueueFullError, Scheduler, Step
from kvant.scheduler import Request as Scheduled
from kvant.tokenizer.build import Tokenizer

__all__ = ["Batch", "Event", "Limits", "QueueFullError", "Request", "Stats", "check_length"]

Event: TypeAlias = tuple[int, Piece | KvantError]
"""What came of a step for one request: a piece of its text, or the error that ended it."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a batch is doing, and has done so far.

    Attributes:
        running: requests in the batch.
        waiting: requests that wait.
        blocks_used: blocks of the cache that requests hold.
        blocks_total: blocks of the cache.
        prompt_tokens: tokens of prompts of requests that began.
        cached_tokens: those of them that the cache had.
        computed_tokens: tokens that went through the model, once more after making room too.
        written_tokens: tokens of answers.
        preemptions: how often a request made room for another.
        drafted: guesses that were checked.
        accepted: those of them that were right.
        steps: steps that were run.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks_total: int
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    written_tokens: int
    preemptions: int
    steps: int
    drafted: int = 0
    accepted: int = 0


class Batch:
    """Answers any number of requests together. Not for several threads at once.

    Args:
        engine: runs the model.
        tokenizer: the model's.
        context: most tokens of a prompt and its answer together.
        limits: how many at once.
        speculation: guesses tokens where that pays; texts are the same with and without.
        grammars: for requests with constraints; made here where there is none.
    """

    def __init__(
        self,
        engine: Steps,
        tokenizer: Tokenizer,
        *,
        context: int,
        limits: Limits | None = None,
        speculation: Speculator | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        asked = limits or Limits()
        most = min(asked.step_tokens, engine.step_tokens)
        self._engine, self._tokenizer, self._context = engine, tokenizer, context
        self._limits = Limits(min(asked.running, most), asked.waiting, most)
        self._scheduler = Scheduler(engine.kv, self._limits)
        self._speculation = speculation
        self._grammars = grammars or Grammars(tokenizer, engine.vocab_size)
        self._ends = end_tokens(tokenizer.definition)
        self._numbers = itertools.count()
        self._scheduled: dict[int, Scheduled] = {}
        self._answers: dict[Scheduled, Answer] = {}
        # Asked of the system anew in each step, it would come as fresh pages, one by one.
        self._logits: Floats = np.empty((0, engine.vocab_size), np.float32)
        self._computed = self._written = self._preempted = self._steps = 0

    # ---- coming and going ------------------------------------------------------------------------

    def add(self, request: Request) -> int:
        """Take a request; returns the number that its events carry.

        Raises:
            ContextError: it does not fit in the context; states both lengths.
            UsageError: no tokens, tokens there are not, an option that makes no sense.
            MissingExtraError: it has a constraint, and the package for these is not installed.
            CacheFullError: it would not fit in the cache even alone.
            QueueFullError: as many wait as may; try again later.
        """
        scheduled, answer = self._prepare(request)
        try:
            self._scheduler.add(scheduled)
        except NeverFitsError as error:
            raise self._too_large(scheduled, error) from None
        return self._enter(scheduled, answer)

    def fork(self, number: int, request: Request) -> int:
        """As `add`, of a request that begins as another one that runs: it shares what was read.

        Raises:
            As `add`.
            KeyError: there is no request ``number``.
        """
        parent = self._scheduled[number]
        scheduled, answer = self._prepare(request)
        try:
            self._scheduler.fork(parent, scheduled)
        except NeverFitsError as error:
            raise self._too_large(scheduled, error) from None
        return self._enter(scheduled, answer)

    def cancel(self, number: int) -> None:
        """End a request; its blocks are free at once. One that has ended already is no error."""
        scheduled = self._scheduled.get(number)
        if scheduled is not None:
            self._leave(scheduled)

    def close(self) -> None:
        """End all requests."""
        for number in list(self._scheduled):
            self.cancel(number)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._scheduled

    def usage(self, number: int) -> Usage:
        """What a request took so far; KeyError when it has ended, and its last piece says it."""
        return self._answers[self._scheduled[number]].usage

    def stats(self) -> Stats:
        """What is going on."""
        scheduler, kv = self._scheduler, self._engine.kv
        running = sum(r.preemptions for r in self._answers)
        return Stats(
            len(scheduler.running),
            scheduler.waiting,
            kv.used,
            kv.count,
            scheduler.asked,
            scheduler.hits,
            self._computed,
            self._written,
            self._preempted + running,
            self._steps,
            *(self._speculation.counts if self._speculation is not None else (0, 0)),
        )

    def _prepare(self, request: Request) -> tuple[Scheduled, Answer]:
        prompt = list(request.prompt)
        check_length(prompt, self._context)
        vocab = self._engine.vocab_size
        if min(prompt) < 0 or max(prompt) >= vocab:
            raise UsageError(
                f"Token ids should be from 0 to {vocab - 1}, got {min(prompt)} to {max(prompt)}. "
                "Encode the text with this model's own tokenizer."
            )
        most = self._context - len(prompt)
        if request.max_tokens is not None:
            most = min(most, request.max_tokens)
        ends = frozenset[int]() if request.ignore_end else self._ends
        matcher = None
        if request.constraint is not None:
            matcher = self._grammars.matcher(request.constraint)
        number = next(self._numbers)
        answer = Answer(number, request, prompt, self._tokenizer, vocab, most, ends, matcher)
        return Scheduled(prompt, len(prompt) + most, request.user, request.salt), answer

    def _enter(self, scheduled: Scheduled, answer: Answer) -> int:
        self._scheduled[answer.number] = scheduled
        self._answers[scheduled] = answer
        return answer.number

    def _leave(self, scheduled: Scheduled) -> None:
        self._scheduler.end(scheduled)
        answer = self._answers.pop(scheduled)
        if self._speculation is not None:
            self._speculation.forget(answer)
        del self._scheduled[answer.number]
        self._preempted += scheduled.preemptions

    def _too_large(self, scheduled: Scheduled, error: NeverFitsError) -> CacheFullError:
        size = self._engine.kv.block_tokens
        return CacheFullError(
            f"A text of up to {scheduled.most_tokens:,} tokens was asked for; the cache holds "
            f"{error.there * size:,}. Ask for fewer, or load the model with a larger cache."
        )

    # ---- a step ----------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Run the model once; what came of it, which may be nothing yet.

        A request's last piece has a ``finish_reason``; after it, or after its error, the request
        is gone.

        Raises:
            CacheFullError: sequences outside the batch hold so much that no request can go on.
            FileFormatError: the model's file has become shorter.
        """
        guessed = self._guess()
        step = self._scheduler.schedule()
        if step is None:
            if self._scheduled:
                raise CacheFullError(
                    f"{self._engine.kv.used} of {self._engine.kv.count} blocks of the cache are in "
                    "use outside this batch, and none of its requests can go on. Free them first."
                )
            return []
        try:
            for entry in step.entries:
                self._answers[entry.request].begin(entry.request.cached or 0)
            drawing = [entry for entry in step.entries if entry.draws]
            started = time.perf_counter()
            logits = self._run(step)
            found = self._draw(drawing, logits) if drawing else []
        except BaseException:
            self._scheduler.abandon()
            raise
        if guessed and self._speculation is not None:
            self._speculation.note(step.tokens, time.perf_counter() - started)
        self._steps += 1
        self._computed += step.tokens
        return self._complete(drawing, found)

    def _guess(self) -> bool:
        """Let requests guess, where all that happens is writing; whether it is so."""
        if self._speculation is None or self._scheduler.waiting:
            return False
        running = self._scheduler.running
        if not running or any(r.pending > 1 for r in running):
            return False
        answers = [self._answers[r] for r in running]
        for request, answer, guesses in zip(
            running, answers, self._speculation.propose(answers), strict=True
        ):
            if answer.matcher is not None:
                guesses = guesses[: answer.matcher.valid(guesses)]
            request.draft = guesses
        return True

    def _draw(self, entries: Sequence[Entry], logits: Floats) -> list[list[Draw] | DataError]:
        """The tokens that follow each entry's, under what their texts must match."""
        turns: list[Turn] = []
        bound: list[tuple[Matcher, Sequence[int]]] = []
        masks = 0
        for entry in entries:
            answer = self._answers[entry.request]
            guesses = entry.tokens[len(entry.tokens) - entry.drafted :]
            turns.append(Turn(answer.sampler, guesses, None if answer.matcher is None else masks))
            if answer.matcher is not None:
                bound.append((answer.matcher, guesses))
                masks += len(guesses) + 1
        found = self._engine.draw(turns, logits, self._grammars.masks(bound) if bound else None)
        for i, entry in enumerate(entries):
            matcher = self._answers[entry.request].matcher
            fault = None if matcher is None else matcher.fault()
            if fault is not None:
                found[i] = fault
        return found

    def _complete(
        self, entries: Sequence[Entry], found: Sequence[list[Draw] | DataError]
    ) -> list[Event]:
        """Hand out what was drawn."""
        events: list[Event] = []
        drawn: dict[Scheduled, list[Draw]] = {}
        for entry, draws in zip(entries, found, strict=True):
            request = entry.request
            if isinstance(draws, KvantError):
                events.append((self._answers[request].number, draws))
                self._leave(request)
                continue
            drawn[request] = draws
            if self._speculation is not None:
                guesses = entry.tokens[len(entry.tokens) - entry.drafted :]
                self._speculation.learn(self._answers[request], guesses, [d.token for d in draws])
        self._scheduler.complete({r: [d.token for d in draws] for r, draws in drawn.items()})
        for request, draws in drawn.items():
            answer = self._answers[request]
            self._written += len(draws)
            piece = answer.advance(draws)
            if piece is not None:
                events.append((answer.number, piece))
                if piece.finish_reason:
                    self._leave(request)
        return events

    def _run(self, step: Step) -> Floats:
        """Logits, a row for each token that is to be drawn or checked."""
        if step.copies:
            self._engine.copy_blocks(step.copies)
        entries = step.entries
        tokens = np.fromiter(
            itertools.chain.from_iterable(e.tokens for e in entries), np.int32, step.tokens
        )
        layout = np.empty((len(entries), 3), np.int64)
        tables = np.zeros((len(entries), max(len(e.blocks) for e in entries)), np.int32)
        rows: list[int] = []
        begin = 0
        for i, entry in enumerate(entries):
            count = len(entry.tokens)
            layout[i] = begin, count, entry.start
            tables[i, : len(entry.blocks)] = entry.blocks
            begin += count
            if entry.draws:
                rows += range(begin - 1 - entry.drafted, begin)
        if len(rows) > len(self._logits):
            self._logits = np.empty((len(rows), self._engine.vocab_size), np.float32)
        out = self._logits[: len(rows)]
        self._engine.step_blocks(tokens, layout, tables, np.array(rows, np.int32), out)
        return out


def check_length(prompt: Sequence[int], context: int) -> None:
    """Check that ``prompt`` fits and leaves room for an answer.

    Raises:
        ContextError: it does not; states both lengths.
        UsageError: there is no token to start from.
    """
    if not len(prompt):
        raise UsageError(
            "The prompt is empty and the model has no token that begins a text. Write something."
        )
    if len(prompt) >= context:
        raise ContextError(
            len(prompt),
            context,
            f"The prompt has {len(prompt):,} tokens and the context holds {context:,}, prompt and "
            "answer together. Shorten the prompt, or use a larger context where the model has one.",
        )
