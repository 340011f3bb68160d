"""Divergence with some tensors replaced: the model runs from the first of them on, and no further.

The tokens go through the model a few chunks at a time. The stream before each layer is computed
once; for every tensor, or group of tensors, of that layer the rest of the model runs again with
the replacement in place, and its predictions are compared with the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.checkpoint import Checkpoint
from kvant.engine import Engine, KvSequence
from kvant.errors import DataError
from kvant.packing import dequantize, get
from kvant.packing.groups import Groups
from kvant.tuning.rounding import GROUPS_AS

__all__ = ["CONTEXT", "STEP_TOKENS", "Probe", "Replacement", "chunks_of", "divergence"]

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]

CONTEXT = 256
"""Tokens a chunk, unless the model takes fewer."""

STEP_TOKENS = 512
"""Tokens that run together, in whole chunks."""

_UNSCORED = 64
"""Tokens at the beginning of a chunk whose predictions are not compared."""

_LOGITS_BYTES = 128 << 20
"""Most bytes of logits of one model at once; of a large vocabulary only some rows are scored."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """Tensors that are replaced together, and the packing, or grid of groups, each gets."""

    packings: Mapping[str, str | Groups]

    @property
    def names(self) -> tuple[str, ...]:
        """Their canonical names."""
        return tuple(self.packings)


Rows = Callable[[str, str | Groups], npt.NDArray[np.uint8]]
"""A tensor's packed rows, by name and packing; of groups those of `GROUPS_AS`."""


def chunks_of(tokens: Tokens, count: int, length: int = CONTEXT) -> Tokens:
    """``count`` chunks from all over a text: int32 [chunks, length], fewer if it is short."""
    whole = len(tokens) // length
    picked = np.unique(np.linspace(0, whole - 1, min(count, whole)).astype(int))
    chosen: Tokens = tokens[: whole * length].reshape(whole, length)[picked]
    return chosen


def divergence(base: Floats, other: Floats, threads: int) -> npt.NDArray[np.float64]:
    """KL(base || other) of each row of logits, in nats.

    Raises:
        DataError: NaN or infinity.
    """
    rows = len(base)
    nll, kld = np.empty((2, rows)), np.empty((1, rows))
    same, targets = np.empty((1, rows), np.uint8), np.zeros(rows, np.int32)
    if _core.score([base, other], targets, nll, kld, same, threads) is not None:
        raise DataError(
            "The model gives NaN or infinity, expected finite logits; check its weights."
        )
    found: npt.NDArray[np.float64] = kld[0]
    return found


