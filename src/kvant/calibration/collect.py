"""Importance collected on the engine: sums of squares of what every linear is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.calibration.belongs import model_fingerprint
from kvant.calibration.importance import Importance
from kvant.calibration.layers import LayerWalk
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

Progress = Callable[[int, int], None]


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
    engine, resident = _load(checkpoint, length, threads, limit)
    room = max(0, limit - engine.memory.total - (0 if resident else _largest_layer(checkpoint)))
    walk = LayerWalk(engine, list(chunks.ids), max_memory=room, folder=scratch)
    total, done = walk.tokens * (engine.layers + 1), 0
    sums: dict[str, Floats] = {}
    while not walk.at_head:
        groups = walk.groups
        found: dict[str, Sums] = {}
        with _loaded_layer(checkpoint, engine, walk.layer, skip=resident):
            for batch in walk.inputs_and_advance([names[0] for names in groups]):
                for name, x in batch.items():
                    _add_squares(found, name, x)
                done += len(next(iter(batch.values())))
                if progress is not None:
                    progress(done, total)
        for names in groups:
            sums |= dict.fromkeys(names, _rounded(checkpoint, names[0], found[names[0]]))
    head = "output.weight" if "output.weight" in checkpoint.weights else "token_embd.weight"
    last: dict[str, Sums] = {}
    for x in walk.head_inputs():
        _add_squares(last, head, x)
        done += len(x)
        if progress is not None:
            progress(done, total)
    sums[head] = _rounded(checkpoint, head, last[head])
    seen = np.array([walk.tokens], np.int64)
    return Importance(
        sums,
        dict.fromkeys(sums, seen),
        chunk=length,
        chunks=len(chunks.ids),
        datasets=tuple(t.name for t in chunks.texts),
        texts=chunks.texts,
        model=model_fingerprint(checkpoint),
        model_name=checkpoint.info.name,
        corpus=chunks.digest,
        version=__version__,
    )


def _add_squares(sums: dict[str, Sums], name: str, x: Floats) -> None:
    """Add the column sums of ``x`` squared: rows in order in float32, batches in float64.

    NumPy adds along the first axis row by row, so the same bits come out on every machine.
    """
    squares = np.square(x, out=None)
    total = np.add.reduce(squares, axis=0, dtype=np.float32)
    if name in sums:
        sums[name] += total
    else:
        sums[name] = total.astype(np.float64)


def _rounded(checkpoint: Checkpoint, name: str, sums: Sums) -> Floats:
    with np.errstate(over="ignore"):
        values = sums.astype(np.float32)
    if not np.isfinite(values).all():
        column = int(np.argmin(np.isfinite(values)))
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
        with weight.open() as fd:
            rows = weight.read_rows(fd, 0, weight.stored.rows)
        weights[name] = _core.Weight.of_array(
            weight.stored.type.id, weight.stored.row_length, np.ascontiguousarray(rows)
        )
    return weights
