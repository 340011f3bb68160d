"""Importance collected on the engine: sums of squares of what every linear is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.calibration.belongs import model_fingerprint
from kvant.calibration.importance import Importance
from kvant.calibration.layers import Inputs, LayerWalk
from kvant.calibration.texts import Chunks
from kvant.checkpoint import Checkpoint
from kvant.engine import Engine, load_engine
from kvant.engine.load import available_memory
from kvant.errors import DataError, NotEnoughMemoryError
from kvant.files.source import quote
from kvant.version import __version__

__all__ = ["collect_importance"]

Floats = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

Progress = Callable[[int, int], None]

_CACHE = 512
"""Tokens of the cache, unless a chunk is longer: as many as go through the layers at once."""


def collect_importance(
    checkpoint: Checkpoint,
    chunks: Chunks,
    *,
    max_memory: int | None = None,
    threads: int | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Importance:
    """Run the model over the chunks, layer by layer, and sum up the squares of all inputs.

    Args:
        checkpoint: the model, quantised or not.
        chunks: what to run.
        max_memory: most bytes of memory, weights included; by default what is free. Where the
            model does not fit, one layer at a time is loaded; hidden states that do not fit go to
            a scratch file.
        threads: processors to use; the sums do not depend on it.
        scratch: folder of that file.
        progress: called with tokens done and tokens in all, each layer's counted.

    Raises:
        NotEnoughMemoryError: not even one layer fits.
        DataError: NaN or infinity among the inputs.
        UnsupportedError, InputError: as for loading the model.
    """
    limit = available_memory() if max_memory is None else max_memory
    length = chunks.ids.shape[1]
    engine, resident = _load(checkpoint, max(length, _CACHE), threads, limit)
    room = max(0, limit - engine.memory.total - (0 if resident else _largest_layer(checkpoint)))
    walk = LayerWalk(engine, list(chunks.ids), max_memory=room, folder=scratch)
    total, done = walk.tokens * (engine.layers + 1), 0
    gathered = _Gathered(checkpoint)

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, total)

    while not walk.at_head:
        groups = {names[0]: names for names in walk.groups}
        with _loaded_layer(checkpoint, engine, walk.layer, skip=resident):
            for batch, rows in zip(
                walk.inputs_and_advance(list(groups)), walk.batch_rows, strict=True
            ):
                gathered.add(batch)
                count(rows)
        gathered.share(groups)
    if not engine.encodes:  # an encoder ends in states
        head = "output.weight" if "output.weight" in checkpoint.weights else "token_embd.weight"
        for x in walk.head_inputs():
            gathered.add(Inputs.of(head, x))
            count(len(x))
        gathered.share({head: [head]})
    return Importance(
        gathered.sums,
        gathered.seen,
        chunk=length,
        chunks=len(chunks.ids),
        datasets=tuple(t.name for t in chunks.texts),
        texts=chunks.texts,
        model=model_fingerprint(checkpoint),
        model_name=checkpoint.info.name,
        corpus=chunks.digest,
        version=__version__,
    )


class _Gathered:
    """Sums of squares while they grow, in float64, and the finished ones."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._growing: dict[str, tuple[Sums, Counts]] = {}
        self.sums: dict[str, Floats] = {}
        self.seen: dict[str, Counts] = {}

    def add(self, batch: Inputs) -> None:
        """Add a batch. Rows of experts are told apart by ``batch.experts`` (`engine.Inputs`)."""
        experts = batch.experts
        for name, x in batch.items():
            shape = self._checkpoint.weights[name].shape
            count = shape[0] if name in experts else 1
            if name not in self._growing:
                self._growing[name] = (np.zeros((count, x.shape[1])), np.zeros(count, np.int64))
            sums, seen = self._growing[name]
            for expert in range(count):
                rows = x[(experts[name] == expert).any(1)] if name in experts else x
                seen[expert] += len(rows)
                sums[expert] += _squares(rows)

    def share(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Finish what was added, for all linears that read the same input."""
        for first, (sums, seen) in self._growing.items():
            values = _rounded(self._checkpoint, first, sums)
            stacked = len(self._checkpoint.weights[first].shape) == 3
            for name in groups[first]:
                self.sums[name] = values if stacked else values[0]
                self.seen[name] = seen
        self._growing.clear()


def _squares(x: Floats) -> Floats:
    """Column sums of ``x`` squared, rows in order, in float32 (a batch is a few hundred rows).

    NumPy adds along the first axis row by row, so the same bits come out on every machine.
    """
    with np.errstate(over="ignore"):  # said with the tensor's name at the end
        total: Floats = np.add.reduce(np.square(x), axis=0)
    return total


def _rounded(checkpoint: Checkpoint, name: str, sums: Sums) -> Floats:
    with np.errstate(over="ignore"):
        values = sums.astype(np.float32)
    if not np.isfinite(values).all():
        column = int(np.argwhere(~np.isfinite(values))[0][1])
        raise DataError(
            f"{checkpoint.path}: the input of {quote(name)} is NaN or infinite in column {column}, "
            "expected finite activations. Check the weights with `kvant verify`."
        )
    return values


# ---- models larger than memory ------------------------------------------------------------------


def _load(
    checkpoint: Checkpoint, length: int, threads: int | None, limit: int
) -> tuple[Engine, bool]:
    """The model in memory if it fits; otherwise its weights stay in the file."""
    try:
        return load_engine(checkpoint, threads=threads, kv_tokens=length, memory_limit=limit), True
    except NotEnoughMemoryError as error:
        engine = load_engine(
            checkpoint, threads=threads, kv_tokens=length, memory_limit=limit, resident=False
        )
        needed = engine.memory.total + _largest_layer(checkpoint)
        if needed > limit:
            raise NotEnoughMemoryError(
                f"{checkpoint.path}: one layer at a time, calibrating takes "
                f"{needed / 1e6:,.0f} MB, {limit / 1e6:,.0f} MB are allowed. Allow more memory, or "
                "calibrate on a Q8_0 file of the model: its importance is nearly the same."
            ) from error
        return engine, False


def _largest_layer(checkpoint: Checkpoint) -> int:
    layers: dict[str, int] = {}
    for name, weight in checkpoint.weights.items():
        if name.startswith("blk."):
            layer = name.split(".")[1]
            layers[layer] = layers.get(layer, 0) + weight.stored.nbytes
    return max(layers.values(), default=0)


@contextmanager
def _loaded_layer(
    checkpoint: Checkpoint, engine: Engine, layer: int, *, skip: bool
) -> Iterator[None]:
    """Have a layer's matrices in memory while all batches go through it."""
    if skip:
        yield
        return
    with engine.replaced(_layer_weights(checkpoint, engine, layer)):
        yield


def _layer_weights(
    checkpoint: Checkpoint, engine: Engine, layer: int
) -> Mapping[str, _core.Weight]:
    weights = {}
    for name in engine.linears(layer):
        weight = checkpoint.weights[name]
        if len(weight.shape) != 2:  # stacks of experts stay in the file: few of them run
            continue
        with weight.open() as fd:
            rows = weight.read_rows(fd, 0, weight.stored.rows)
        weights[name] = _core.Weight.of_array(
            weight.stored.type.id, weight.stored.row_length, np.ascontiguousarray(rows)
        )
    return weights
