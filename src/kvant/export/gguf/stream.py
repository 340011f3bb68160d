"""Tensors from source files to an output file, converted on the way, in bounded memory.

Work is cut into runs of rows of about two megabytes. Each thread takes the next run, reads it by
positioned reads, converts it in the core and writes it at its place; another thread flushes what
was written, so that the disk works while the processors do. Nothing depends on which thread did
what, so the bytes are the same for any number of threads. Peak memory is a few buffers a thread.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from kvant import _core
from kvant.errors import DataError
from kvant.files.atomic import AtomicFile
from kvant.files.source import open_source
from kvant.files.tensor import StoredTensor
from kvant.packing import BadWeight, convert_rows
from kvant.packing.types import StorageType
from kvant.quant.pack import pack_rows

__all__ = ["Progress", "TensorJob", "stream"]

RUN_BYTES = 2 << 20
"""Source bytes a thread works on at a time: large enough that Python's share is lost in it, small
enough for the second-level cache and for many threads on a small machine."""

READ_AHEAD_RUNS = 4
"""Runs between two requests to the system to read ahead; each costs as much as a small run."""

FLUSH_BYTES = 8 << 20
"""Bytes written between two requests to the system to move them on to the disk."""

SYNC_BYTES = 64 << 20
"""The same where a request waits until they are there."""

MAX_LEAD = 16
"""Runs a thread may be ahead of the oldest unfinished one of a tensor; bounds what waits to be
hashed."""

Progress = Callable[[int, int, str], None]
"""Called with weights done, weights in all, and the tensor at hand."""


@dataclass(frozen=True, slots=True)
class TensorJob:
    """One tensor to write.

    ``source`` holds the rows as they lie in a file, or as float32 in memory. ``row_order``
    reorders the rows of each run of ``len(row_order)`` rows: new row i is old row
    ``row_order[i]``. The result, of type ``target``, starts at ``offset`` of ``file``.
    ``importance`` is float32 [columns], or for a stack of experts one such row for each,
    [experts, columns].
    """

    name: str
    source: StoredTensor | npt.NDArray[np.float32]
    target: StorageType
    file: AtomicFile
    offset: int
    row_order: npt.NDArray[np.intp] | None = None
    importance: npt.NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """Rows to convert."""
        return self.source.shape[0] if isinstance(self.source, np.ndarray) else self.source.rows

    @property
    def columns(self) -> int:
        """Weights in a row."""
        return (
            self.source.shape[-1] if isinstance(self.source, np.ndarray) else self.source.row_length
        )

    @property
    def rows_per_run(self) -> int:
        """Rows a thread takes at a time: whole groups of ``row_order``."""
        if isinstance(self.source, np.ndarray):
            return max(1, self.rows)
        group = 1 if self.row_order is None else len(self.row_order)
        wide = max(self.source.row_bytes, self.target.row_bytes(self.columns))
        return max(1, RUN_BYTES // max(1, wide * group)) * group


def stream(
    jobs: Sequence[TensorJob], *, threads: int, progress: Progress | None = None
) -> list[int]:
    """Convert and write all ``jobs``; returns the XXH64 of each tensor's bytes, in order.

    Raises:
        DataError: a weight is NaN or infinite, or the target cannot hold it.
        FileFormatError: a source file shrank.
        OutputError: no space, or the disk failed.
    """
    return _Stream(jobs, progress).run(threads)


class _InOrder:
    """Feeds the runs of one tensor to its hash in order, whoever finishes first."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh64()
        self._next = 0
        self._waiting: dict[int, npt.NDArray[np.uint8]] = {}
        self._moved = threading.Condition()

    def wait_for_room(self, run: int, stop: threading.Event) -> None:
        with self._moved:
            while run > self._next + MAX_LEAD and not stop.is_set():
                self._moved.wait(0.1)

    def add(self, run: int, data: npt.NDArray[np.uint8]) -> None:
        with self._moved:
            if run != self._next:
                self._waiting[run] = data.copy()  # the caller's buffer is used again
                return
            self._hash.update(data.data)
            self._next += 1
            while (following := self._waiting.pop(self._next, None)) is not None:
                self._hash.update(following.data)
                self._next += 1
            self._moved.notify_all()

    def value(self) -> int:
        return self._hash.intdigest()


