"""Read a source and write a number of bytes, as fast as this machine does: the floor of any tool.

Used by quantize_speed.py, which runs it as a process of its own. Every byte of the source is read
and BYTES bytes are written and synced, by threads that each take the next run: positioned reads
and writes of a few megabytes, which release the interpreter lock. Imports nothing but os.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

__all__ = ["copy"]

FLUSH_BYTES = 64 << 20


def copy(sources: list[Path], out: Path, size: int, threads: int, run: int, flush: bool) -> None:
    """Read all ``sources``; write ``size`` bytes of what was read to ``out`` and sync it."""
    fds = [os.open(path, os.O_RDONLY) for path in sources]
    lengths = [os.fstat(fd).st_size for fd in fds]
    total = sum(lengths)
    places = iter([(fd, at) for fd, n in zip(fds, lengths, strict=True) for at in range(0, n, run)])
    lock, done = threading.Lock(), threading.Event()
    out.unlink(missing_ok=True)
    target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    read = written = unflushed = 0

    def work() -> None:
        nonlocal read, written, unflushed
        buffer = memoryview(bytearray(run))
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            got = os.preadv(place[0], [buffer], place[1])
            with lock:
                read += got
                start, written = written, read * size // total
                part = written - start
                unflushed += part
            while part:  # at most a run at a time, though an output may be larger than its source
                put = os.pwrite(target, buffer[: min(part, run)], start)
                start, part = start + put, part - put

    def push() -> None:
        nonlocal unflushed
        while not done.wait(0.02):
            if unflushed >= FLUSH_BYTES:
                unflushed = 0
                os.fdatasync(target)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    flusher = [threading.Thread(target=push)] if flush else []
    for thread in (*workers, *flusher):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in flusher:
        thread.join()
    os.fsync(target)
    for fd in (*fds, target):
        os.close(fd)
    if read != total or out.stat().st_size != size:
        raise SystemExit(f"read {read} of {total} bytes, wrote {out.stat().st_size} of {size}")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Read files and write BYTES bytes, synced: what input and output take alone."
    )
    parser.add_argument("source", type=Path, nargs="+", metavar="SRC")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--bytes", type=int, required=True, metavar="BYTES")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--run", type=int, default=1 << 20, metavar="BYTES", help="bytes at a time")
    parser.add_argument(
        "--flush", action="store_true", help="sync along the way, not only at the end"
    )
    a = parser.parse_args()
    copy(a.source, a.output, a.bytes, a.threads, a.run, a.flush)
    return 0


if __name__ == "__main__":
    sys.exit(main())
