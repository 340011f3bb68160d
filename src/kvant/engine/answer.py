"""One request's answer as it is written: tokens to pieces of text, and when it is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvant.engine.constrain import Constraint, Matcher
from kvant.engine.detokenize import TokenDecoder
from kvant.engine.results import FinishReason, Piece, Usage
from kvant.engine.sampling import Draw, Sampler, Sampling, TokenLogprob
from kvant.engine.stopping import StopStrings
from kvant.tokenizer.build import Tokenizer

__all__ = ["Answer", "Request"]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One text to continue.

    Attributes:
        prompt: token ids, at least one.
        sampling: how tokens are chosen.
        max_tokens: most tokens to write; None until the model stops or the context is full.
        stop: strings that end the text; they are not part of it.
        user: whose it is; users share fairly.
        salt: requests of different salts never share what was read of their prompts. With the same
            salt (the default) they do, whoever they are of: nobody reads another's text, but
            ``cached`` and the time of the first piece tell that somebody sent the same beginning.
            One salt for each user keeps users apart.
        constraint: what the text must match.
        ignore_end: write on where the model would end the text (for measuring).
    """

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    user: str = ""
    salt: bytes = b""
    constraint: Constraint | None = None
    ignore_end: bool = False


class Answer:
    """The answer to a request, as it grows.

    Args:
        number: the request's, by which its owner knows it.
        request: what was asked.
        tokens: prompt and answer; its owner appends to it.
        tokenizer: the model's.
        vocab_size: length of a row of logits.
        most: most tokens it may have.
        ends: tokens that end it.
        matcher: says what it may be, where that is bound.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        tokens: list[int],
        tokenizer: Tokenizer,
        vocab_size: int,
        most: int,
        ends: frozenset[int],
        matcher: Matcher | None = None,
    ) -> None:
        self.number = number
        self.request = request
        self.tokens = tokens
        self.matcher = matcher
        self.sampler = Sampler(request.sampling, vocab_size, request.prompt)
        self._decoder = TokenDecoder(tokenizer, request.prompt)
        self._stop = StopStrings(request.stop)
        self._ends = ends
        self._left = most
        self._written = 0
        self._new: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self.cached = 0
        """Tokens of the prompt that were not read, because the cache had them."""
        self._came = time.perf_counter()
        self._began: float | None = None
        self._wrote: float | None = None

    def begin(self, cached: int) -> None:
        """It is being read; of its prompt the cache had ``cached`` tokens."""
        if self._began is None:
            self._began, self.cached = time.perf_counter(), cached

    @property
    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        now = time.perf_counter()
        began = now if self._began is None else self._began
        wrote = now if self._wrote is None else self._wrote
        return Usage(
            len(self.request.prompt),
            self._written,
            self.cached,
            began - self._came,
            wrote - began,
            now - wrote,
        )

    def advance(self, draws: Sequence[Draw]) -> Piece | None:
        """Take the next tokens; the piece they complete, if they do.

        Tokens after one that ends the text are dropped.
        """
        if self._wrote is None:
            self._wrote = time.perf_counter()
        text = ""
        reason: FinishReason | None = None
        for drawn in draws:
            more, reason = self._take(drawn)
            text += more
            if reason:
                break
        if not (text or reason):
            return None
        piece = Piece(text, tuple(self._new), tuple(self._logprobs), reason, self.usage)
        self._new, self._logprobs = [], []
        return piece

    def _take(self, drawn: Draw) -> tuple[str, FinishReason | None]:
        self._new.append(drawn.token)
        if drawn.logprob is not None:
            self._logprobs.append(drawn.logprob)
        self._left -= 1
        self._written += 1
        reason: FinishReason | None = None
        text = ""
        if drawn.token in self._ends:
            reason = "stop"
        else:
            text = self._stop.add(self._decoder.add(drawn.token))
            reason = "length" if self._left == 0 else None
            if self.matcher is not None and self.matcher.take(drawn.token):
                reason = "stop"
        if reason and not self._stop.matched:
            text += self._stop.add(self._decoder.finish())
        if self._stop.matched:
            reason = "stop"
        elif reason:
            text += self._stop.finish()
        return text, reason
