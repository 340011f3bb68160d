"""The one thing evaluation needs from whatever runs a model: tokens in, logits out, in tiles."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Logits", "Runner", "Tile", "Tokens", "in_step"]

Tokens: TypeAlias = npt.NDArray[np.int32]
Logits: TypeAlias = npt.NDArray[np.float32]
Tile: TypeAlias = tuple[int, int, Logits]


class Runner(Protocol):
    """A loaded model.

    ``logits(tokens, first_row=r)`` takes token ids, int32 of shape [batch, n], as ``batch``
    independent sequences that start at position 0, and yields tiles ``(sequence, row, logits)``.
    ``logits`` is float32 of shape [rows, vocab_size]; its line ``i`` holds what the model predicts
    *after* token ``row + i`` of that sequence.

    Tiles come in order, sequence by sequence, and cover the rows ``first_row`` to ``n - 1`` of
    each without gap or overlap. The runner picks their height, so that a tile stays small (some ten
    megabytes) however large the vocabulary; nothing depends on it. A tile may be overwritten when
    the next one is asked for, and is not changed by whoever reads it.
    """

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        ...

    def logits(self, tokens: Tokens, *, first_row: int) -> Iterator[Tile]:
        """Run ``tokens`` and yield the tiles of the rows from ``first_row`` on."""
        ...


def in_step(
    runners: Sequence[Runner],
    tokens: Tokens,
    first_row: int,
    *,
    seconds: list[float] | None = None,
) -> Iterator[tuple[int, int, list[Logits]]]:
    """Run several models over the same tokens and yield the same rows of all of them together.

    ``seconds``, one entry a runner, grows by the time that each of them took.

    Yields:
        (sequence, row, tiles): one tile a runner, all of the same height, cut to what the
        runners' own tiles have in common.

    Raises:
        RuntimeError: a runner breaks the rules above.
    """
    batch, length = tokens.shape
    streams = [_Stream(runner, tokens, first_row) for runner in runners]
    for sequence in range(batch):
        row = first_row
        while row < length:
            for index, stream in enumerate(streams):
                started = time.perf_counter()
                stream.advance(sequence, row)
                if seconds is not None:
                    seconds[index] += time.perf_counter() - started
            stop = min(stream.stop for stream in streams)
            yield sequence, row, [stream.rows(row, stop) for stream in streams]
            row = stop
    for stream in streams:
        stream.end()


class _Stream:
    """The tiles of one runner, with the current one at hand."""

    def __init__(self, runner: Runner, tokens: Tokens, first_row: int) -> None:
        self._vocab = runner.vocab_size
        self._length = tokens.shape[1]
        self._tiles = runner.logits(tokens, first_row=first_row)
        self._sequence = -1
        self._start = 0
        self._tile: Logits | None = None
        self.stop = 0

    def advance(self, sequence: int, row: int) -> None:
        """Make sure the current tile holds ``row`` of ``sequence``."""
        if sequence == self._sequence and row < self.stop:
            return
        self._tile = None
        found, start, tile = next(self._tiles, (-1, -1, np.empty((0, 0), np.float32)))
        if (found, start) != (sequence, row):
            raise RuntimeError(
                f"runner gave the tile of sequence {found} from row {start}, "
                f"expected sequence {sequence} from row {row}"
            )
        height = tile.shape[0]
        if tile.dtype != np.float32 or tile.shape[1:] != (self._vocab,):
            raise RuntimeError(
                f"runner gave a tile of {tile.dtype} {tile.shape}, "
                f"expected float32 [rows, {self._vocab}]"
            )
        if not 0 < height <= self._length - row:
            raise RuntimeError(f"runner gave {height} rows from row {row} of {self._length}")
        self._sequence, self._start, self.stop, self._tile = found, start, start + height, tile

    def rows(self, start: int, stop: int) -> Logits:
        """Lines ``start`` to ``stop - 1`` of the sequence, out of the current tile."""
        assert self._tile is not None
        return self._tile[start - self._start : stop - self._start]

    def end(self) -> None:
        """Check that nothing is left over, and let the runner finish its own work."""
        if next(self._tiles, None) is not None:
            raise RuntimeError("runner gave more tiles than there are rows")
