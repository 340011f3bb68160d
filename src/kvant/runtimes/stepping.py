"""Runtimes of others behind the two protocols they are measured by.

A runtime offers a `Stepper`: sequences that grow by some tokens at a time, with their keys and
values kept. From that follow logits in tiles, which evaluation wants (`StepRunner.logits`), and
steps and their time, which speed wants (`sequence`, `step`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from kvant.errors import ContextError, UsageError

__all__ = ["Logits", "StepRunner", "Stepper", "Tokens", "Wanted"]

Logits: TypeAlias = npt.NDArray[np.float32]
Tokens: TypeAlias = npt.NDArray[np.int32]
Wanted: TypeAlias = Literal["all", "last", "none"]

#: Logits in a tile: 32 MB, as of the native runner.
_TILE_ELEMENTS = 8_000_000
#: Tokens that go through a runtime at once where logits are not what bounds them.
_CHUNK = 512


class Growing(Protocol):
    """One sequence and the keys and values of its tokens."""

    def truncate(self, length: int, /) -> None:
        """Forget all tokens but the first ``length``."""
        ...

    def free(self) -> None:
        """Give everything back."""
        ...


S = TypeVar("S", bound=Growing)
C = TypeVar("C", contravariant=True)


class Stepper(Protocol[S]):
    """A loaded model of another runtime, one sequence at a time."""

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        ...

    @property
    def context(self) -> int | None:
        """Most tokens of a sequence, where the runtime has a limit."""
        ...

    @property
    def whole(self) -> bool:
        """Whether a sequence has to be given in one piece: the model keeps nothing."""
        ...

    @property
    def how(self) -> str:
        """How the runtime is used, in a few words."""
        ...

    def sequence(self) -> S:
        """A new, empty sequence."""
        ...

    def feed(self, sequence: S, tokens: Tokens, wanted: Wanted, /) -> Logits:
        """Add tokens, int32 [n], to a sequence.

        Returns:
            float32 [rows, vocab_size]: a row for each token, one for the last, or none.
        """
        ...


@runtime_checkable
class Together(Protocol[C]):
    """A stepper that gives several sequences a token each in one step."""

    def feed_together(self, sequences: Sequence[C], tokens: Tokens, /) -> Logits:
        """Add ``tokens[i]`` to ``sequences[i]``; float32 [sequences, vocab_size]."""
        ...


class StepRunner(Generic[S]):
    """Keeps `kvant.evaluation.Runner` and the ``Engine`` of its speed tests over a stepper.

    Memory is the stepper's, its keys and values of one sequence, and one tile: the tokens of a
    chunk are so few that all of its logits are at most 32 MB, also where only some are wanted,
    because graphs tend to compute a row for every token.
    """

    def __init__(self, stepper: Stepper[S]) -> None:
        self._stepper = stepper
        self.vocab_size = stepper.vocab_size

    def logits(self, tokens: Tokens, *, first_row: int = 0) -> Iterator[tuple[int, int, Logits]]:
        """Logits of the rows from ``first_row`` of every sequence, in tiles of at most 32 MB.

        Args:
            tokens: integers [batch, n], each below ``vocab_size``.
            first_row: rows before it are computed as context only.

        Raises:
            ContextError, UsageError: sequences too long, or ids out of range.
        """
        length = tokens.shape[1]
        self._check(tokens)
        for index, ids in enumerate(tokens):
            sequence = self._stepper.sequence()
            try:
                for start, stop in self._chunks(length):
                    rows = self._stepper.feed(sequence, ids[start:stop], "all")
                    if stop > first_row:
                        row = max(start, first_row)
                        yield index, row, rows[row - start :]
                        del rows  # or it would stay in memory while the next is computed
            finally:
                sequence.free()

    def _chunks(self, length: int) -> Iterator[tuple[int, int]]:
        if self._stepper.whole:
            yield 0, length
            return
        step = max(1, min(_CHUNK, _TILE_ELEMENTS // self.vocab_size))
        for start in range(0, length, step):
            yield start, min(start + step, length)

    def _check(self, tokens: Tokens) -> None:
        low, high = int(tokens.min(initial=0)), int(tokens.max(initial=0))
        if low < 0 or high >= self.vocab_size:
            raise UsageError(
                f"Token ids should be from 0 to {self.vocab_size - 1}, got {low} to {high}. "
                "Encode the text with this model's own tokenizer."
            )
        context = self._stepper.context
        if context is not None and tokens.shape[1] > context:
            raise ContextError(tokens.shape[1], context)

    @property
    def together(self) -> bool:
        """Whether several sequences can get a token each in one step."""
        return isinstance(self._stepper, Together)

    @property
    def how(self) -> str:
        """How the runtime is used, for whoever reads its speed."""
        return self._stepper.how

    # ---- speed -------------------------------------------------------------------------------

    def sequence(self) -> S:
        """A new, empty sequence."""
        return self._stepper.sequence()

    def step(
        self, entries: Sequence[tuple[S, Tokens]], /, *, logits: Literal["last", "none"]
    ) -> Logits:
        """Add tokens to sequences; a row of logits an entry, or no row.

        Single tokens of several sequences go in one step where the runtime can, everything else
        one sequence after another.
        """
        if len(entries) > 1 and self.together and all(len(ids) == 1 for _, ids in entries):
            assert isinstance(self._stepper, Together)
            ids = np.concatenate([ids for _, ids in entries])
            return self._stepper.feed_together([sequence for sequence, _ in entries], ids)
        rows = [self._stepper.feed(sequence, ids, logits) for sequence, ids in entries]
        return np.concatenate(rows) if rows else np.empty((0, self.vocab_size), np.float32)
