"""A planned model becomes a folder: weights in safetensors files, and what lies beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvant.checkpoint import Checkpoint
from kvant.errors import OutputError
from kvant.export.shards import Shard, Sink, index_bytes, plan_shards
from kvant.export.target import TargetOptions, TargetResult, TensorLevel
from kvant.export.tensors import GroupTensor, OutTensor
from kvant.export.verify_folder import check_folder
from kvant.export.work import run_jobs
from kvant.files.atomic_folder import AtomicFolder

__all__ = ["FolderPlan", "refuse_source", "source_dtype", "write_folder"]

INDEX = "model.safetensors.index.json"
MOST_BYTES = 5 * 10**9
"""Of a file unless told otherwise: what the field's tools write."""


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """Everything about a folder but the weights.

    ``files`` are whole small files by name; ``metadata`` goes into the header of each file of
    weights, ``index`` into that of the index, which is written for several files and, with
    ``always_index``, for one.
    """

    tensors: Sequence[OutTensor]
    files: Mapping[str, bytes]
    metadata: Mapping[str, str]
    index: Mapping[str, object] = field(default_factory=dict)
    always_index: bool = False
    notes: tuple[str, ...] = ()


def source_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that keeps the source's floats: that of most of them; bfloat16 of a quantised."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    matrices = [w.stored for w in checkpoint.weights.values() if len(w.shape) > 1]
    counts: dict[str, int] = {}
    for stored in matrices:
        kind = stored.stored_as
        counts[kind] = counts.get(kind, 0) + stored.elements
    most = max(counts, key=lambda kind: counts[kind]) if counts else "BF16"
    return names.get(most, "bfloat16")


def write_folder(
    checkpoint: Checkpoint, out: Path, plan: FolderPlan, options: TargetOptions
) -> TargetResult:
    """Write ``plan`` to the folder ``out``, which appears when it is whole.

    Raises:
        UsageError: a tensor does not fit into ``options.split_size``.
        OutputError: the folder exists, is the source's, no space, no permission.
        InputError: the source's weights are not usable.
    """
    started = time.perf_counter()
    refuse_source(checkpoint, out)
    outs = [o for tensor in plan.tensors for o in tensor.outs]
    shards = plan_shards(outs, options.split_size or MOST_BYTES, plan.metadata)
    files = dict(plan.files)
    if len(shards) > 1 or plan.always_index:
        total = sum(o.nbytes for o in outs)
        files[INDEX] = index_bytes(shards, {"total_size": total, **plan.index})
    size = sum(s.size for s in shards) + sum(map(len, files.values()))
    names = (*(s.file for s in shards), *files)
    if options.dry_run:
        return _result(out, plan, names, size, None)
    with AtomicFolder(out, force=options.force, size=size) as folder:
        _fill(folder, shards, plan, options)
        for name, data in files.items():
            folder.write(name, data)
        if options.verify:
            folder.finish_files()
            said = check_folder(checkpoint, folder.work, plan.tensors, threads=options.threads)
            plan = replace(plan, notes=(*plan.notes, said))
    return _result(out, plan, names, size, time.perf_counter() - started)


def _fill(
    folder: AtomicFolder, shards: Sequence[Shard], plan: FolderPlan, options: TargetOptions
) -> None:
    sink = Sink(folder, shards)
    done: set[str] = set()
    if options.layerwise is not None:
        planned = {
            t.piece.canonical: t
            for t in plan.tensors
            if isinstance(t, GroupTensor) and t.piece.expert is None
        }
        for name, found in options.layerwise({n: t.grid for n, t in planned.items()}):
            planned[name].put(sink, found.codes, found.scales)
            done.add(name)
    jobs = [t.job(sink) for t in plan.tensors if t.piece.canonical not in done]
    run_jobs(jobs, threads=options.threads, progress=options.progress)


def _result(
    out: Path, plan: FolderPlan, names: Sequence[str], size: int, seconds: float | None
) -> TargetResult:
    weights = sum(t.piece.rows * t.piece.columns for t in plan.tensors)
    return TargetResult(
        path=out,
        files=tuple(out / name for name in names),
        nbytes=size,
        bits_per_weight=8 * sum(t.nbytes for t in plan.tensors) / max(1, weights),
        tensors=tuple(
            TensorLevel(
                t.piece.canonical
                if t.piece.expert is None
                else f"{t.piece.canonical}[{t.piece.expert}]",
                t.piece.weight.shape,
                t.piece.weight.stored.stored_as,
                t.level,
                t.nbytes,
            )
            for t in plan.tensors
        ),
        notes=plan.notes,
        seconds=seconds,
    )


def refuse_source(checkpoint: Checkpoint, out: Path) -> None:
    """Raise OutputError where ``out`` is the folder the model is read from."""
    for file in checkpoint.files:
        folder = Path(os.path.realpath(file)).parent
        if Path(os.path.realpath(out)) in (folder, Path(os.path.realpath(checkpoint.path))):
            raise OutputError(f"{out}: is the source itself; name another folder with -o.")
