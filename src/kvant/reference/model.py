"""A checkpoint run by the reference interpreter: logits in tiles, for evaluation and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Checkpoint, Weight
from kvant.errors import ContextError, UnsupportedError, UsageError
from kvant.graph.find import output_head
from kvant.graph.ir import Value, WeightRef
from kvant.graph.ops import Linear, Positions, run
from kvant.reference.interpret import Interpreter

__all__ = ["ReferenceModel", "Tile"]

Array = npt.NDArray[np.float32]
Tokens = npt.NDArray[Any]

#: Logits in a tile unless asked otherwise: 32 MB.
_TILE_ELEMENTS = 8_000_000


class Tile(NamedTuple):
    """Logits of some consecutive rows of one sequence: float32 [rows, vocabulary]."""

    sequence: int
    row: int
    logits: Array


class ReferenceModel:
    """Runs ``checkpoint`` in NumPy, in float32, whatever its weights are stored as.

    With ``cache`` all weights stay decoded in memory (4 bytes a parameter); without, each is
    decoded when it is used and dropped again, and of an embedding only the rows needed.
    """

    def __init__(self, checkpoint: Checkpoint, *, cache: bool = True) -> None:
        self.graph = checkpoint.graph
        self.vocab_size = checkpoint.config.vocab_size
        self._weights = checkpoint.weights
        self._cache: dict[str, Array] | None = {} if cache else None
        self._fold = Interpreter(self._weight, self._rows)
        self._head: tuple[Linear, Value] | None = None
        if not self.graph.encodes:
            head, self._after_head = output_head(self.graph)
            assert isinstance(head.op, Linear)
            self._head = head.op, head.inputs[0]

    def logits(
        self, tokens: npt.ArrayLike, *, first_row: int = 0, tile_rows: int | None = None
    ) -> Iterator[Tile]:
        """Logits of rows ``first_row`` to the end of every sequence, in tiles of bounded size.

        Row i of a sequence predicts token i + 1. Tiles come in order: sequence by sequence, rows
        ascending, none across sequences. All of a batch is computed when the first is asked for.

        Args:
            tokens: integers [batch, n], each below ``vocab_size``.
            first_row: rows before it are computed as context only; their logits are not.
            tile_rows: most rows in a tile; by default as many as make 32 MB.

        Raises:
            UsageError: ids out of range, or no tokens.
            DataError: NaN or infinity in the weights.
            UnsupportedError: the model is an encoder.
        """
        if self._head is None:
            raise UnsupportedError(
                "This model encodes texts and predicts no tokens, so it has no logits. Use its "
                "embeddings."
            )
        ids = self._checked(tokens)
        step = tile_rows or max(1, _TILE_ELEMENTS // self.vocab_size)
        head, hidden_value = self._head
        hidden = self._run(ids, hidden_value)
        weight = self._weight(head.weight).T
        bias = None if head.bias is None else self._weight(head.bias)
        for sequence, rows in enumerate(hidden):
            for row in range(first_row, len(rows), step):
                logits = rows[row : row + step] @ weight
                if bias is not None:
                    logits += bias
                for node in self._after_head:
                    logits = node.op.accept(self._fold, [logits])
                yield Tile(sequence, row, logits)

    def forward(self, tokens: npt.ArrayLike) -> Array:
        """All logits at once: integers [batch, n] -> float32 [batch, n, vocabulary].

        Of an encoder, the states: [batch, n, hidden].
        """
        return self._run(self._checked(tokens), self.graph.output)

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """The ``count`` likeliest next tokens, greedily; every step runs the whole text again."""
        tokens = list(prompt)
        for _ in range(count):
            (tile,) = self.logits([tokens], first_row=len(tokens) - 1)
            tokens.append(int(tile.logits[0].argmax()))
        return tokens[len(prompt) :]

    def _run(self, ids: Tokens, until: Value) -> Array:
        return run(self.graph, self._fold, ids, until=until)

    def _checked(self, tokens: npt.ArrayLike) -> Tokens:
        ids = np.asarray(tokens)
        if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
            raise UsageError(
                f"Expected token ids as integers [batch, n], got {ids.dtype} {ids.shape}. "
                "Encode some text first."
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise UsageError(
                f"Token ids should be from 0 to {self.vocab_size - 1}, got {low} to {high}. "
                "Encode the text with this model's own tokenizer."
            )
        table = next((n.op for n in self.graph.nodes if isinstance(n.op, Positions)), None)
        if table is not None and ids.shape[1] > table.weight.shape[0]:
            raise ContextError(ids.shape[1], table.weight.shape[0])
        return ids

    def _weight(self, ref: WeightRef) -> Array:
        if self._cache is None:
            return self._weights[ref.name].read_f32()
        if ref.name not in self._cache:
            self._cache[ref.name] = self._weights[ref.name].read_f32()
        return self._cache[ref.name]

    def _rows(self, ref: WeightRef, ids: Tokens) -> Array:
        if self._cache is not None:
            return self._weight(ref)[ids]
        distinct, position = np.unique(ids, return_inverse=True)
        return _gather(self._weights[ref.name], distinct)[position]


def _gather(weight: Weight, rows: Tokens) -> Array:
    """Some rows of a weight, decoded: float32 [len(rows), row length]."""
    with weight.open() as fd:
        return np.concatenate([weight.read_rows_f32(fd, r, r + 1) for r in map(int, rows)])
