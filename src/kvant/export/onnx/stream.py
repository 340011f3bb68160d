"""Jobs worked on by several threads: each takes the next run of rows, makes it and writes it.

Nothing depends on which thread did what, so the file is the same for any number of threads; peak
memory is a few buffers a thread, whatever the model's size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from kvant.export.onnx.weights import Job, Write
from kvant.export.target import Progress

__all__ = ["stream"]


def stream(
    jobs: Sequence[Job],
    write: Write,
    *,
    threads: int,
    done: int = 0,
    total: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Do all ``jobs``; the first error ends them and is raised.

    Args:
        jobs: what to write.
        write: puts bytes at an offset; called by several threads.
        threads: how many.
        done: weights that were written before.
        total: weights in all, for progress; by default those of the jobs.
        progress: called from this thread.
    """
    work = _Work(jobs, write, done)
    whole = sum(job.elements for job in jobs) + done if total is None else total
    workers = [threading.Thread(target=work.run, daemon=True) for _ in range(max(1, threads))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(0.1)
                if progress is not None:
                    progress(work.done, whole, work.current)
    finally:
        work.stop.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join()
    if work.failure is not None:
        raise work.failure


class _Work:
    def __init__(self, jobs: Sequence[Job], write: Write, done: int) -> None:
        self._runs = ((job, start, stop) for job in jobs for start, stop in job.runs())
        self._write = write
        self._lock = threading.Lock()
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self.done, self.current = done, ""

    def run(self) -> None:
        while not self.stop.is_set():
            with self._lock:
                taken = next(self._runs, None)
            if taken is None:
                return
            job, start, stop = taken
            try:
                job.write(start, stop, self._write)
            except BaseException as error:  # handed to the caller's thread
                with self._lock:
                    self.failure = self.failure or error
                self.stop.set()
                return
            with self._lock:
                self.done += job.elements * (stop - start) // _rows(job)
                self.current = job.name


def _rows(job: Job) -> int:
    weight = getattr(job, "weight", None)
    return 1 if weight is None else max(1, int(weight.stored.rows))
