"""An engine in plain NumPy: the reference interpreter behind the engine's methods.

It keeps nothing but token ids and runs every text again, so it has no cache that could go wrong.
What it was asked to do is in ``steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Checkpoint
from kvant.errors import KvantError
from kvant.reference import ReferenceModel

Logits = npt.NDArray[np.float32]


class FakeSequence:
    """The ids of one text."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.tokens: list[int] = []
        self.freed = False
        engine.live.add(self)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, n: int) -> None:
        assert 0 <= n <= len(self.tokens)
        del self.tokens[n:]

    def free(self) -> None:
        assert not self.freed
        self.freed = True
        self._engine.live.discard(self)


class FakeEngine:
    """Runs `checkpoint`, or whatever ``rows`` makes of a text: ids -> logits [vocabulary]."""

    threads = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: Callable[[list[int]], npt.ArrayLike] | None = None,
        *,
        kv_tokens: int | None = None,
    ) -> None:
        self.vocab_size = checkpoint.config.vocab_size
        self.context = checkpoint.config.max_position_embeddings
        self.live: set[FakeSequence] = set()
        self.steps: list[list[int]] = []
        self._kv_tokens = kv_tokens
        self._model = ReferenceModel(checkpoint)
        self._rows = rows
        self._buffer = np.zeros((0, self.vocab_size), np.float32)

    def sequence(self) -> FakeSequence:
        return FakeSequence(self)

    def step(
        self, entries: Sequence[tuple[FakeSequence, Sequence[int]]], logits: str = "last"
    ) -> Logits:
        assert entries
        assert len({id(s) for s, _ in entries}) == len(entries)
        self.steps.append([len(ids) for _, ids in entries])
        for sequence, ids in entries:
            assert not sequence.freed
            assert len(ids)
            sequence.tokens += [int(i) for i in ids]
            assert sequence.length <= self.context
        if self._kv_tokens is not None and sum(s.length for s in self.live) > self._kv_tokens:
            raise KvantError("The memory for keys and values is full.")
        if logits == "hidden":
            return np.concatenate([self._hidden(s)[-len(ids) :] for s, ids in entries])
        assert logits == "last"
        self._buffer[:] = np.nan  # the array of the step before is overwritten
        self._buffer = np.stack([self._last(s) for s, _ in entries]).astype(np.float32)
        return self._buffer

    def _last(self, sequence: FakeSequence) -> npt.ArrayLike:
        if self._rows is not None:
            return self._rows(sequence.tokens)
        (tile,) = self._model.logits([sequence.tokens], first_row=sequence.length - 1)
        return tile.logits[0]

    def _hidden(self, sequence: FakeSequence) -> Logits:
        ids = np.array([sequence.tokens])
        return self._model._run(ids, self._model._head_input)[0]
