"""Who asked which model what it cost, when: lines that can be added to, and not changed unseen.

Each line is a JSON object with the hash of the line before and its own, SHA-256 over both; so a
line that is changed, taken out or put in breaks the chain from there on. Lines cut off at the end
leave a chain that holds: compare the last hash with one noted elsewhere
(``kvant audit verify --head``). Prompts and answers are not in it unless the server was told so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.errors import InputError, OutputError

__all__ = ["AuditLog", "Broken", "read_lines", "verify"]

_START = "0" * 64
_TAIL = 1 << 20


class AuditLog:
    """The log in ``folder/audit.jsonl``, written by a thread of its own. Close it.

    Several servers may write to one log: each line is added under a lock, behind whatever is last.

    Raises:
        OutputError: the file cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "audit.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise OutputError(
                f"{self.path}: the audit log cannot be written: {error.strerror}. Set KVANT_HOME "
                "to another folder, or serve with --no-audit."
            ) from None
        self._known = -1  # size of the file after our last line
        self._last, self._number = _START, 0
        self._lines: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self.failed: str | None = None
        """Why lines could not be written, once that has happened."""
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

    def add(self, event: str, **values: Any) -> None:
        """Add a line; returns at once."""
        self._lines.put({"event": event, "time": round(time.time(), 3), **values})

    def close(self) -> None:
        """Write what is left."""
        self._lines.put(None)
        self._thread.join()
        os.close(self._fd)

    def _write(self) -> None:
        while True:
            batch = [self._lines.get()]
            while batch[-1] is not None and not self._lines.empty():
                batch.append(self._lines.get())
            lines = [line for line in batch if line is not None]
            if lines:
                try:
                    self._append(lines)
                    self.failed = None
                except OSError as error:
                    self.failed = error.strerror or str(error)
            if batch[-1] is None:
                return

    def _append(self, lines: list[Mapping[str, Any]]) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._fd).st_size
            torn = size != self._known and self._find_last(size)
            text = "\n" if torn else ""
            for line in lines:
                self._number += 1
                extra = {"after_torn": True} if torn else {}
                torn = False
                line = {"n": self._number, **line, **extra, "previous": self._last}
                self._last = _hash(line)
                text += _dump({**line, "hash": self._last}) + "\n"
            data = text.encode()
            self._known = -1  # until all of it is there: what is not is not what comes next follows
            while data:
                data = data[os.write(self._fd, data) :]
            os.fdatasync(self._fd)
            self._known = os.fstat(self._fd).st_size
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _find_last(self, size: int) -> bool:
        """Go on from the last whole line; whether there is half a line behind it."""
        self._last, self._number = _START, 0
        tail = _TAIL
        while True:
            parts = os.pread(self._fd, tail, max(0, size - tail)).split(b"\n")
            # The first of them may be the end of a line: with prompts, lines are long.
            for raw in reversed(parts[:-1] if tail >= size else parts[1:-1]):
                try:
                    line = json.loads(raw)
                    self._last, self._number = str(line["hash"]), int(line["n"])
                    return bool(parts[-1])
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
            if tail >= size:
                return bool(parts[-1])
            tail *= 4


@dataclass(frozen=True, slots=True)
class Broken:
    """Where a chain does not hold, and why."""

    line: int
    why: str


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that can be read.

    Raises:
        InputError: the file cannot be read.
    """
    for _, line in _parsed(path):
        if line is not None:
            yield line


def verify(path: Path) -> tuple[int, str, list[Broken]]:
    """Check the chain: lines there are, the last one's hash, and where it is broken.

    Raises:
        InputError: the file cannot be read.
    """
    broken: list[Broken] = []
    last, count, number, torn = _START, 0, 0, 0
    for place, line in _parsed(path):
        number = place
        if line is None:
            torn = place
            continue
        count += 1
        claimed = line.pop("hash", None)
        if torn and not line.get("after_torn"):
            broken.append(Broken(torn, "is no JSON object"))
        torn = 0
        if line.get("previous") != last:
            broken.append(Broken(place, "does not follow the line before it"))
        if _hash(line) != claimed:
            broken.append(Broken(place, "was changed"))
        last = str(claimed)
    if torn and torn != number:
        broken.append(Broken(torn, "is no JSON object"))
    return count, last, broken


def _parsed(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    try:
        with path.open("rb") as file:
            for place, raw in enumerate(file, 1):
                try:
                    line = json.loads(raw)
                except (ValueError, RecursionError):
                    line = None
                yield place, line if isinstance(line, dict) else None
    except FileNotFoundError:
        raise InputError(f"{path}: there is no log yet. `kvant serve` writes it.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def _hash(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dump(line).encode()).hexdigest()
