"""Ollama's list, show, pull, push, create, copy and delete, over the local store."""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio.from_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvant.registry import HostileError
from kvant.server.catalogue import Catalogue, Details, Entry, NewModel, Progress, Report
from kvant.server.exchange import Stream, attend, dump, read
from kvant.server.failures import HttpError, error_body, http_error_of
from kvant.server.fields import FieldError
from kvant.server.jobs import Backend
from kvant.server.ollama_answers import time_text
from kvant.server.ollama_requests import (
    ChatMessage,
    CopyRequest,
    CreateRequest,
    NameRequest,
    TransferRequest,
    name_of,
)
from kvant.server.scope import visible

__all__ = [
    "add_blob",
    "copy",
    "create",
    "delete",
    "has_blob",
    "processes",
    "pull",
    "push",
    "show",
    "tags",
]

_FOR_EVER = "9999-12-31T23:59:59Z"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})\Z")
_SHORT = 16


async def tags(store: Catalogue, request: Request) -> Response:
    """``GET /api/tags``."""
    found = await run_in_threadpool(store.list)
    return JSONResponse({"models": [_entry(e) for e in found]})


async def processes(backend: Backend, store: Catalogue, request: Request) -> Response:
    """``GET /api/ps``."""
    known = {e.name: e for e in await run_in_threadpool(store.list)}
    models = [
        {
            "name": m.name,
            "model": m.name,
            "size": m.memory,
            "digest": m.digest.removeprefix("sha256:"),
            "details": _details(known[m.name].details if m.name in known else Details()),
            "expires_at": _FOR_EVER if m.expires is None else time_text(m.expires),
            "size_vram": 0,
            "context_length": m.context,
        }
        for m in backend.loaded()
        if visible(m.name)
    ]
    return JSONResponse({"models": models})


async def show(store: Catalogue, request: Request) -> Response:
    """``POST /api/show``."""
    asked = await read(request, NameRequest)
    shown = await run_in_threadpool(store.show, name_of(asked))
    info = {k: v for k, v in shown.info.items() if asked.verbose or not _is_long(v)}
    return JSONResponse(
        {
            "license": shown.license,
            "modelfile": shown.modelfile,
            "parameters": "\n".join(_parameters(shown.parameters)),
            "template": shown.template,
            "system": shown.system,
            "details": _details(shown.entry.details),
            "model_info": info,
            "capabilities": list(shown.capabilities),
            "modified_at": time_text(shown.entry.modified),
        }
    )


async def pull(store: Catalogue, request: Request) -> Response:
    """``POST /api/pull``."""
    asked = await read(request, TransferRequest)
    name = name_of(asked)
    return await _reported(
        request, lambda r: store.pull(name, r, insecure=asked.insecure), asked.stream
    )


async def push(store: Catalogue, request: Request) -> Response:
    """``POST /api/push``."""
    asked = await read(request, TransferRequest)
    name = name_of(asked)
    return await _reported(
        request, lambda r: store.push(name, r, insecure=asked.insecure), asked.stream
    )


async def create(store: Catalogue, request: Request) -> Response:
    """``POST /api/create``."""
    asked = await read(request, CreateRequest)
    if not asked.from_ and not asked.files:
        raise FieldError("from", "neither from nor files is given; a model is made of something.")
    if asked.from_ and asked.files:
        raise FieldError("files", "cannot be used together with from.")
    name = name_of(asked)
    licenses = (asked.license,) if isinstance(asked.license, str) else tuple(asked.license or ())
    new = NewModel(
        base=asked.from_,
        files=_blobs(asked.files, "files"),
        adapters=_blobs(asked.adapters, "adapters"),
        template=asked.template,
        system=asked.system,
        parameters=asked.parameters or {},
        license=licenses,
        messages=tuple(_turn(m) for m in asked.messages or ()),
        quantize=asked.quantize,
    )
    return await _reported(request, lambda r: store.create(name, new, r), asked.stream)


async def copy(store: Catalogue, request: Request) -> Response:
    """``POST /api/copy``."""
    asked = await read(request, CopyRequest)
    await run_in_threadpool(store.copy, asked.source, asked.destination)
    return Response()


async def delete(store: Catalogue, request: Request) -> Response:
    """``DELETE /api/delete``."""
    asked = await read(request, NameRequest)
    await run_in_threadpool(store.remove, name_of(asked))
    return Response()


async def has_blob(store: Catalogue, request: Request) -> Response:
    """``HEAD /api/blobs/{digest}``."""
    found = await run_in_threadpool(
        store.has_blob, _digest(request.path_params["digest"], "digest")
    )
    return Response(status_code=200 if found else 404)


