"""Rows of many tensors, converted by several threads in bounded memory.

Work is cut into runs of rows of about a million weights. A pool of threads takes them in order;
only a few wait at a time, so that peak memory is some runs a thread, whatever the model's size.
Results are written by position, so the bytes do not depend on which thread did what.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from kvant.export.pieces import Piece

__all__ = ["RUN_WEIGHTS", "Job", "Task", "run_jobs", "run_tasks"]

RUN_WEIGHTS = 1 << 20
"""Weights a thread works on at a time: large enough that Python's share is lost in it."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One piece: ``convert(fd, start, stop)`` reads rows of it and writes what they become.

    ``finish`` is called once, after the last of them; ``step`` rows are converted together.
    """

    piece: Piece
    convert: Callable[[int, int, int], None]
    finish: Callable[[], None] | None = None
    step: int = 1

    def runs(self) -> Iterator[tuple[int, int]]:
        """Cuts of the rows."""
        rows, step = self.piece.rows, max(self.step, self.piece.row_step)
        height = max(1, RUN_WEIGHTS // max(1, self.piece.columns * step)) * step
        for start in range(0, rows, height):
            yield start, min(rows, start + height)


@dataclass(frozen=True, slots=True)
class Task:
    """Work that one thread does at once: so many weights, of the tensor ``name``."""

    work: Callable[[], None]
    weights: int
    name: str


class _Left:
    """How many runs of a job are not done."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.lock = threading.Lock()

    def done(self) -> bool:
        """Whether that was the last."""
        with self.lock:
            self.count -= 1
            return self.count == 0


def run_jobs(jobs: Sequence[Job], *, threads: int, progress: Progress | None = None) -> None:
    """Do all jobs; the first error, or the user's interrupt, ends the rest.

    Raises:
        KvantError: what a job raised.
    """
    total = sum(job.piece.rows * job.piece.columns for job in jobs)
    with ExitStack() as files:
        opened: dict[object, int] = {}

        def tasks() -> Iterator[Task]:
            for job in jobs:
                path = job.piece.weight.stored.path
                if path not in opened:
                    opened[path] = files.enter_context(job.piece.open())
                cuts = list(job.runs())
                left = _Left(len(cuts))
                for start, end in cuts:
                    work = partial(_convert, job, opened[path], start, end, left)
                    yield Task(work, (end - start) * job.piece.columns, job.piece.canonical)

        run_tasks(tasks(), threads=threads, total=total, progress=progress)


def _convert(job: Job, fd: int, start: int, end: int, left: _Left) -> None:
    job.convert(fd, start, end)
    if left.done() and job.finish is not None:
        job.finish()


def run_tasks(
    tasks: Iterable[Task],
    *,
    threads: int,
    total: int,
    done: int = 0,
    progress: Progress | None = None,
) -> None:
    """Do all tasks, taken in order; the first error, or the user's interrupt, ends the rest.

    Args:
        tasks: made when their turn comes.
        threads: how many work.
        total: weights in all, for progress.
        done: weights that were done before.
        progress: called from this thread.

    Raises:
        KvantError: what a task raised.
    """
    waiting: dict[Future[None], Task] = {}
    stop = threading.Event()

    def work(task: Task) -> None:
        if not stop.is_set():
            task.work()

    def take(most: int) -> None:
        nonlocal done
        while len(waiting) > most:
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                task = waiting.pop(future)
                future.result()
                done += task.weights
                if progress is not None:
                    progress(done, total, task.name)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        try:
            for task in tasks:
                waiting[pool.submit(work, task)] = task
                take(2 * threads)
            take(0)
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise
