"""Shapes that OpenAI's answers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvant.server.answering import Answers
from kvant.server.exchange import dump
from kvant.server.jobs import Delta

__all__ = ["event", "finite", "token_entry", "token_text", "usage"]


def event(data: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + dump(data) + b"\n\n"


def usage(answers: Answers) -> dict[str, Any]:
    """Tokens read and written; prompts that several answers share count once."""
    read, written = answers.prompt_tokens, answers.completion_tokens
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": answers.cached_tokens},
    }


def token_text(piece: bytes) -> str:
    """A token's text; U+FFFD where it is part of a character."""
    return piece.decode("utf-8", "replace")


def token_entry(delta: Delta) -> list[dict[str, Any]]:
    """Entries of chat's ``logprobs.content`` for the tokens of a delta."""
    found = []
    for i, (piece, chosen) in enumerate(zip(delta.pieces, delta.logprobs, strict=True)):
        tops = zip(delta.tops[i], chosen.top, strict=True) if delta.tops else ()
        found.append(
            {
                **_entry(piece, chosen.logprob),
                "top_logprobs": [_entry(text, logprob) for text, (_, logprob) in tops],
            }
        )
    return found


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(piece), "logprob": finite(logprob), "bytes": list(piece)}


def finite(logprob: float) -> float:
    """A logprob as JSON has it; OpenAI writes -9999 for what cannot be."""
    return max(logprob, -9999.0)
