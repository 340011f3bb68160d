"""Clients of a completions API: plain sockets, so that measuring takes little of the machine."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Load", "Prompts", "Reply", "ask", "drive"]

_TEXT = Path(__file__).resolve().parent.parent / "src/kvant/builtin/evaluation.txt"
_CHARS = 4.24
"""Characters a token, for Llama 3's vocabulary and this text; prompts need only be about as long
as said, and are the same for everybody."""


class Prompts:
    """Pieces of the evaluation text, no two with the same beginning."""

    def __init__(self, seed: int) -> None:
        self._text = _TEXT.read_text()
        self._random = random.Random(seed)
        self._count = 0

    def piece(self, tokens: int) -> str:
        """About so many tokens."""
        size = int(tokens * _CHARS)
        at = self._random.randrange(len(self._text) - size)
        self._count += 1
        mark = f"{self._random.randrange(10**6)} {self._count}: "
        return mark + self._text[at : at + size - len(mark)]

    def pieces(self, count: int, tokens: int) -> list[str]:
        """Several."""
        return [self.piece(tokens) for _ in range(count)]

    def shared(self, count: int, prefix: str, tokens: int) -> list[str]:
        """Prompts that begin with ``prefix`` and go on differently."""
        return [f"{prefix}\n\n{self.piece(tokens)}" for _ in range(count)]


@dataclass(frozen=True)
class Reply:
    """One answer: tokens written, seconds to the first and to the last."""

    tokens: int
    first: float
    whole: float


@dataclass(frozen=True)
class Load:
    """What clients saw together."""

    replies: tuple[Reply, ...]
    seconds: float
    refused: int = 0

    @property
    def rate(self) -> float:
        """Tokens written a second, over everything."""
        return sum(r.tokens for r in self.replies) / self.seconds

    def first(self, share: float) -> float:
        """Seconds to the first token, at a share of all (0.95: all but the slowest twentieth)."""
        found = sorted(r.first for r in self.replies)
        return found[min(len(found) - 1, int(share * len(found)))]

    def to_json(self) -> dict[str, float]:
        """As plain data."""
        return {
            "requests": len(self.replies),
            "seconds": self.seconds,
            "tokens_a_second": self.rate,
            "first_median": statistics.median(r.first for r in self.replies),
            "first_95": self.first(0.95),
            "refused": self.refused,
        }


async def ask(url: str, model: str, prompt: str, tokens: int) -> Reply | int:
    """Ask, on a connection of its own; the status where it is not 200.

    Raises:
        SystemExit: the answer does not have exactly ``tokens`` tokens.
    """
    host = urlsplit(url).netloc
    name, port = host.split(":")
    reader, writer = await asyncio.open_connection(name, int(port), limit=1 << 22)
    try:
        return await _ask(reader, writer, host, model, prompt, tokens)
    finally:
        writer.close()


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    host: str,
    model: str,
    prompt: str,
    tokens: int,
) -> Reply | int:
    body = json.dumps(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += "Content-Type: application/json\r\n"
    began = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = int((await reader.readuntil(b"\r\n")).split()[1])
    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
    if status != 200:
        length = int(headers.split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return status
    first, last = 0.0, b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        chunk = (await reader.readexactly(size + 2))[:-2]
        if not size:
            break
        if not first and b'"text":"' in chunk.replace(b'": "', b'":"'):
            first = time.perf_counter()
        last = (last + chunk)[-4096:]
    whole = time.perf_counter() - began
    found = [line for line in last.split(b"\n") if b'"completion_tokens"' in line]
    count = json.loads(found[-1].removeprefix(b"data: "))["usage"]["completion_tokens"]
    if count != tokens:
        raise SystemExit(f"{count} tokens were written, not {tokens}: the figures mean nothing")
    return Reply(count, first - began, whole)


async def _client(
    url: str, model: str, prompts: Sequence[str], tokens: int, at: float
) -> list[Reply | int]:
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    return [await ask(url, model, p, tokens) for p in prompts]


def drive(url: str, model: str, prompts: Sequence[str], clients: int, tokens: int) -> Load:
    """Let clients ask at the same time, each one prompt after the other."""

    async def run() -> Load:
        at = time.perf_counter() + 0.2
        shares = [prompts[i::clients] for i in range(clients)]
        work = (_client(url, model, share, tokens, at) for share in shares)
        found = [reply for replies in await asyncio.gather(*work) for reply in replies]
        replies = tuple(r for r in found if isinstance(r, Reply))
        return Load(replies, time.perf_counter() - at, len(found) - len(replies))

    return asyncio.run(run())
