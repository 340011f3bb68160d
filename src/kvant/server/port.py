"""The address a server listens on; who has it where it is taken, and which one is free."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
from pathlib import Path

from kvant.errors import OutputError, UsageError

__all__ = ["bind", "free_port", "holder"]

_PROBE_SECONDS = 0.5
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OutputError: the address is taken; says by whom, and offers another port.
        UsageError: there is no such address here.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError) as error:
        raise UsageError(f"--host {host} --port {port}: no such address ({error}).") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise OutputError(
                f"Port {port} of {host} is taken by {holder(host, port)}. Stop it, or serve on "
                f"another port: --port {free_port(host, port)}."
            ) from None
        if error.errno == errno.EACCES:
            raise OutputError(
                f"Port {port} of {host} is not allowed to this user. Use one above 1023."
            ) from None
        raise UsageError(f"--host {host} --port {port}: {error.strerror}.") from None
    return sock


def free_port(host: str, after: int) -> int:
    """The next port that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(after + 1, min(after + 200, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind((host, port))
                return port
    return 0  # any


def holder(host: str, port: int) -> str:
    """Who listens on a port: what it says of itself, and its process where that can be seen."""
    process = _process(port)
    said = _asked("127.0.0.1" if host in ("0.0.0.0", "::", "") else host, port)
    if process and said:
        return f"{said} ({process})"
    return said or process or "another program"


def _asked(host: str, port: int) -> str:
    """Ollama, or a kvant, by what it answers."""
    connection = http.client.HTTPConnection(host, port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", "/api/version")
        text = connection.getresponse().read(200).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    if '"kvant"' in text:
        return "another kvant"
    return "Ollama" if '"version"' in text else ""


def _process(port: int) -> str:
    """Name and number of the process that listens, from /proc; of other users' it is not seen."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return ""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in inodes for fd in (folder / "fd").iterdir()):
                name = (folder / "comm").read_text().strip()
                return f"{name}, process {folder.name}"
        except OSError:
            continue
    return ""
