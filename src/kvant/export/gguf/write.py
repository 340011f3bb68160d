"""A plan becomes files: all of them whole, or none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvant.errors import OutputError
from kvant.evidence import FileDigest
from kvant.export.gguf.plan import Plan, PlannedTensor, Shard
from kvant.export.gguf.stream import Progress, TensorJob, stream
from kvant.files.atomic import AtomicFile, check_output
from kvant.files.tensor import StoredTensor

__all__ = ["Completion", "Written", "refuse_outputs", "write_plan"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What is found out when the tensors are on disk, and no file has its name yet.

    Attributes:
        beside: files that appear together with the model; their texts come from ``describe``.
        describe: called with name, size and hash of each model file as it will be.
        measure: called with the path of the first model file, which can be opened but not kept;
            the text it gives is filled into the header (`Plan.reserved`).
        replace: those of ``beside`` that may be replaced without ``force``.
    """

    beside: tuple[Path, ...]
    describe: Callable[[Sequence[FileDigest]], Sequence[str]]
    measure: Callable[[Path], str] | None = None
    replace: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class Written:
    """Model files that were written, their bytes in all, and the seconds that took; measuring
    is not counted."""

    paths: tuple[Path, ...]
    nbytes: int
    seconds: float
    beside: tuple[Path, ...] = ()


def write_plan(
    plan: Plan,
    path: Path,
    *,
    threads: int,
    force: bool = False,
    progress: Progress | None = None,
    complete: Completion | None = None,
) -> Written:
    """Write ``plan`` to ``path``, or to shards named after it, and what ``complete`` says of it.

    Nothing appears under a final name before everything is written, measured and on disk. Of
    shards the first, which runtimes load, appears last. The bytes do not depend on ``threads``.

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
        beside: list[AtomicFile] = []
        if complete is not None:
            beside = [
                files.enter_context(AtomicFile(p, force=force or p in complete.replace))
                for p in complete.beside
            ]
        jobs: list[TensorJob] = []
        for shard, file in zip(plan.shards, opened, strict=True):
            jobs += _jobs(shard, file)
        checksums = stream(jobs, threads=threads, progress=progress)
        digests = _write_headers(plan.shards, opened, checksums)
        measuring = 0.0
        if complete is not None:
            if complete.measure is not None and plan.reserved:
                began = time.perf_counter()
                quality = _measured(complete.measure, opened)
                digests = _write_headers(plan.shards, opened, checksums, quality)
                measuring = time.perf_counter() - began
            for file, text in zip(beside, complete.describe(digests), strict=True):
                file.write(text.encode())
        for file in [*beside, *opened[:-1]]:  # the last one is about to do so
            file.flush()
    seconds = time.perf_counter() - started - measuring
    return Written(tuple(paths), plan.size, seconds, () if complete is None else complete.beside)


def _measured(measure: Callable[[Path], str], files: Sequence[AtomicFile]) -> str:
    """Measure files that have no names yet, under links that have the right ones."""
    with tempfile.TemporaryDirectory(prefix="kvant-") as folder:
        for file in files:
            (Path(folder) / file.path.name).symlink_to(file.readable)
        return measure(Path(folder) / files[0].path.name)


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
    shards: Sequence[Shard],
    files: Sequence[AtomicFile],
    checksums: Sequence[int],
    quality: str | None = None,
) -> list[FileDigest]:
    """Headers come last, because they hold the checksums of what follows them."""
    first = 0
    digests = []
    for shard, file in zip(shards, files, strict=True):
        header = shard.header(checksums[first : first + len(shard.tensors)], quality)
        if len(header) != shard.offsets[0]:
            raise AssertionError(f"the header takes {len(header)} bytes, not {shard.offsets[0]}")
        first += len(shard.tensors)
        file.write_at(header, 0)
        end = shard.offsets[-1] + shard.tensors[-1].spec.nbytes
        file.write_at(bytes(shard.size - end), end)
        # Gaps between tensors were never written and read as zeros.
        digests.append(FileDigest.of(file.path.name, shard.size, header))
    return digests


def refuse_outputs(plan: Plan, path: Path, *, force: bool) -> None:
    """Say at once what `write_plan` would refuse: for whoever works long before it.

    Raises:
        OutputError: a file exists and ``force`` is not set, there is no such folder, or the output
            is the source.
    """
    paths = [path.with_name(name) for name in plan.file_names(path.name)]
    _refuse_overwriting_source(plan, paths)
    for each in paths:
        check_output(each, force=force)


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
