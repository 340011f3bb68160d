"""One request after the other over `engine.generate`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from kvant.engine.generate import Request, generate
from kvant.engine.results import Piece
from kvant.engine.session import Engine
from kvant.server.prepare import Prepared
from kvant.tokenizer.build import Tokenizer

__all__ = ["Serial"]


@dataclass
class _One:
    key: int
    request: Request
    pieces: Iterator[tuple[int, Piece]] | None = None


class Serial:
    """Runs requests in turn."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, context: int) -> None:
        self._engine, self._tokenizer, self._context = engine, tokenizer, context
        self._line: deque[_One] = deque()
        self._next = 0

    def add(self, p: Prepared) -> int:
        """Take a request."""
        self._next += 1
        request = Request(p.tokens, p.sampling, p.max_tokens, p.stop)
        self._line.append(_One(self._next, request))
        return self._next

    def cancel(self, key: int) -> None:
        """End one."""
        self._line = deque(one for one in self._line if one.key != key)

    @property
    def idle(self) -> bool:
        """Nothing to do."""
        return not self._line

    def step(self) -> list[tuple[int, Piece]]:
        """The next piece."""
        one = self._line[0]
        if one.pieces is None:
            one.pieces = generate(
                self._engine, self._tokenizer, [one.request], context=self._context
            )
        _, piece = next(one.pieces)
        if piece.finish_reason:
            self._line.popleft()
        return [(one.key, piece)]

    def stats(self) -> dict[str, float]:
        """Figures."""
        n = len(self._line)
        return {"running": min(1, n), "waiting": max(0, n - 1)}
