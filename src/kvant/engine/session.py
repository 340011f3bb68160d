"""An engine: steps, and the finer access that measuring needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.engine.kv_blocks import KvSequence
from kvant.engine.plan import ExpertStack
from kvant.engine.steps import EMPTY_ROWS, Floats, Memory, Rows, Steps, Tokens, Work
from kvant.errors import ContextError, UsageError

__all__ = ["Engine", "Inputs", "Memory", "Rows", "Work"]

_Routing = tuple[int, npt.NDArray[np.int32], Floats | None, Floats | None]


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


class Engine(Steps):
    """A loaded model. Made by `load_engine`."""

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
                        EMPTY_ROWS,
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
                EMPTY_ROWS,
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
            self.kv.forget()
        return old
