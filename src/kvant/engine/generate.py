"""Prompts to texts, many at once: read in chunks, then one token of each in every step.

A request's tokens do not depend on its neighbours: the engine's arithmetic does not depend on what
else is in a step, and each request draws with its own random numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.engine.detokenize import TokenDecoder
from kvant.engine.kv_blocks import KvSequence
from kvant.engine.results import FinishReason, Piece
from kvant.engine.sampling import Draw, Sampler, Sampling, TokenLogprob, draw
from kvant.engine.session import Engine
from kvant.engine.stopping import StopStrings, end_tokens
from kvant.errors import CacheFullError, ContextError, UsageError
from kvant.tokenizer.build import Tokenizer

__all__ = ["Prefix", "Request", "check_length", "generate", "take_chunks"]

#: Tokens of prompts read in one step: enough to keep the kernels busy, few enough that an
#: interrupt is heard soon.
CHUNK = 256
#: Requests that run at once.
BATCH = 16


class Prefix:
    """A sequence kept from one request to the next, so that a common beginning is not read again.

    For one request at a time. Close it when the conversation ends.
    """

    def __init__(self) -> None:
        self._sequence: KvSequence | None = None
        self._tokens: list[int] = []

    def take(self, engine: Engine, prompt: Sequence[int]) -> tuple[KvSequence, int]:
        """The sequence, and how many tokens of ``prompt`` it has; at least one is left to read."""
        if self._sequence is None:
            self._sequence = engine.sequence()
        pairs = zip(self._tokens, prompt[:-1], strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if common is None:
            common = min(len(self._tokens), len(prompt) - 1)
        self._sequence.truncate(common)
        self._tokens = []  # unknown until `keep`: whoever was interrupted left anything there
        return self._sequence, common

    def keep(self, tokens: Sequence[int]) -> None:
        """The sequence now holds ``tokens``."""
        self._tokens = list(tokens)

    def close(self) -> None:
        """Free the sequence."""
        if self._sequence is not None:
            self._sequence.free()
        self._sequence, self._tokens = None, []


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One text to continue.

    ``max_tokens`` None writes until the model stops or the context is full. With ``prefix`` the
    sequence is taken from there and left there.
    """

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    prefix: Prefix | None = None


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


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    *,
    context: int,
    batch: int = BATCH,
    chunk: int = CHUNK,
) -> Iterator[tuple[int, Piece]]:
    """Continue all ``requests``; yields (index of the request, piece) as they come.

    Each request's last piece has a ``finish_reason``. Closing the iterator, or an error or
    interrupt in it, ends all of them and frees their sequences.

    Args:
        engine: runs the model.
        tokenizer: the model's.
        requests: any number; ``batch`` of them run at once, the others wait.
        context: most tokens of a prompt and its answer together.
        batch: most requests in a step.
        chunk: most tokens of prompts in a step.

    Raises:
        ContextError: a prompt does not fit; nothing has been generated.
        DataError: the model gives NaN or infinity.
        CacheFullError: the cache has no room for one request alone.
    """
    for request in requests:
        check_length(request.prompt, context)
    ends = end_tokens(tokenizer.definition)
    waiting = deque(
        _Running(engine, tokenizer, i, r, context, ends) for i, r in enumerate(requests)
    )
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < batch and (not running or waiting[0].fits(engine)):
                running.append(waiting.popleft())
                running[-1].start()
            pieces = _step(engine, running, waiting, chunk)
            for state, piece in pieces:
                if piece.finish_reason:
                    running.remove(state)
                    state.close()
                yield state.index, piece
    finally:
        for state in running:
            state.close()


