"""What generation gives: pieces of text as they come, and whole completions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

from kvant.engine.sampling import TokenLogprob

__all__ = ["Completion", "FinishReason", "Piece", "Usage", "collect"]

FinishReason: TypeAlias = Literal["stop", "length"]
"""``stop``: the model ended it, or a stop string did; ``length``: ``max_tokens`` or the context."""


class Piece(str):
    """A piece of generated text: a string that also knows its tokens.

    Text that waits (for the rest of a character, or as the possible beginning of a stop string)
    comes with a later piece, and so do its tokens; together the pieces have all of both.

    Attributes:
        tokens: ids since the piece before.
        logprobs: one a token, where they were asked for; otherwise empty.
        finish_reason: set in the last piece, whose text may be empty.
        usage: of the request so far.
    """

    __slots__ = ("finish_reason", "logprobs", "tokens", "usage")

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None
    usage: Usage | None

    def __new__(
        cls,
        text: str,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        finish_reason: FinishReason | None = None,
        usage: Usage | None = None,
    ) -> Self:
        """A string with the rest attached."""
        piece = super().__new__(cls, text)
        piece.tokens, piece.logprobs, piece.finish_reason = tokens, logprobs, finish_reason
        piece.usage = usage
        return piece


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written, and seconds it took.

    ``cached_tokens`` of the prompt were found in the cache and not read. How long it waited, how
    long its prompt took, and its text from the first token on: these say nothing about the answer,
    so two answers are equal without them.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)
    queue_seconds: float = field(default=0.0, compare=False)
    prompt_seconds: float = field(default=0.0, compare=False)
    generation_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished text.

    ``tokens`` has the token that ended it, which has no text. ``logprobs`` is None unless asked
    for, and has one entry a token.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        logprobs = None
        if self.logprobs is not None:
            logprobs = [
                {"token": p.token, "logprob": p.logprob, "top": [list(t) for t in p.top]}
                for p in self.logprobs
            ]
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
            },
            "logprobs": logprobs,
        }


def collect(pieces: Iterable[Piece], prompt_tokens: int, with_logprobs: bool) -> Completion:
    """The whole of one request's pieces, up to the one that has a reason to be the last."""
    kept = list(pieces)
    tokens = tuple(t for piece in kept for t in piece.tokens)
    reason = kept[-1].finish_reason if kept else None
    if reason is None:
        raise ValueError("the pieces do not end in a finished one")
    return Completion(
        text="".join(kept),
        tokens=tokens,
        finish_reason=reason,
        usage=kept[-1].usage or Usage(prompt_tokens, len(tokens)),
        logprobs=tuple(p for piece in kept for p in piece.logprobs) if with_logprobs else None,
    )
