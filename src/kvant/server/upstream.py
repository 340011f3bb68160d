"""Asks another server on this machine for a completion, piece by piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from kvant.server.jobs import EngineLostError

__all__ = ["Refused", "alive", "events"]

_LINE = 8 << 20


class Refused(Exception):  # noqa: N818 - an answer, which is turned into an error
    """It answered with another status than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def alive(port: int, path: str) -> bool:
    """Whether it answers a GET with 200."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(_head("GET", path, port, ""))
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def events(port: int, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; closing the iterator ends the request there too.

    Raises:
        Refused: it answered with an error.
        EngineLostError: the connection ended early.
    """
    data = json.dumps(body).encode()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LINE)
    except OSError as error:
        raise EngineLostError(f"The engine's server does not answer: {error.strerror}.") from None
    try:
        sized = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer.write(_head("POST", path, port, sized) + data)
        status = (await reader.readline()).split()
        chunked = False
        while line := (await reader.readline()).strip().lower():
            chunked |= line.startswith(b"transfer-encoding:") and b"chunked" in line
        lines = _lines(reader, chunked)
        if len(status) < 2 or status[1] != b"200":
            whole = b"".join([line async for line in lines])
            raise Refused(int(status[1]) if len(status) > 1 else 502, _message(whole))
        async for line in lines:
            if line.startswith(b"data:"):
                text = line[5:].strip()
                if text == b"[DONE]":
                    return
                if text:
                    yield json.loads(text)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError) as error:
        raise EngineLostError(
            f"The engine's server ended its answer early ({type(error).__name__})."
        ) from None
    finally:
        writer.close()


def _head(method: str, path: str, port: int, more: str) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{more}\r\n"
    ).encode()


async def _lines(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    held = b""
    while True:
        if chunked:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            part = (await reader.readexactly(size + 2))[:-2]
        else:
            part = await reader.read(1 << 16)
        if not part:
            break
        *whole, held = (held + part).split(b"\n")
        for line in whole:
            yield line
    if held:
        yield held


def _message(raw: bytes) -> str:
    try:
        found = json.loads(raw)
        error = found.get("error", found)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
    except (ValueError, AttributeError):
        return raw[:500].decode("utf-8", "replace")
