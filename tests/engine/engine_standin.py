"""Engines for tests: the real one with a record of its steps, and one that says what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.engine import Engine
from kvant.errors import CacheFullError

Logits = npt.NDArray[np.float32]


class Recorded:
    """``engine``, with what it was asked to do in ``steps``: tokens by entry."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.steps: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def idle(self) -> bool:
        """Whether every block has been given back."""
        return bool(self._engine.kv.free_blocks == self._engine.kv.count)

    def step(self, work: Sequence[tuple[Any, Sequence[int]]], *, logits: str = "last") -> Logits:
        found = self._engine.step(work, logits=logits)  # type: ignore[arg-type]
        self.steps.append([len(ids) for _, ids in work])
        return found


class SpokenSequence:
    """The ids of one text."""

    def __init__(self, engine: SpokenEngine) -> None:
        self._engine = engine
        self.tokens: list[int] = []
        engine.live.add(self)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, n: int) -> None:
        assert 0 <= n <= len(self.tokens)
        del self.tokens[n:]

    def free(self) -> None:
        self.truncate(0)
        self._engine.live.discard(self)


class SpokenEngine:
    """Whatever ``rows`` makes of a text: ids -> logits [vocabulary]."""

    def __init__(
        self, vocab_size: int, context: int, rows: Callable[[list[int]], npt.ArrayLike]
    ) -> None:
        self.vocab_size, self.context = vocab_size, context
        self.live: set[SpokenSequence] = set()
        self.capacity_tokens = 100_000
        self._rows = rows

    @property
    def kv(self) -> SpokenEngine:
        """It is its own cache."""
        return self

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - sum(s.length for s in self.live)

    @property
    def idle(self) -> bool:
        return not self.live

    def sequence(self) -> SpokenSequence:
        return SpokenSequence(self)

    def step(
        self, work: Sequence[tuple[SpokenSequence, Sequence[int]]], *, logits: str = "last"
    ) -> Logits:
        assert work
        assert logits == "last"
        if sum(len(ids) for _, ids in work) > self.free_tokens:
            raise CacheFullError("The cache is full.")
        for sequence, ids in work:
            assert len(ids)
            sequence.tokens += [int(i) for i in ids]
        return np.stack([self._rows(s.tokens) for s, _ in work]).astype(np.float32)
