"""A real server in a process of its own, for tests; and a small client."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import kvant


class Served:
    """A running ``kvant serve``."""

    def __init__(self, process: subprocess.Popen[str], url: str, lines: list[str]) -> None:
        self.process, self.url, self.lines = process, url, lines
        self.http = httpx.Client(base_url=url, timeout=60)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/status").json()
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        text = self.http.get("/metrics").text
        rows = [row for row in text.splitlines() if row.startswith((f"{name}{{", f"{name} "))]
        return sum(float(row.rpartition(" ")[2]) for row in rows)

    def until(self, what: Any, seconds: float = 20) -> None:
        """Wait until ``what()`` is true."""
        ends = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < ends, "it did not happen in time"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def environment(home: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "KVANT_HOME": str(home)}


@contextmanager
def serving(home: Path, *options: str, **more: str) -> Iterator[Served]:
    """``kvant serve`` on a free port, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvant", "serve", "--port", "0", *options],
        env={**environment(home), **more},
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    told: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            told.put(line)
        told.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            line = told.get(timeout=60)
            assert line is not None, "".join(lines)
            found = re.search(r"serves on (https?://\S+)", line)
            if found:
                break
        yield Served(process, found[1], lines)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])
