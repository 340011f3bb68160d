"""How much work goes into a file: what each effort does, and a plan whose weights come from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvant.api.without_effect import refuse_without_effect
from kvant.arch import RowOrder
from kvant.calibration.texts import Chunks
from kvant.checkpoint import Weight, rotary_row_order
from kvant.engine import load_engine
from kvant.errors import OutputError, UsageError
from kvant.evidence import Making
from kvant.export.gguf.plan import Plan, PlannedTensor
from kvant.files.tensor import StoredTensor
from kvant.packing import get
from kvant.quant.methods import METHODS
from kvant.tuning.layerwise import Layerwise, quantise_layers
from kvant.tuning.sensitivity import EffortName

__all__ = [
    "EFFORTS",
    "Effort",
    "EffortName",
    "effort_of",
    "making_of",
    "prepared",
    "refuse_texts",
]

Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """What an effort does to the layers' linears; no method: each tensor by itself, in one pass."""

    name: EffortName
    method: str | None
    within: bool = False

    @property
    def described(self) -> str:
        """For a file's metadata."""
        how = "layer by layer, inputs of each linear anew" if self.within else "layer by layer"
        return f"{self.method}, {how}"


EFFORTS: Mapping[str, Effort] = {
    "fast": Effort("fast", None),
    "balanced": Effort("balanced", "refine"),
    "best": Effort("best", "refine-long", within=True),
}


def effort_of(name: str) -> Effort:
    """The effort called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in EFFORTS:
        raise UsageError(f"There is no effort {name!r}; choose {', '.join(EFFORTS)}.")
    return EFFORTS[name]


def refuse_texts(
    effort: Effort, texts: Sequence[object], tokens: int | None, max_memory: int | None
) -> None:
    """Refuse what only an effort that runs the model has a meaning for.

    Raises:
        UsageError: the effort is another one.
    """
    if effort.method is not None:
        return
    if texts or tokens is not None:
        raise UsageError(
            "A text is for --effort balanced or best; with fast, give --importance FILE "
            "(`kvant calibrate` makes it)."
        )
    refuse_without_effect(
        {"--max-memory": max_memory}, "is for --effort balanced or best; leave it out with fast."
    )


def making_of(effort: Effort, chunks: Chunks, making: Making | None = None) -> Making:
    """``making`` with what the effort decides."""
    return replace(
        making or Making(),
        effort=effort.name,
        method=effort.described,
        calibration=chunks.digest,
        texts=tuple(text.name for text in chunks.texts),
        tokens=chunks.ids.size,
        numpy=np.__version__,
        seed=0,
    )


@contextmanager
def prepared(
    plan: Plan,
    effort: Effort,
    chunks: Chunks,
    folder: Path,
    *,
    threads: int,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Plan]:
    """The plan, with linears' weights quantised already: they lie in a scratch file in ``folder``.

    Raises:
        OutputError: no room for the scratch file.
        NotEnoughMemoryError, UnsupportedError, InputError: as for loading the model.
    """
    assert effort.method is not None
    checkpoint = plan.checkpoint
    planned = {t.weight.name: t for t in plan.tensors if t.weight is not None}
    packings = {n: t.assignment.packing for n, t in planned.items()}
    engine = load_engine(checkpoint, threads=threads, kv_tokens=max(512, chunks.ids.shape[1]))
    placed: dict[str, PlannedTensor] = {}
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".kvant-", suffix=".weights") as scratch:
        results = quantise_layers(
            checkpoint,
            engine,
            list(chunks.ids),
            packings,
            Layerwise(METHODS[effort.method], effort.within),
            threads=threads,
            max_memory=max_memory,
            scratch=folder,
            progress=progress,
        )
        at = 0
        for name, rows in results:
            tensor = planned[name]
            try:
                scratch.write(_in_file_order(tensor, rows, checkpoint.architecture.gguf_rows).data)
            except OSError as error:
                raise OutputError(
                    f"{folder}: no room for quantised weights beside the output: {error.strerror}."
                ) from None
            placed[name] = _placed(tensor, Path(scratch.name), at)
            at += rows.size
        scratch.flush()
        del engine, results
        shards = tuple(
            replace(
                s,
                tensors=tuple(placed.get(t.weight.name, t) if t.weight else t for t in s.tensors),
            )
            for s in plan.shards
        )
        yield replace(plan, shards=shards)


def _in_file_order(tensor: PlannedTensor, rows: Bytes, wanted: RowOrder) -> Bytes:
    """Rows as the output has them: heads' rows in the architecture's order."""
    assert tensor.weight is not None
    rotary = tensor.weight.rotary
    if rotary is None or wanted == "half":
        return np.ascontiguousarray(rows)
    order = rotary_row_order(len(rows), rotary.heads, "half", wanted)
    return np.ascontiguousarray(rows[order])


def _placed(tensor: PlannedTensor, path: Path, offset: int) -> PlannedTensor:
    storage = get(tensor.assignment.packing).storage
    stored = StoredTensor(tensor.name, storage, tensor.assignment.slot.shape, path, offset)
    assert tensor.weight is not None
    return replace(tensor, weight=Weight(tensor.weight.name, stored), row_order=None)
