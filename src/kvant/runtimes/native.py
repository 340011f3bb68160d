"""A checkpoint run by the engine: logits in tiles, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Checkpoint
from kvant.engine import Engine, KvSequence, load_engine

__all__ = ["STEP_TOKENS", "NativeRunner"]

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]

STEP_TOKENS = 2048
"""Tokens of all sequences together that are in the cache at once, unless one alone is longer."""

#: Logits in a tile: 32 MB. Fewer rows at once would read the head's weights more often.
_TILE_ELEMENTS = 8_000_000


class NativeRunner:
    """Runs ``checkpoint`` on the engine, with weights as they are stored.

    The model is loaded when it is first run, and given back with the runner. Besides the weights
    it takes a cache of `STEP_TOKENS` tokens, their hidden states, and one tile of 32 MB.
    """

    def __init__(self, checkpoint: Checkpoint, *, threads: int | None = None) -> None:
        self.vocab_size = checkpoint.config.vocab_size
        self._checkpoint = checkpoint
        self._threads = threads
        self._engine: Engine | None = None
        self._tile_rows = max(1, _TILE_ELEMENTS // self.vocab_size)

    def logits(self, tokens: Tokens, *, first_row: int = 0) -> Iterator[tuple[int, int, Logits]]:
        """Logits of rows ``first_row`` to the end of every sequence, in tiles of at most 32 MB.

        Row i of a sequence predicts token i + 1. Tiles come in order: sequence by sequence, rows
        ascending, none across sequences.

        Args:
            tokens: integers [batch, n], each below ``vocab_size``; n at most the model's context.
            first_row: rows before it are computed as context only; their logits are not.

        Raises:
            NotEnoughMemoryError: the model does not fit.
            UnsupportedError: a weight's storage type has no kernels.
            ContextError, UsageError: sequences too long, or ids out of range.
            DataError: logits are NaN or infinite.
        """
        length = tokens.shape[1]
        engine = self._loaded(length)
        blocks = -(-length // engine.kv.block_tokens)
        together = max(1, engine.kv.free_blocks // blocks)
        for start in range(0, len(tokens), together):
            hidden = _hidden(engine, tokens[start : start + together])
            for i, rows in enumerate(hidden):
                for row in range(first_row, length, self._tile_rows):
                    yield start + i, row, engine.head(rows[row : row + self._tile_rows])

    def _loaded(self, length: int) -> Engine:
        if self._engine is None or self._engine.kv.capacity_tokens < length:
            self._engine = None  # before another is made, or both are in memory
            self._engine = load_engine(
                self._checkpoint, threads=self._threads, kv_tokens=max(STEP_TOKENS, length)
            )
        return self._engine


def _hidden(engine: Engine, tokens: Tokens) -> npt.NDArray[np.float32]:
    """What the head reads after every token: float32 [batch, n, hidden], by one ragged step."""
    sequences: list[KvSequence] = [engine.sequence() for _ in tokens]
    try:
        states = engine.step(list(zip(sequences, tokens, strict=True)), logits="hidden")
    finally:
        for sequence in sequences:
            sequence.free()
    return states.reshape(*tokens.shape, -1)
