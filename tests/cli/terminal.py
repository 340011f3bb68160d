"""A terminal to type into: a process behind a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import kvant

CTRL_C, CTRL_D = "\x03", "\x04"

#: An engine whose steps take a while, so that a test can interrupt it.
SLOW = """
import sys, time
import kvant.engine
load = kvant.engine.load_engine
def slowly(*args, **kwargs):
    engine = load(*args, **kwargs)
    class Slow:
        def __getattr__(self, name): return getattr(engine, name)
        def step(self, *args, **kwargs):
            time.sleep(0.03)
            return engine.step(*args, **kwargs)
    return Slow()
kvant.engine.load_engine = slowly
from kvant.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """``kvant`` with ``arguments``, in a terminal of its own."""

    def __init__(self, *arguments: object, slow: bool = False) -> None:
        start = ["-c", SLOW] if slow else ["-m", "kvant"]
        self._fd, slave = pty.openpty()
        path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, *start, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": path, "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=_own_the_terminal,
        )
        os.close(slave)
        self._seen = ""

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """Wait until what was printed since the last time matches; returns it up to the match."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            try:
                data = os.read(self._fd, 4096) if ready else b""
            except OSError:  # Linux's way of saying that the other side has closed
                data = b""
            assert data, f"expected {pattern!r}, got {self._seen!r}"
            self._seen += data.decode(errors="replace").replace("\r\n", "\n")
        text, self._seen = self._seen[: match.end()], self._seen[match.end() :]
        return text

    def send(self, text: str) -> None:
        """Type ``text``."""
        os.write(self._fd, text.encode())

    def say(self, line: str) -> None:
        """Type a line."""
        self.send(line + "\n")

    def interrupt(self) -> None:
        """Press Ctrl-C at the prompt, not before anybody could read it.

        Python loses an interrupt that comes between printing the prompt and waiting for a key.
        """
        time.sleep(0.3)
        self.send(CTRL_C)

    def status(self, seconds: float = 30) -> int:
        """Wait for the end; the exit status."""
        end = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < end:
            ready, _, _ = select.select([self._fd], [], [], 0.05)
            try:
                data = os.read(self._fd, 4096) if ready else b""
            except OSError:
                data = b""
            self._seen += data.decode(errors="replace")
        assert self._process.returncode is not None, f"still running, after {self._seen!r}"
        assert "Traceback" not in self._seen
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._fd)


def _own_the_terminal() -> None:
    """Make standard input the terminal whose Ctrl-C reaches this process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
