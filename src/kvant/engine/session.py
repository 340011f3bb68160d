"""An engine: steps over a ragged batch, and the finer access that measuring needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.engine.kv_blocks import KvBlocks, KvSequence
from kvant.engine.plan import LoweredPlan
from kvant.errors import ContextError, DataError, FileFormatError, UsageError

__all__ = ["Engine", "Memory", "Rows", "Work"]

Rows = Literal["last", "all", "none", "hidden"]
Floats = npt.NDArray[np.float32]
Tokens = Sequence[int] | npt.NDArray[np.integer]
Work = Sequence[tuple[KvSequence, Tokens]]

_EMPTY_ROWS = np.empty(0, np.int32)


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


class Engine:
    """A loaded model. Made by `load_engine`.

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
            FileFormatError: the model's file has become shorter.
        """
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
        """
        if hidden.ndim != 2 or hidden.shape[1] != self.hidden_size:
            raise UsageError(
                f"Expected hidden states [rows, {self.hidden_size}], got {list(hidden.shape)}."
            )
        out = np.empty((len(hidden), self.vocab_size), np.float32)
        if len(hidden):
            with self._lock:
                self._check(self._plan.run_head(np.ascontiguousarray(hidden, np.float32), out))
        return out

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
        for piece in _pieces(entries, self.step_tokens):
            if logits == "none":
                rows = _EMPTY_ROWS
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

    # ---- for measuring --------------------------------------------------------------------------

    def embed(self, tokens: Tokens) -> Floats:
        """The stream before the first layer: float32 [tokens, hidden]."""
        ids = self._checked(tokens)
        parts = [ids[i : i + self.step_tokens] for i in range(0, len(ids), self.step_tokens)]
        out = []
        with self._lock:
            for part in parts:
                stream = np.empty((len(part), self.hidden_size), np.float32)
                entries = np.array([[0, len(part), 0]], np.int64)
                tables = np.zeros((1, -(-len(part) // _core.KV_BLOCK)), np.int32)
                found = self._plan.step(
                    part, entries, tables, _EMPTY_ROWS, -1, -1, None, stream, None, None, []
                )
                self._check(found)
                out.append(stream)
        return np.concatenate(out)

    def run_rest(
        self,
        layer: int,
        hidden: Floats,
        sequences: Sequence[tuple[KvSequence, int]],
        rows: npt.NDArray[np.int32],
    ) -> Floats:
        """Run the layers from ``layer`` on and the head; ``run_layer`` says what it is given.

        No sequence gets longer, so the same rows may run again with other weights.

        Args:
            layer: the first that runs; the number of layers runs the head alone.
            hidden: the stream before it.
            sequences: whose tokens the rows are.
            rows: of ``hidden``, ascending: those whose predictions are wanted.

        Returns:
            Logits, float32 [rows, vocabulary].

        Raises:
            UsageError, CacheFullError, ContextError: as for ``run_layer``.
            DataError: logits are NaN or infinite.
        """
        count = sum(n for _, n in sequences)
        if not 0 <= layer <= self.layers or hidden.shape != (count, self.hidden_size):
            raise UsageError(
                f"Expected a layer from 0 to {self.layers} and hidden states [{count}, "
                f"{self.hidden_size}], got layer {layer} and {list(hidden.shape)}."
            )
        if not 0 < count <= self.step_tokens:
            raise UsageError(f"The rest takes 1 to {self.step_tokens} rows at once, got {count}.")
        tokens = np.zeros(len(hidden), np.int32)
        out = np.empty((len(rows), self.vocab_size), np.float32)
        stream = np.ascontiguousarray(hidden, np.float32)
        with self._lock:
            self._reserve([(s, tokens[:n]) for s, n in sequences])
            layout = self._layout(sequences)
            found = self._plan.step(
                tokens, *layout, rows, layer, self.layers, stream, None, None, out, []
            )
            self._check(found)
        return out

    def run_layer(
        self,
        layer: int,
        hidden: Floats,
        sequences: Sequence[tuple[KvSequence, int]],
        *,
        capture: Sequence[str] = (),
        advance: bool = False,
    ) -> tuple[Floats, dict[str, Floats]]:
        """Run one layer alone.

        Args:
            layer: which.
            hidden: the stream before it, float32 [tokens, hidden], at most ``step_tokens`` rows.
            sequences: whose tokens the rows are, in order, with how many each has; their positions
                go on from ``length``, and the layer's keys and values are stored there.
            capture: canonical names of linears of this layer whose inputs are wanted.
            advance: count the tokens in ``length``; after the last layer of a step.

        Returns:
            The stream after the layer, and the inputs by name, float32 [tokens, row length].

        Raises:
            UsageError: no such layer or linear, or rows that do not add up.
            CacheFullError, ContextError: as for ``step``.
        """
        rows = sum(count for _, count in sequences)
        if not 0 <= layer < self.layers or hidden.shape != (rows, self.hidden_size):
            raise UsageError(
                f"Expected a layer from 0 to {self.layers - 1} and hidden states [{rows}, "
                f"{self.hidden_size}], got layer {layer} and {list(hidden.shape)}."
            )
        if not 0 < rows <= self.step_tokens or min(count for _, count in sequences) < 1:
            raise UsageError(
                f"A layer takes 1 to {self.step_tokens} rows at once, some of each sequence; "
                f"got {[count for _, count in sequences]}."
            )
        inputs, captures = self._captures(layer, capture, rows)
        tokens = np.zeros(rows, np.int32)
        out = np.empty(hidden.shape, np.float32)
        with self._lock:
            self._reserve([(s, tokens[:n]) for s, n in sequences])
            found = self._plan.step(
                tokens,
                *self._layout(sequences),
                _EMPTY_ROWS,
                layer,
                layer,
                np.ascontiguousarray(hidden, np.float32),
                out,
                None,
                None,
                captures,
            )
            self._check(found)
        if advance:
            for sequence, count in sequences:
                sequence.length += count
        return out, inputs

    def _captures(
        self, layer: int, names: Sequence[str], rows: int
    ) -> tuple[dict[str, Floats], list[tuple[int, Floats]]]:
        inputs: dict[str, Floats] = {}
        by_op: dict[int, Floats] = {}
        for name in names:
            op = self._lowered.linear_ops.get(name)
            if op is None or not name.startswith(f"blk.{layer}."):
                raise UsageError(f"Layer {layer} has no linear called {name!r}.")
            if op not in by_op:
                columns = self._plan.op_columns(op)
                by_op[op] = np.empty((rows, columns), np.float32)
            inputs[name] = by_op[op]
        return inputs, list(by_op.items())

    def head_inputs(self, hidden: Floats) -> Floats:
        """What the head reads, of the stream after the last layer: the same shape, normed.

        Args:
            hidden: float32 [tokens, hidden], any number of rows.

        Raises:
            UsageError: rows of another length.
        """
        if hidden.ndim != 2 or hidden.shape[1] != self.hidden_size:
            raise UsageError(
                f"Expected hidden states [rows, {self.hidden_size}], got {list(hidden.shape)}."
            )
        out = np.empty(hidden.shape, np.float32)
        for start in range(0, len(hidden), self.step_tokens):
            part = np.ascontiguousarray(hidden[start : start + self.step_tokens], np.float32)
            count = len(part)
            entries = np.array([[0, count, 0]], np.int64)
            tables = np.zeros((1, -(-count // _core.KV_BLOCK)), np.int32)
            tokens, rows = np.zeros(count, np.int32), np.arange(count, dtype=np.int32)
            beyond = self.layers  # no layer runs, only what follows them
            with self._lock:
                found = self._plan.step(
                    tokens,
                    entries,
                    tables,
                    rows,
                    beyond,
                    beyond,
                    part,
                    None,
                    out[start : start + count],
                    None,
                    [],
                )
            self._check(found)
        return out

    def linears(self, layer: int) -> list[str]:
        """Canonical names of a layer's linears."""
        return [n for n in self._lowered.linear_ops if n.startswith(f"blk.{layer}.")]

    def shared_inputs(self, layer: int) -> list[list[str]]:
        """The layer's linears, those that read one input together."""
        groups: dict[int, list[str]] = {}
        for name in self.linears(layer):
            groups.setdefault(self._lowered.linear_ops[name], []).append(name)
        return list(groups.values())

    @contextmanager
    def replaced(self, weights: Mapping[str, _core.Weight]) -> Iterator[None]:
        """Run with other weights of the same shapes, by canonical name; then put the old ones back.

        `kvant._core.Weight.of_array` makes one from packed rows of any storage type.

        Raises:
            UsageError: a name the model has no linear for, or another shape.
        """
        old = self.replace(weights)
        try:
            yield
        finally:
            self.replace(old)

    def replace(self, weights: Mapping[str, _core.Weight]) -> dict[str, _core.Weight]:
        """Run with other weights of the same shapes from now on.

        Returns:
            Those that were in their place, by name: what puts everything back.

        Raises:
            UsageError: a name the model has no linear for, or another shape; nothing has changed.
        """
        for name in weights:
            if name not in self._lowered.matrices:
                raise UsageError(f"The model has no linear called {name!r}.")
        ids = {name: self._lowered.matrices[name] for name in weights}
        old: dict[str, _core.Weight] = {}
        with self._lock:
            for name, weight in weights.items():
                before = self._plan.weight(ids[name])
                try:
                    self._plan.set_weight(ids[name], weight)
                except ValueError as error:
                    for done, previous in old.items():
                        self._plan.set_weight(ids[done], previous)
                    raise UsageError(f"{name}: {error}.") from None
                old[name] = before
        return old


def _pieces(
    entries: Sequence[tuple[KvSequence, npt.NDArray[np.int32]]], most: int
) -> Iterator[list[tuple[KvSequence, npt.NDArray[np.int32], int, int]]]:
    """Cut a step into pieces of at most ``most`` tokens: (sequence, tokens, start, stop)."""
    piece: list[tuple[KvSequence, npt.NDArray[np.int32], int, int]] = []
    room = most
    for sequence, tokens in entries:
        start = 0
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