def _step(
    engine: Engine, running: list[_Running], waiting: deque[_Running], chunk: int
) -> list[tuple[_Running, Piece]]:
    """Run the model once; the pieces that came of it."""
    while True:
        taken = take_chunks([r.pending for r in running], chunk)
        at_work = [(r, ids) for r, ids in zip(running, taken, strict=True) if ids]
        try:
            logits = engine.step([(r.sequence, ids) for r, ids in at_work], logits="last")
            break
        except CacheFullError:
            if len(running) == 1:
                raise
            # The last to come makes room, and reads its text anew when there is some again.
            running[-1].yield_room()
            waiting.appendleft(running.pop())
    for r, ids in at_work:
        r.read(ids)
    rows = [row for row, (r, _) in enumerate(at_work) if not r.pending]
    if not rows:
        return []
    ready = [at_work[row][0] for row in rows]
    wanted = logits if len(rows) == len(logits) else logits[rows]
    draws = draw([r.sampler for r in ready], np.ascontiguousarray(wanted))
    found = ((r, r.advance(d)) for r, d in zip(ready, draws, strict=True))
    return [(r, piece) for r, piece in found if piece is not None]


def take_chunks(pending: Sequence[Sequence[int]], chunk: int) -> list[list[int]]:
    """What each text reads next: ``chunk`` tokens in all, first come, first served.

    A single token always passes: whoever writes is not kept waiting by those who read.
    """
    taken: list[list[int]] = []
    left = chunk
    for tokens in pending:
        if len(tokens) == 1:
            taken.append(list(tokens))
            continue
        taken.append(list(tokens[:left]))
        left -= len(taken[-1])
    return taken


class _Running:
    """A request at work."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        index: int,
        request: Request,
        context: int,
        ends: frozenset[int],
    ) -> None:
        self.index = index
        self.sampler = Sampler(request.sampling, engine.vocab_size, request.prompt)
        self._decoder = TokenDecoder(tokenizer, request.prompt)
        self._stop = StopStrings(request.stop)
        self._ends = ends
        room = context - len(request.prompt)
        self._left = room if request.max_tokens is None else min(room, request.max_tokens)
        self._prefix = request.prefix
        self._engine = engine
        self.sequence: KvSequence
        self._known: list[int] = []
        self.pending = list(request.prompt)
        """Tokens that the sequence does not have yet."""
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def fits(self, engine: Engine) -> bool:
        """Whether the cache has room for what is to be read, and some for the answer."""
        return engine.kv.free_tokens > len(self.pending)

    def start(self) -> None:
        """Get a sequence; what it has already is not pending."""
        if self._prefix is None:
            self.sequence = self._engine.sequence()
        else:
            self.sequence, common = self._prefix.take(self._engine, self.pending)
            self.read(self.pending[:common])

    def read(self, tokens: Sequence[int]) -> None:
        """The sequence has the first of `pending` now."""
        self._known += tokens
        del self.pending[: len(tokens)]
        if self._prefix is not None:
            self._prefix.keep(self._known)

    def yield_room(self) -> None:
        """Free the sequence; everything is pending again."""
        self.close()
        self.pending = self._known + self.pending
        self._known = []

    def advance(self, drawn: Draw) -> Piece | None:
        """Take the next token; the piece it completes, if it does."""
        self._tokens.append(drawn.token)
        if drawn.logprob is not None:
            self._logprobs.append(drawn.logprob)
        self._left -= 1
        reason: FinishReason | None = None
        text = ""
        if drawn.token in self._ends:
            reason = "stop"
        else:
            self.pending.append(drawn.token)
            text = self._stop.add(self._decoder.add(drawn.token))
            reason = "length" if self._left == 0 else None
        if reason and not self._stop.matched:
            text += self._stop.add(self._decoder.finish())
        if self._stop.matched:
            reason = "stop"
        elif reason:
            text += self._stop.finish()
        if not (text or reason):
            return None
        piece = Piece(text, tuple(self._tokens), tuple(self._logprobs), reason)
        self._tokens, self._logprobs = [], []
        return piece

    def close(self) -> None:
        """Free the sequence, unless it is kept for the next request."""
        if self._prefix is None:
            self.sequence.free()
