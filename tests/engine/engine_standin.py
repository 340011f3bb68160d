"""Engines for tests: the real one with a record of its steps, and one that says what it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.engine import Engine, KvBlocks
from kvant.engine.sampling import draw_turns

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

    def step_blocks(self, tokens: Any, entries: Any, *rest: Any) -> None:
        self._engine.step_blocks(tokens, entries, *rest)
        self.steps.append([int(n) for n in entries[:, 1]])


class SpokenEngine:
    """Whatever ``rows`` makes of a text: ids -> logits [vocabulary]. Its cache holds the ids."""

    step_tokens = 512

    def __init__(
        self, vocab_size: int, context: int, rows: Callable[[list[int]], npt.ArrayLike]
    ) -> None:
        self.vocab_size, self.context = vocab_size, context
        self.kv = KvBlocks(100)
        self._rows = rows
        self._slots: dict[tuple[int, int], int] = {}

    @property
    def idle(self) -> bool:
        return self.kv.free_blocks == self.kv.count

    def step_blocks(self, tokens: Any, entries: Any, tables: Any, rows: Any, out: Logits) -> None:
        size = self.kv.block_tokens
        found = 0
        for (begin, count, start), table in zip(entries, tables, strict=True):
            for i in range(count):
                at, place = divmod(int(start + i), size)
                self._slots[int(table[at]), place] = int(tokens[begin + i])
            for row in (r for r in rows if begin <= r < begin + count):
                places = (divmod(i, size) for i in range(start + row - begin + 1))
                out[found] = self._rows([self._slots[int(table[a]), p] for a, p in places])
                found += 1

    def draw(self, turns: Any, logits: Logits, masks: Any = None) -> Any:
        return draw_turns(turns, logits, masks)