async def add_blob(store: Catalogue, request: Request) -> Response:
    """``POST /api/blobs/{digest}``."""
    digest = _digest(request.path_params["digest"], "digest")
    parts = request.stream()

    def pieces() -> Iterable[bytes]:
        while part := anyio.from_thread.run(_next, parts):
            yield part

    try:
        await run_in_threadpool(store.add_blob, digest, pieces())
    except HostileError as error:
        raise HttpError(400, str(error), "invalid_digest") from None
    return Response(status_code=201)


async def _next(parts: AsyncIterator[bytes]) -> bytes:
    """The next piece of a body; nothing at its end."""
    async for part in parts:
        if part:
            return part
    return b""


def _digest(text: str, path: str) -> str:
    found = _DIGEST.match(text)
    if found is None:
        raise FieldError(path, f"expected sha256: and 64 hexadecimal digits, got {text[:80]!r}.")
    return f"sha256:{found[1]}"


def _blobs(given: Mapping[str, str] | None, path: str) -> dict[str, str]:
    found = {}
    for name, digest in (given or {}).items():
        parts = Path(name).parts
        if Path(name).is_absolute() or not parts or ".." in parts or "\\" in name or "\0" in name:
            raise FieldError(path, f"expected names of files, got {name[:80]!r}.")
        found[name] = _digest(digest, f"{path}.{name[:80]}")
    return found


def _turn(message: ChatMessage) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": time_text(entry.modified),
        "size": entry.size,
        "digest": entry.digest.removeprefix("sha256:"),
        "details": _details(entry.details),
    }


def _details(details: Details) -> dict[str, Any]:
    return {
        "parent_model": details.parent_model,
        "format": details.format,
        "family": details.family,
        "families": [details.family] if details.family else [],
        "parameter_size": details.parameter_size,
        "quantization_level": details.quantization_level,
    }


def _is_long(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > _SHORT


def _parameters(parameters: Mapping[str, Any]) -> Iterable[str]:
    """Lines as Ollama shows parameters; texts in quotes, lists one line an entry."""
    for name, value in parameters.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            shown = f'"{one}"' if isinstance(one, str) else one
            yield f"{name:<30} {shown}"


# ---- work that reports how far it is ----------------------------------------------------------


class _GoneError(Exception):
    """Nobody listens any more."""


async def _reported(request: Request, work: Callable[[Report], None], stream: bool) -> Response:
    """Run ``work`` in a thread; its progress as lines, or the last status alone.

    What fails before there is any progress has its own status; later it is a line. Where nobody
    waits for it any more, it ends at its next report.
    """
    job = _Reported(work)
    try:
        first = await attend(request, job.next())
        if isinstance(first, Exception):
            raise first
        if stream:
            return Stream(_lines(job, first), "application/x-ndjson", job.aclose)
        await attend(request, job.rest(first))
    except BaseException:
        await job.aclose()
        raise
    return JSONResponse({"status": "success"})


class _Reported:
    """Work in a thread of its own, and what it reports."""

    def __init__(self, work: Callable[[Report], None]) -> None:
        self._queue: asyncio.Queue[Progress | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._gone = threading.Event()
        self._work = work
        self._said = (Progress(""), 0.0)
        # A thread begins without the request's context, and the store's face asks it who this is.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._run,), name="kvant-store", daemon=True).start()

    async def next(self) -> Progress | Exception | None:
        """What comes next; None at the end."""
        return await self._queue.get()

    async def rest(self, first: Progress | None) -> None:
        """Wait for the end; raises what it fails with."""
        found: Progress | Exception | None = first
        while isinstance(found, Progress):
            found = await self.next()
        if found is not None:
            raise found

    async def aclose(self) -> None:
        """The work ends at its next report."""
        self._gone.set()

    def _run(self) -> None:
        last: Exception | None = None
        try:
            self._work(self._report)
        except _GoneError:
            pass
        except Exception as error:
            last = error
        self._put(last)

    def _report(self, progress: Progress) -> None:
        if self._gone.is_set():
            raise _GoneError
        before, at = self._said
        now = time.monotonic()
        same = (before.status, before.digest) == (progress.status, progress.digest)
        if same and now - at < 0.1 and progress.completed != progress.total:
            return
        self._said = (progress, now)
        self._put(progress)

    def _put(self, what: Progress | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, what)
        except RuntimeError:  # the server has ended
            raise _GoneError from None


async def _lines(job: _Reported, first: Progress | None) -> AsyncGenerator[bytes, None]:
    found: Progress | Exception | None = first
    while isinstance(found, Progress):
        line: dict[str, Any] = {"status": found.status}
        if found.digest:
            line["digest"] = found.digest
        if found.total is not None:
            line["total"] = found.total
        if found.completed is not None:
            line["completed"] = found.completed
        yield dump(line) + b"\n"
        found = await job.next()
    if found is None:
        yield dump({"status": "success"}) + b"\n"
    else:
        yield dump(error_body("ollama", http_error_of(found))) + b"\n"