class Probe:
    """A model and some text, ready to be asked what a replacement costs."""

    def __init__(self, checkpoint: Checkpoint, engine: Engine, chunks: Tokens) -> None:
        self._checkpoint, self._engine = checkpoint, engine
        self._chunks = chunks
        self._together = max(1, min(STEP_TOKENS, engine.step_tokens) // chunks.shape[1])
        refs = checkpoint.graph.weights
        self._layer_of = {name: ref.layer for name, ref in refs.items()}
        self._embedding = next(n for n, r in refs.items() if r.role == "token_embd")
        self._head = next((n for n, r in refs.items() if r.role == "output"), self._embedding)

    def measure(
        self,
        replacements: Sequence[Replacement],
        rows_of: Rows,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float64]:
        """Mean divergence of each chunk with each replacement: float64 [replacements, chunks]."""
        found = np.zeros((len(replacements), len(self._chunks)))
        starts = [self._start(r) for r in replacements]
        done, total = 0, len(replacements) * -(-len(self._chunks) // self._together)
        for first in range(0, len(self._chunks), self._together):
            batch = self._chunks[first : first + self._together]
            with _Batch(self._engine, batch) as b:
                stream = self._engine.embed(b.tokens, b.lengths)
                base = self._engine.run_rest(0, stream, b.work, b.rows)
                for layer in range(self._engine.layers + 1):
                    for index in (i for i, start in enumerate(starts) if start == layer):
                        kld = self._with(replacements[index], layer, stream, base, b, rows_of)
                        found[index, first : first + len(batch)] = kld
                        done += 1
                        if progress is not None:
                            progress(done, total)
                    if layer < self._engine.layers:
                        stream, _ = self._engine.run_layer(layer, stream, b.work)
        return found

    def _start(self, replacement: Replacement) -> int:
        """The first layer that changes; the number of layers where only the head does."""
        layers = [self._layer_of[name] for name in replacement.names]
        if self._embedding in replacement.names:
            return 0
        return min(self._engine.layers if layer is None else layer for layer in layers)

    def _with(
        self,
        replacement: Replacement,
        layer: int,
        stream: Floats,
        base: Floats,
        batch: _Batch,
        rows_of: Rows,
    ) -> npt.NDArray[np.float64]:
        weights: dict[str, _core.Weight] = {}
        for name, grid in replacement.packings.items():
            packed = rows_of(name, grid)
            packing = GROUPS_AS if isinstance(grid, Groups) else grid
            if name == self._embedding:
                stream = stream + self._moved(packing, packed, batch)
                if self._head != self._embedding:
                    continue
            shape = self._checkpoint.weights[name].shape
            weights[name] = _engine_weight(packing, packed, shape[0] if len(shape) == 3 else 1)
        with self._engine.replaced(weights):
            other = self._engine.run_rest(layer, stream, batch.work, batch.rows)
        kld = divergence(base, other, self._engine.threads)
        means: npt.NDArray[np.float64] = kld.reshape(batch.count, -1).mean(1)
        return means

    def _moved(self, packing: str, packed: npt.NDArray[np.uint8], batch: _Batch) -> Floats:
        """By how much the stream before the first layer changes with the embedding's rounding."""
        ids, places = np.unique(batch.tokens, return_inverse=True)
        weight = self._checkpoint.weights[self._embedding]
        with weight.open() as fd:
            rows = [weight.read_rows_f32(fd, i, i + 1) for i in ids.tolist()]
        before = np.concatenate(rows)
        moved: Floats = (dequantize(packing, packed[ids]) - before)[places]
        return moved * self._embedding_scale(before[places], batch)

    def _embedding_scale(self, rows: Floats, batch: _Batch) -> np.float32:
        """What the graph multiplies embeddings with: by least squares, from what it makes of them.

        Positions that are added on top are as good as independent of the rows, so the slope is a
        scale only where it is clearly not one.
        """
        stream = self._engine.embed(batch.tokens, batch.lengths).astype(np.float64)
        slope = float((stream * rows).sum() / np.square(rows, dtype=np.float64).sum())
        return np.float32(slope if abs(slope - 1) > 0.2 else 1.0)


def _engine_weight(packing: str, packed: npt.NDArray[np.uint8], matrices: int) -> _core.Weight:
    """Packed rows for the engine, of so many matrices; decoded where it has no kernels for them."""
    storage = get(packing).storage
    columns = packed.shape[1] // storage.block_bytes * storage.block
    if _core.has_panels(storage.id):
        return _core.Weight.of_array(storage.id, columns, packed, matrices)
    rows = np.ascontiguousarray(dequantize(packing, packed)).view(np.uint8)
    return _core.Weight.of_array(get("F32").storage.id, columns, rows, matrices)


class _Batch:
    """Chunks that run together, with sequences to run in; and which of their rows are scored."""

    def __init__(self, engine: Engine, chunks: Tokens) -> None:
        self.count = len(chunks)
        self.tokens = np.ascontiguousarray(chunks.reshape(-1))
        length = chunks.shape[1]
        self.lengths = [length] * self.count
        first = min(_UNSCORED, length // 2)
        scored = self.count * (length - first)
        stride = max(1, -(-4 * scored * engine.vocab_size // _LOGITS_BYTES))
        one = np.arange(first, length, stride)
        self.rows = np.concatenate([one + i * length for i in range(self.count)]).astype(np.int32)
        self._sequences: list[KvSequence] = [engine.sequence() for _ in chunks]
        self.work = [(s, length) for s in self._sequences]

    def __enter__(self) -> _Batch:
        return self

    def __exit__(self, *_: object) -> None:
        for sequence in self._sequences:
            sequence.free()
