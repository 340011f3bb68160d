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
from kvant.engine.plan import ExpertStack, LoweredPlan
from kvant.errors import (
    ContextError,
    DataError,
    FileFormatError,
    UnsupportedError,
    UsageError,
)

__all__ = ["Engine", "Inputs", "Memory", "Rows", "Work"]

Rows = Literal["last", "all", "none", "hidden"]
Floats = npt.NDArray[np.float32]
Tokens = Sequence[int] | npt.NDArray[np.integer]
Work = Sequence[tuple[KvSequence, Tokens]]

_Routing = tuple[int, npt.NDArray[np.int32], Floats | None, Floats | None]
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


class Inputs(dict[str, Floats]):
    """What linears read, by canonical name: float32 [tokens, row length].

    A stack of experts has an entry in ``experts``, int32 [rows, n]: the experts that each of its
    rows went to. Gate and up read one row a token, which goes to all of its experts; down reads a
    row for every token and expert, token by token, so there n is 1. What expert e read is
    ``inputs[name][(inputs.experts[name] == e).any(1)]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.experts: dict[str, npt.NDArray[np.int32]] = {}

    @classmethod
    def of(cls, name: str, rows: Floats) -> Inputs:
        """Of one plain linear."""
        found = cls()
        found[name] = rows
        return found


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
            FileFormatError: the model's file has become shorter.
        """
        if self.encodes and logits in ("last", "all"):
            raise UnsupportedError(
                f"{self._name}: this model encodes texts and predicts no tokens, so it has no "
                "logits. Use its embeddings, or name a model that generates."
            )
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

    def embed(self, tokens: Tokens, lengths: Sequence[int] | None = None) -> Floats:
        """The stream before the first layer: float32 [tokens, hidden].

        Args:
            tokens: of one text from its beginning, or of several, one after the other.
            lengths: tokens of each of these; where a model adds positions it matters.

        Raises:
            ContextError: a text is longer than the model's context.
            UsageError: no tokens, ids the vocabulary does not have, lengths that do not add up.
        """
        ids = self._checked(tokens)
        lengths = [len(ids)] if lengths is None else lengths
        if sum(lengths) != len(ids) or min(lengths) < 1:
            raise UsageError(f"Expected lengths that add up to {len(ids)}, got {lengths}.")
        if self._lowered.positions and max(lengths) > self.context:
            raise ContextError(max(lengths), self.context)
        out = np.empty((len(ids), self.hidden_size), np.float32)
        begin = 0
        with self._lock:
            for length in lengths:
                for first in range(0, length, self.step_tokens):
                    count = min(self.step_tokens, length - first)
                    rows = slice(begin + first, begin + first + count)
                    entries = np.array([[0, count, first]], np.int64)
                    tables = np.zeros((1, -(-(first + count) // _core.KV_BLOCK)), np.int32)
                    found = self._plan.step(
                        ids[rows],
                        entries,
                        tables,
                        _EMPTY_ROWS,
                        -1,
                        -1,
                        None,
                        out[rows],
                        None,
                        None,
                        [],
                    )
                    self._check(found)
                begin += length
        return out

    def run_layer(
        self,
        layer: int,
        hidden: Floats,
        sequences: Sequence[tuple[KvSequence, int]],
        *,
        capture: Sequence[str] = (),
        advance: bool = False,
    ) -> tuple[Floats, Inputs]:
        """Run one layer alone.

        Args:
            layer: which.
            hidden: the stream before it, float32 [tokens, hidden], at most ``step_tokens`` rows.
            sequences: whose tokens the rows are, in order, with how many each has; their positions
                go on from ``length``, and the layer's keys and values are stored there.
            capture: canonical names of linears of this layer whose inputs are wanted.
            advance: count the tokens in ``length``; after the last layer of a step.

        Returns:
            The stream after the layer, and the inputs by name, float32 [tokens, row length]; what
            experts read, and which, is told by `Inputs`.

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
        inputs, captures, routings = self._captures(layer, capture, rows)
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
                routings,
            )
            self._check(found)
        if advance:
            for sequence, count in sequences:
                sequence.length += count
        return out, inputs

    def _captures(
        self, layer: int, names: Sequence[str], rows: int
    ) -> tuple[Inputs, list[tuple[int, Floats]], list[_Routing]]:
        inputs = Inputs()
        by_op: dict[int, Floats] = {}
        experts: dict[int, _Routing] = {}
        for name in names:
            stack = self._lowered.expert_ops.get(name)
            if stack is not None and name.startswith(f"blk.{layer}."):
                self._capture_experts(name, stack, rows, inputs, experts)
                continue
            op = self._lowered.linear_ops.get(name)
            if op is None or not name.startswith(f"blk.{layer}."):
                raise UsageError(f"Layer {layer} has no linear called {name!r}.")
            if op not in by_op:
                columns = self._plan.op_columns(op)
                by_op[op] = np.empty((rows, columns), np.float32)
            inputs[name] = by_op[op]
        return inputs, list(by_op.items()), list(experts.values())

    def _capture_experts(
        self,
        name: str,
        stack: ExpertStack,
        tokens: int,
        inputs: Inputs,
        experts: dict[int, _Routing],
    ) -> None:
        op, chosen, outer, inner = experts.get(
            stack.op, (stack.op, np.empty((tokens, stack.used), np.int32), None, None)
        )
        columns = self._plan.weight(self._lowered.matrices[name]).columns
        if stack.inner:
            inner = np.empty((tokens * stack.used, columns), np.float32)
            inputs[name], inputs.experts[name] = inner, chosen.reshape(-1, 1)
        else:
            outer = np.empty((tokens, columns), np.float32) if outer is None else outer
            inputs[name], inputs.experts[name] = outer, chosen
        experts[stack.op] = op, chosen, outer, inner

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
        """Canonical names of a layer's linears, stacks of experts among them; routers are none."""
        names = (*self._lowered.linear_ops, *self._lowered.expert_ops)
        return [n for n in names if n.startswith(f"blk.{layer}.")]

    def shared_inputs(self, layer: int) -> list[list[str]]:
        """The layer's linears, those that read one input together."""
        groups: dict[tuple[int, bool], list[str]] = {}
        for name in self.linears(layer):
            stack = self._lowered.expert_ops.get(name)
            key = (stack.op, stack.inner) if stack else (self._lowered.linear_ops[name], False)
            groups.setdefault(key, []).append(name)
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
