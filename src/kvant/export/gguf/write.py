"""A plan becomes files: all of them whole, or none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvant.errors import OutputError
from kvant.export.gguf.plan import Plan, PlannedTensor, Shard
from kvant.export.gguf.stream import Progress, TensorJob, stream
from kvant.files.atomic import AtomicFile
from kvant.files.tensor import StoredTensor

__all__ = ["Written", "refuse_outputs", "write_plan"]


@dataclass(frozen=True, slots=True)
class Written:
    """Files that were written, their bytes in all, and the seconds it took."""

    paths: tuple[Path, ...]
    nbytes: int
    seconds: float


def write_plan(
    plan: Plan,
    path: Path,
    *,
    threads: int,
    force: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write ``plan`` to ``path``, or to shards named after it.

    Nothing appears under a final name before everything is written and on disk. Of shards the
    first, which runtimes load, appears last. The bytes do not depend on ``threads``.

    Raises:
        OutputError: a file exists and ``force`` is not set, no space, no permission; or the
            output would overwrite the source.
        DataError, FileFormatError: the source's weights are not usable.
    """
    started = time.perf_counter()
    paths = [path.with_name(name) for name in plan.file_names(path.name)]
    _refuse_overwriting_source(plan, paths)
    with ExitStack() as files:
        # All of them have to fit, so the first asks for the room of all.
        opened = [
            files.enter_context(AtomicFile(p, force=force, size=plan.size if i == 0 else None))
            for i, p in enumerate(paths)
        ]
        jobs: list[TensorJob] = []
        for shard, file in zip(plan.shards, opened, strict=True):
            jobs += _jobs(shard, file)
        checksums = stream(jobs, threads=threads, progress=progress)
        _write_headers(plan.shards, opened, checksums)
        for file in opened[:-1]:  # the last one is about to do so, and to take its name first
            file.flush()
    return Written(tuple(paths), plan.size, time.perf_counter() - started)


def _jobs(shard: Shard, file: AtomicFile) -> list[TensorJob]:
    return [
        TensorJob(t.name, _source(t), t.spec.type, file, offset, t.row_order, t.importance)
        for t, offset in zip(shard.tensors, shard.offsets, strict=True)
    ]


def _source(
    tensor: PlannedTensor,
) -> StoredTensor | np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if tensor.weight is None:
        assert tensor.values is not None
        return tensor.values.reshape(-1, 1)
    stored = tensor.weight.stored
    if len(stored.shape) == 1 and tensor.row_order is not None:
        # A rotated bias: its elements are reordered as the rows of its matrix are.
        return StoredTensor(
            stored.name, stored.type, (*stored.shape, 1), stored.path, stored.offset
        )
    return stored


def _write_headers(
    shards: Sequence[Shard], files: Sequence[AtomicFile], checksums: Sequence[int]
) -> None:
    """Headers come last, because they hold the checksums of what follows them."""
    first = 0
    for shard, file in zip(shards, files, strict=True):
        header = shard.header(checksums[first : first + len(shard.tensors)])
        if len(header) != shard.offsets[0]:
            raise AssertionError(f"the header takes {len(header)} bytes, not {shard.offsets[0]}")
        first += len(shard.tensors)
        file.write_at(header, 0)
        end = shard.offsets[-1] + shard.tensors[-1].spec.nbytes
        file.write_at(bytes(shard.size - end), end)
        # Gaps between tensors were never written and read as zeros.


class _Enough(Exception):  # noqa: N818 - no error, and never seen outside
    """Ends a file that was only tried."""


def refuse_outputs(plan: Plan, path: Path, *, force: bool) -> None:
    """Say at once what `write_plan` would refuse: for whoever works long before it.

    Raises:
        OutputError: a file exists and ``force`` is not set, there is no such folder, or the output
            is the source.
    """
    paths = [path.with_name(name) for name in plan.file_names(path.name)]
    _refuse_overwriting_source(plan, paths)
    for each in paths:
        with suppress(_Enough), AtomicFile(each, force=force):
            raise _Enough  # so that nothing is left behind


def _refuse_overwriting_source(plan: Plan, paths: Sequence[Path]) -> None:
    for path in paths:
        for source in plan.checkpoint.files:
            same = False
            with suppress(OSError, ValueError):  # not there; whether it can be made is seen later
                same = path.samefile(source)
            if same:
                raise OutputError(
                    f"{path}: is the source itself; name another output file with -o."
                )