class _Stream:
    def __init__(self, jobs: Sequence[TensorJob], progress: Progress | None) -> None:
        self.jobs = jobs
        self.progress = progress
        self.hashes = [_InOrder() for _ in jobs]
        self.total = sum(job.rows * job.columns for job in jobs)
        self.done = 0
        self.current = ""
        self.unflushed = 0
        self.failure: BaseException | None = None
        self.stop = threading.Event()
        self.lock = threading.Condition(threading.Lock())  # notified whenever a thread is done
        self.active = 0
        self.unfinished = 0
        self.runs = self._cut()
        self.fds: dict[Path, int] = {}

    def _cut(self) -> Iterator[tuple[int, int, int, int]]:
        for index, job in enumerate(self.jobs):
            step = job.rows_per_run
            for number, start in enumerate(range(0, job.rows, step)):
                yield index, number, start, min(start + step, job.rows)

    def run(self, threads: int) -> list[int]:
        with ExitStack() as open_files:
            for job in self.jobs:
                if isinstance(job.source, StoredTensor) and job.source.path not in self.fds:
                    fd, _ = open_files.enter_context(open_source(job.source.path))
                    self.fds[job.source.path] = fd
            works = [*[self._work] * max(1, threads), self._flush]
            self.unfinished = len(works) - 1
            try:
                for work in works:
                    threading.Thread(target=self._guarded, args=(work,), daemon=True).start()
                self._wait_for_work()
            finally:
                self._stop_all()
        if self.failure is not None:
            raise self.failure
        assert not self.unfinished
        self._report()
        return [h.value() for h in self.hashes]

    def _wait_for_work(self) -> None:
        # Not Thread.join: an interrupt inside it marks a running thread as ended.
        while True:
            with self.lock:
                if not self.unfinished or self.stop.is_set():
                    return
                self.lock.wait(0.1)
            self._report()

    def _stop_all(self) -> None:
        """Wait until no thread touches the files any more, however often the user interrupts."""
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                with self.lock:
                    self.stop.set()
                    while self.active:
                        self.lock.wait()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, self.current)

    def _guarded(self, work: Callable[[], None]) -> None:
        with self.lock:
            if self.stop.is_set():  # nobody waits for a thread that starts this late
                return
            self.active += 1
        try:
            work()
        except BaseException as error:  # handed to the caller's thread
            with self.lock:
                self.failure = self.failure or error
                self.stop.set()
        finally:
            with self.lock:
                self.active -= 1
                self.lock.notify_all()

    def _work(self) -> None:
        source = np.empty(0, np.uint8)
        target = np.empty(0, np.uint8)
        while not self.stop.is_set():
            with self.lock:
                taken = next(self.runs, None)
                if taken is None:
                    self.unfinished -= 1
                    return
            index, number, start, stop = taken
            job = self.jobs[index]
            self.hashes[index].wait_for_room(number, self.stop)
            out_bytes = (stop - start) * job.target.row_bytes(job.columns)
            if out_bytes > target.size:
                target = np.empty(out_bytes, np.uint8)
            if isinstance(job.source, StoredTensor):
                in_bytes = (stop - start) * job.source.row_bytes
                if in_bytes > source.size:
                    source = np.empty(in_bytes, np.uint8)
            data = self._convert(job, start, stop, source, target)
            row_bytes = job.target.row_bytes(job.columns)
            job.file.write_at(data, job.offset + start * row_bytes)
            self.hashes[index].add(number, data)
            with self.lock:
                self.done += (stop - start) * job.columns
                self.current = job.name
                self.unflushed += data.size

    def _convert(
        self,
        job: TensorJob,
        start: int,
        stop: int,
        source: npt.NDArray[np.uint8],
        target: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        if isinstance(job.source, np.ndarray):
            kind, rows = "F32", np.ascontiguousarray(job.source[start:stop]).view(np.uint8)
        else:
            kind = job.source.type.name
            fd = self.fds[job.source.path]
            self._read_ahead(job, fd, start)
            rows = job.source.read_rows(fd, start, stop, source)
        if job.row_order is not None:
            groups = rows.reshape(-1, len(job.row_order), rows.shape[-1])
            rows = np.ascontiguousarray(groups[:, job.row_order]).reshape(rows.shape)
        at = 0
        try:
            if kind == job.target.name and job.target.block > 1:
                # Already in the packing asked for: the bytes are kept, once they are known good.
                # Decoded they are up to twelve times as long, so not all at once.
                step = max(1, RUN_BYTES // (4 * job.columns))
                for at in range(0, len(rows), step):
                    convert_rows(kind, "F32", rows[at : at + step], job.columns)
                return rows
            return self._packed(job, kind, rows, start, target)
        except BadWeight as bad:
            raise self._bad_weight(job, start + at, bad) from None

    @staticmethod
    def _packed(
        job: TensorJob,
        kind: str,
        rows: npt.NDArray[np.uint8],
        start: int,
        target: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        """Rows in the target's packing; those of one expert at a time where each has its own
        importance."""
        importance = job.importance
        if importance is None or importance.ndim == 1:
            return pack_rows(kind, job.target.name, rows, job.columns, importance, target)
        each, width = job.rows // len(importance), job.target.row_bytes(job.columns)
        at = 0
        while at < len(rows):
            expert = (start + at) // each
            stop = min(len(rows), (expert + 1) * each - start)
            room = target[at * width : stop * width]
            try:
                pack_rows(
                    kind, job.target.name, rows[at:stop], job.columns, importance[expert], room
                )
            except BadWeight as bad:
                raise BadWeight(at + bad.row, bad.column, bad.value) from None
            at = stop
        return target[: len(rows) * width].reshape(len(rows), width)

    @staticmethod
    def _read_ahead(job: TensorJob, fd: int, start: int) -> None:
        """Every few runs, ask for the bytes of the next few, to be there when their turn comes."""
        if isinstance(job.source, StoredTensor) and hasattr(os, "posix_fadvise"):
            step = job.rows_per_run
            if start // step % READ_AHEAD_RUNS == 0:
                with suppress(OSError):
                    ahead = job.source.offset + (start + step) * job.source.row_bytes
                    size = 2 * READ_AHEAD_RUNS * RUN_BYTES
                    os.posix_fadvise(fd, ahead, size, os.POSIX_FADV_WILLNEED)

    @staticmethod
    def _bad_weight(job: TensorJob, start: int, bad: BadWeight) -> DataError:
        row = start + bad.row
        if job.row_order is not None:
            group = len(job.row_order)
            row = row // group * group + int(job.row_order[row % group])
        if np.isfinite(bad.value):
            most, wider = ("3.39e38", "F32") if job.target.name == "BF16" else ("65504", "BF16")
            return DataError(
                f"Tensor {job.name} has the weight {bad.value:g} at [{row}, {bad.column}], which "
                f"{job.target.name} cannot hold (at most {most}). Use {wider} for it: "
                f"convert with --dtype {wider.lower()}, or quantize with "
                f"--tensor '{re.escape(job.name)}={wider}'."
            )
        return DataError(
            f"Tensor {job.name} holds {bad.value} at [{row}, {bad.column}]; the checkpoint is "
            "damaged or its training diverged. Nothing was written."
        )

    def _flush(self) -> None:
        """Push written bytes to disk while the others go on, so that the last sync is short."""
        files = {id(job.file): job.file for job in self.jobs}
        least = FLUSH_BYTES
        while not self.stop.wait(0.01):
            with self.lock:
                if self.unflushed < least:
                    continue
                self.unflushed = 0
            for file in files.values():
                if not _core.start_writing(file.fd):
                    least = SYNC_BYTES
                    with suppress(OSError):  # a failing disk is reported by the sync at the end
                        os.fdatasync(file.fd)
