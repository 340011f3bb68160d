"""Steps over a ragged batch: tokens in, logits out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.engine.kv_blocks import KvBlocks, KvSequence
from kvant.engine.plan import LoweredPlan
from kvant.engine.sampling import Draw, Turn, draw_turns
from kvant.errors import (
    ContextError,
    DataError,
    FileFormatError,
    UnsupportedError,
    UsageError,
)

__all__ = ["EMPTY_ROWS", "Floats", "Memory", "Rows", "Steps", "Tokens", "Work"]

Rows = Literal["last", "all", "none", "hidden"]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Tokens = Sequence[int] | npt.NDArray[np.integer]
Work = Sequence[tuple[KvSequence, Tokens]]

EMPTY_ROWS = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes an engine holds: weights in panels, the whole cache, room for a step."""

    weights_bytes: int
    kv_bytes: int
    scratch_bytes: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights_bytes + self.kv_bytes + self.scratch_bytes


class Steps:
    """A loaded model that is stepped; `Engine` adds what measuring needs.

    What a token gets depends on its own sequence alone, to the last bit: not on the other entries
    of a step, the way a text is cut into steps, or the number of threads. Steps of one engine run
    one after the other, whatever thread asks for them.
    """

    def __init__(
        self, plan: _core.Plan, lowered: LoweredPlan, kv: KvBlocks, *, name: str, context: int
    ) -> None:
        self._plan, self._lowered, self._name = plan, lowered, name
        self.kv = kv
        """The cache's blocks."""
        self.context = context
        """Most tokens of a sequence: what the model was made for."""
        self._lock = threading.Lock()

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return self._lowered.vocab_size

    @property
    def hidden_size(self) -> int:
        """Length of a row of hidden states, as the head reads them."""
        return self._lowered.hidden_size

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self._lowered.layers

    @property
    def threads(self) -> int:
        """Threads a step runs on."""
        return self._plan.threads

    @property
    def step_tokens(self) -> int:
        """Tokens that go through the layers at once; longer steps are cut into such pieces."""
        return self._plan.most_tokens

    @property
    def memory(self) -> Memory:
        """What the engine holds."""
        return Memory(self._plan.weight_bytes, self._plan.kv_bytes, self._plan.scratch_bytes)

    @property
    def encodes(self) -> bool:
        """Whether the model is an encoder: every step then takes whole texts, and there are no
        logits."""
        return self._lowered.encodes

    def sequence(self) -> KvSequence:
        """A new, empty sequence."""
        return KvSequence(self.kv, self.context)

    # ---- steps ----------------------------------------------------------------------------------

    def step(self, work: Work, *, logits: Rows = "last") -> Floats:
        """Append tokens to sequences, and say what comes next.

        Args:
            work: sequences, each at most once, with the tokens that follow what they hold.
            logits: ``"last"``: float32 [entries, vocabulary], what follows each entry's last token;
                ``"all"``: [tokens, vocabulary], what follows every token, entry by entry;
                ``"hidden"``: [tokens, hidden], the normed states that the head reads; ``"none"``:
                an empty array, [0, vocabulary].

        Raises:
            ContextError: a sequence would be longer than the model's context; nothing has changed.
            CacheFullError: the cache has no room for the tokens; nothing has changed.
            UsageError: no tokens, or ids the vocabulary does not have.
            DataError: logits are NaN or infinite; the sequences are as before the step.
            UnsupportedError: logits of an encoder.
            FileFormatError: the model's file has become shorter.
        """
        if logits in ("last", "all"):
            self._check_predicts()
        entries = [(s, self._checked(tokens)) for s, tokens in work]
        if not entries:
            raise UsageError("There is nothing to do in a step without entries.")
        with self._lock:
            lengths = self._reserve(entries)
            try:
                return self._run(entries, logits)
            except BaseException:
                for (sequence, _), length in zip(entries, lengths, strict=True):
                    sequence.length = max(sequence.length, length)
                    sequence.truncate(length)
                raise

    def head(self, hidden: Floats) -> Floats:
        """Logits of rows that ``step(..., logits="hidden")`` gave: float32 [rows, vocabulary].

        Raises:
            UsageError: rows of another length.
            DataError: they are NaN or infinite.
            UnsupportedError: the model is an encoder.
        """
        self._check_predicts()
        if hidden.ndim != 2 or hidden.shape[1] != self.hidden_size:
            raise UsageError(
                f"Expected hidden states [rows, {self.hidden_size}], got {list(hidden.shape)}."
            )
        out = np.empty((len(hidden), self.vocab_size), np.float32)
        if len(hidden):
            with self._lock:
                self._check(self._plan.run_head(np.ascontiguousarray(hidden, np.float32), out))
        return out

    def step_blocks(
        self,
        tokens: Ids,
        entries: npt.NDArray[np.int64],
        tables: Ids,
        rows: Ids,
        out: Floats,
    ) -> None:
        """A step over blocks that a scheduler has handed out, with nothing said about the logits.

        Args:
            tokens: int32 [tokens] of all entries, one after the other.
            entries: int64 [entries, 3]: index of the first token, number of tokens, and the
                position of the first in its text.
            tables: int32 [entries, blocks]: each text's blocks in order.
            rows: int32, ascending: tokens of which it is wanted what follows.
            out: float32 [rows, vocabulary], filled; NaN and infinity are the caller's to find.

        Raises:
            ValueError: tokens, positions or blocks there are not, or more than `step_tokens`.
            FileFormatError: the model's file has become shorter.
            UnsupportedError: the model is an encoder.
        """
        self._check_predicts()
        with self._lock:
            failed, _ = self._plan.step(
                tokens,
                entries,
                tables,
                rows,
                -1,
                self.layers,
                None,
                None,
                None,
                out if len(rows) else None,
                [],
            )
            self._check((failed, -1))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy what blocks hold: (from, to), one after the other."""
        with self._lock:
            self._plan.copy_blocks(list(pairs))

    def draw(
        self, turns: Sequence[Turn], logits: Floats, masks: npt.NDArray[np.uint32] | None = None
    ) -> list[list[Draw] | DataError]:
        """As `sampling.draw_turns`, on all threads."""
        with self._lock:
            return draw_turns(turns, logits, masks, self._plan)

    def _check_predicts(self) -> None:
        if self.encodes:
            raise UnsupportedError(
                f"{self._name}: this model encodes texts and predicts no tokens, so it has no "
                "logits. Use its embeddings, or name a model that generates."
            )

    def _check_whole(self, entries: Sequence[tuple[KvSequence, npt.NDArray[np.int32]]]) -> None:
        """An encoder's tokens see what comes after them, so a text comes in one piece."""
        for sequence, _ in entries:
            if sequence.length:
                raise UsageError(
                    f"This model reads whole texts at once, got {sequence.length} tokens before "
                    "these. Join them, or take a new sequence."
                )

    def _reserve(self, entries: Sequence[tuple[KvSequence, npt.NDArray[np.int32]]]) -> list[int]:
        if len({id(s) for s, _ in entries}) != len(entries):
            raise UsageError("A sequence is named twice in one step; join its tokens.")
        for sequence, tokens in entries:
            if sequence.pool is not self.kv:
                raise UsageError(
                    "A sequence belongs to another engine; make one with this engine's `sequence`."
                )
            if sequence.length + len(tokens) > self.context:
                raise ContextError(sequence.length + len(tokens), self.context)
        missing = sum(s.missing_blocks(len(tokens)) for s, tokens in entries)
        if self.encodes:
            self._check_whole(entries)
        if missing > self.kv.free_blocks:
            self.kv.take(missing)  # raises, and says what is missing
        for sequence, tokens in entries:
            sequence.reserve(len(tokens))
        return [s.length for s, _ in entries]

    def _run(
        self, entries: Sequence[tuple[KvSequence, npt.NDArray[np.int32]]], logits: Rows
    ) -> Floats:
        total = sum(len(t) for _, t in entries)
        count = {"last": len(entries), "all": total, "hidden": total, "none": 0}[logits]
        width = self.hidden_size if logits == "hidden" else self.vocab_size
        out = np.empty((count, width), np.float32)
        done = 0
        for piece in _pieces(entries, self.step_tokens, whole=self.encodes):
            if logits == "none":
                rows = EMPTY_ROWS
            elif logits == "last":
                ends = np.cumsum([stop - start for _, _, start, stop in piece]) - 1
                last = [stop == len(tokens) for _, tokens, _, stop in piece]
                rows = ends[last].astype(np.int32)
            else:
                rows = np.arange(sum(stop - start for *_, start, stop in piece), dtype=np.int32)
            target = out[done : done + len(rows)]
            self._piece(piece, rows, target, hidden=logits == "hidden")
            done += len(rows)
        return out

    def _piece(
        self,
        piece: Sequence[tuple[KvSequence, npt.NDArray[np.int32], int, int]],
        rows: npt.NDArray[np.int32],
        out: Floats,
        *,
        hidden: bool,
    ) -> None:
        tokens = np.concatenate([tokens[start:stop] for _, tokens, start, stop in piece])
        counts = [(s, stop - start) for s, _, start, stop in piece]
        wanted = out if len(rows) else None
        found = self._plan.step(
            tokens,
            *self._layout(counts),
            rows,
            -1,
            self.layers,
            None,
            None,
            wanted if hidden else None,
            None if hidden else wanted,
            [],
        )
        self._check(found)
        for sequence, count in counts:
            sequence.length += count

    def _layout(
        self, counts: Sequence[tuple[KvSequence, int]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """(begin, count, first position) of each entry, and the block tables."""
        entries = np.empty((len(counts), 3), np.int64)
        begin = 0
        for i, (sequence, count) in enumerate(counts):
            entries[i] = begin, count, sequence.length
            begin += count
        width = max(s.block_count for s, _ in counts)
        return entries, np.stack([s.table(width) for s, _ in counts])

    def _checked(self, tokens: Tokens) -> npt.NDArray[np.int32]:
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise UsageError(
                f"Expected token ids as a list of integers, got {ids.dtype} {list(ids.shape)}. "
                "Encode some text first."
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise UsageError(
                f"Token ids should be from 0 to {self.vocab_size - 1}, got {low} to {high}. "
                "Encode the text with this model's own tokenizer."
            )
        return np.ascontiguousarray(ids, np.int32)

    def _check(self, found: tuple[bool, int]) -> None:
        failed, bad_row = found
        if failed:
            raise FileFormatError(
                f"{self._name}: the file ends inside a weight; it was cut short while in use. "
                "Fetch it again and load the model anew."
            )
        if bad_row >= 0:
            raise DataError(
                f"{self._name}: NaN or infinity among its predictions, expected finite logits. "
                "Nothing was chosen from them; check the weights with `kvant verify`."
            )


def _pieces(
    entries: Sequence[tuple[KvSequence, npt.NDArray[np.int32]]], most: int, *, whole: bool
) -> Iterator[list[tuple[KvSequence, npt.NDArray[np.int32], int, int]]]:
    """Cut a step into pieces of at most ``most`` tokens: (sequence, tokens, start, stop).

    ``whole``: no entry is cut; none is longer than ``most``.
    """
    piece: list[tuple[KvSequence, npt.NDArray[np.int32], int, int]] = []
    room = most
    for sequence, tokens in entries:
        start = 0
        if whole and len(tokens) > room:
            yield piece
            piece, room = [], most
        while start < len(tokens):
            stop = min(len(tokens), start + room)
            piece.append((sequence, tokens, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield piece
                piece, room = [], most
    if piece:
        yield piece
