"""What a generation took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvant.engine.results import FinishReason, Piece

__all__ = ["Meter"]


class Meter:
    """Counts and times a generation that passes through it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first = self._last = 0.0
        self._tokens = 0
        self.reason: FinishReason | None = None

    def watch(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Pass the pieces on."""
        for piece in pieces:
            self._last = time.perf_counter() - self._start
            self._first = self._first or self._last
            self._tokens += len(piece.tokens)
            self.reason = piece.finish_reason or self.reason
            yield piece

    def summary(self) -> str:
        """One line: tokens, time to the first, and tokens a second after it."""
        written = self._last - self._first
        rate = f"{(self._tokens - 1) / written:.1f} tokens/s" if written > 0 else "no rate"
        return (
            f"{self._tokens} tokens ({self.reason or 'interrupted'}), the first after "
            f"{1000 * self._first:.0f} ms, then {rate}"
        )
