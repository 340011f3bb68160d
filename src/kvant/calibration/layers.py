"""Through a model layer by layer, over many texts: what each linear is fed, layer after layer.

The texts' hidden states are kept between layers; everything else lives for one batch. Between
looking at a layer's inputs and running it, its weights may be replaced: so the next layer is fed
what an already quantised layer gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant.calibration.states import States
from kvant.engine import Engine, KvSequence
from kvant.engine.kv_blocks import KvBlocks
from kvant.engine.session import Inputs
from kvant.errors import CacheFullError, ContextError, UsageError

__all__ = ["Inputs", "LayerWalk"]

Floats = npt.NDArray[np.float32]
Tokens = Sequence[int] | npt.NDArray[np.integer]

#: Rows (of one batch) that go through the layers together: (chunk, begin, end in the chunk).
_Batch = list[tuple[int, int, int]]


class LayerWalk:
    """Goes through an engine's layers over some texts, each a sequence of its own from position 0.

    ::

        walk = LayerWalk(engine, chunks)
        while not walk.at_head:
            for batch in walk.inputs():          # as often as needed; nothing changes
                ...
            engine.replace(quantised_weights)    # or not
            walk.advance()
        for hidden in walk.head_inputs():
            ...

    Batches are the same for every layer and for every walk over the same chunks on engines of one
    ``step_tokens`` and cache, so two walks (a model and its quantised twin) may be zipped. Keys and
    values are in the cache only while a batch runs; several walks may share an engine.
    """

    def __init__(
        self,
        engine: Engine,
        chunks: Sequence[Tokens],
        *,
        max_memory: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """Embed the texts.

        Args:
            engine: its cache must take the longest chunk.
            chunks: token ids, one list a text.
            max_memory: most bytes for the hidden states (4 x tokens x hidden size); what is more
                goes to a scratch file. None keeps them in memory.
            folder: for the scratch file; by default the system's temporary folder.

        Raises:
            UsageError: no chunks, an empty one, or ids the vocabulary does not have.
            ContextError: a chunk is longer than the model's context.
            CacheFullError: a chunk is longer than the cache.
            OutputError: no room for the scratch file.
        """
        self._lengths = [len(c) for c in chunks]
        if not self._lengths or min(self._lengths) < 1:
            raise UsageError("Calibration needs at least one text, and none of them empty.")
        longest = max(self._lengths)
        if longest > engine.context:
            raise ContextError(longest, engine.context)
        if longest > engine.kv.capacity_tokens:
            raise CacheFullError(
                f"A chunk of {longest:,} tokens does not fit into a cache of "
                f"{engine.kv.capacity_tokens:,}. Load the model with a larger cache."
            )
        self.engine = engine
        self.layer = 0
        """The layer whose inputs are next; ``engine.layers`` at the head."""
        self.tokens = sum(self._lengths)
        """Tokens of all chunks."""
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)]).tolist()
        self._batches = list(_batches(self._lengths, engine.step_tokens, engine.kv))
        self._torn = False
        self._states = States(self.tokens, engine.hidden_size, max_memory=max_memory, folder=folder)
        for start, chunk in zip(self._starts, chunks, strict=False):
            self._states.write(start, engine.embed(chunk))

    @property
    def at_head(self) -> bool:
        """Whether all layers have run."""
        return self.layer == self.engine.layers

    @property
    def on_disk(self) -> bool:
        """Whether the hidden states are in a scratch file."""
        return self._states.on_disk

    @property
    def groups(self) -> list[list[str]]:
        """Names of this layer's linears, those that share an input together."""
        return self.engine.shared_inputs(self._layer())

    @property
    def batch_rows(self) -> list[int]:
        """Tokens of each batch."""
        return [end - start for start, end in map(self._rows, self._batches)]

    def hidden(self) -> Iterator[Floats]:
        """The stream before this layer, batch by batch: float32 [tokens, hidden]."""
        for batch in self._batches:
            yield self._read(batch)

    def inputs(self, names: Sequence[str] | None = None) -> Iterator[Inputs]:
        """What this layer's linears are fed, with the weights now in place, batch by batch.

        Linears that read one input have the same array, not a copy.
        Nothing changes by it: it may be called again, for instance after the weights of linears
        that come earlier in the layer have been replaced.

        Args:
            names: canonical names of linears of this layer; by default all.

        Raises:
            UsageError: no such linear in this layer, or all layers have run.
        """
        layer = self._layer()
        wanted = self.engine.linears(layer) if names is None else list(names)
        for _, _, inputs in self._run(layer, wanted):
            yield inputs

    def outputs(self) -> Iterator[Floats]:
        """The stream after this layer with the weights now in place; nothing changes."""
        for _, after, _ in self._run(self._layer(), []):
            yield after

    def advance(self) -> None:
        """Run this layer with the weights now in place, and go on to the next."""
        for _ in self.inputs_and_advance([]):
            pass

    def inputs_and_advance(self, names: Sequence[str] | None = None) -> Iterator[Inputs]:
        """`inputs` and `advance` in one pass. It must be exhausted: then the walk has gone on."""
        layer = self._layer()
        wanted = self.engine.linears(layer) if names is None else list(names)
        self._torn = True
        for batch, after, inputs in self._run(layer, wanted):
            self._write(batch, after)
            yield inputs
        self._torn = False
        self.layer += 1

    def head_inputs(self) -> Iterator[Floats]:
        """What the output head reads (normed states), batch by batch: float32 [tokens, hidden].

        Raises:
            UsageError: some layers have not run.
        """
        if not self.at_head or self._torn:
            raise UsageError(
                f"The head is fed after {self.engine.layers} layers; {self.layer} have run."
            )
        for batch in self._batches:
            yield self.engine.head_inputs(self._read(batch))

    # ---- batches --------------------------------------------------------------------------------

    def _layer(self) -> int:
        if self._torn:
            raise UsageError("A pass over a layer was left before its end; start a new walk.")
        if self.at_head:
            raise UsageError(f"All {self.engine.layers} layers have run; what follows is the head.")
        return self.layer

    def _run(self, layer: int, names: Sequence[str]) -> Iterator[tuple[_Batch, Floats, Inputs]]:
        """One layer over all batches; a chunk's keys and values are freed with its last piece."""
        open_: dict[int, KvSequence] = {}
        try:
            for batch in self._batches:
                for chunk, _, _ in batch:
                    open_.setdefault(chunk, self.engine.sequence())
                work = [(open_[chunk], end - begin) for chunk, begin, end in batch]
                after, inputs = self.engine.run_layer(
                    layer, self._read(batch), work, capture=names, advance=True
                )
                for chunk, _, end in batch:
                    if end == self._lengths[chunk]:
                        open_.pop(chunk).free()
                yield batch, after, inputs
        finally:
            for sequence in open_.values():
                sequence.free()

    def _rows(self, batch: _Batch) -> tuple[int, int]:
        """Rows of a batch among all; they follow each other."""
        (first, begin, _), (last, _, end) = batch[0], batch[-1]
        return self._starts[first] + begin, self._starts[last] + end

    def _read(self, batch: _Batch) -> Floats:
        return self._states.read(*self._rows(batch))

    def _write(self, batch: _Batch, values: Floats) -> None:
        self._states.write(self._rows(batch)[0], values)


def _batches(lengths: Sequence[int], most: int, kv: KvBlocks) -> Iterator[_Batch]:
    """Whole chunks while they fit into ``most`` rows and the cache; a longer one in pieces."""
    batch: _Batch = []
    room, free = most, kv.count
    for chunk, length in enumerate(lengths):
        blocks = -(-length // kv.block_tokens)
        if batch and (length > room or blocks > free):
            yield batch
            batch, room, free = [], most, kv.count
        begin = 0
        while length - begin > most:
            yield [(chunk, begin, begin + most)]
            begin += most
        batch.append((chunk, begin, length))
        room -= length - begin
        free -= blocks
    yield batch
