"""Between Starlette and the APIs: bodies read within bounds, answers ended when nobody listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeAlias, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kvant.server import MAX_BODY
from kvant.server.failures import Api, HttpError, error_response
from kvant.server.fields import FieldError, parse

__all__ = [
    "Handler",
    "Stream",
    "attend",
    "dump",
    "read",
    "route",
]

#: How deep it may nest.
_DEEPEST = 100

#: Bytes of a body that is read in the event loop.
_AT_ONCE = 1 << 16

T = TypeVar("T")
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


def route(path: str, handler: Handler, api: Api, methods: tuple[str, ...] = ("POST",)) -> Route:
    """A route whose errors have the API's shape."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; logs do
        except Exception as error:
            return error_response(api, error)

    return Route(path, guarded, methods=list(methods))


async def read(request: Request, cls: type[T]) -> T:
    """The request's body as an object of ``cls``.

    Raises:
        FieldError: it is not.
        HttpError: it is too large.
    """
    body = await _body(request)
    if len(body) <= _AT_ONCE:
        return parse(cls, _decoded(body))
    # Many small things take long to check, and all other requests are served meanwhile.
    return await asyncio.to_thread(lambda: parse(cls, _decoded(body)))


async def _body(request: Request) -> bytes:
    # Whoever stands in front says what it lets through.
    most = request.scope.get("state", {}).get("body", MAX_BODY)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HttpError(413, f"The request has more than {most} bytes. Send less at once.")
        parts.append(part)
    return b"".join(parts)


def _decoded(body: bytes) -> object:
    if not body:
        raise FieldError("", "The request has no body; expected a JSON object.")
    try:
        data: object = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise FieldError("", "The request's JSON nests too deep. Send a flatter one.") from None
    except ValueError as error:  # also of bytes that are no text
        raise FieldError("", f"The request is not valid JSON: {error}.") from None
    if body.count(b"[") + body.count(b"{") > _DEEPEST:
        _refuse_depth(data)
    if b"\\ud" in body or b"\\uD" in body:
        _refuse_half_characters(data)
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_depth(data: object) -> None:
    """Schemas and conversations are written again as JSON, by code that recurses."""
    level = [data]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)  # type: ignore[attr-defined]
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise FieldError("", f"The request's JSON nests deeper than {_DEEPEST}. Send a flatter one.")


def _refuse_half_characters(data: object) -> None:
    """A lone half of a surrogate pair is no character, and nothing later could encode it."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise FieldError(
            "", "The request has half of a surrogate pair, which is no character. Send both."
        ) from None


def dump(data: Mapping[str, Any]) -> bytes:
    """One line of JSON."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


async def attend(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away.

    Raises:
        ClientDisconnect: it went away.
    """
    found: list[T] = []
    raised: list[Exception] = []

    async with anyio.create_task_group() as group:

        async def run() -> None:
            # Out of the group as it is, not in an ExceptionGroup.
            try:
                found.append(await work)
            except Exception as error:
                raised.append(error)
            group.cancel_scope.cancel()

        group.start_soon(run)
        await _gone(request.receive)
        group.cancel_scope.cancel()
    if raised:
        raise raised[0]
    if not found:
        raise ClientDisconnect
    return found[0]


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Stream(Response):
    """Sends pieces as they come; whatever happens, what they come from is closed.

    Args:
        pieces: the body. What it raises after the headers went out cannot be a status any more,
            so it is to catch its own errors and say them in its own way.
        media_type: of the whole.
        close: ends what the pieces come from; a generator that was never begun cannot.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        media_type: str,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._pieces = pieces
        self._close = close
        del self.headers["content-length"]
        self.headers["content-type"] = media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        try:
            async with anyio.create_task_group() as group:

                async def run() -> None:
                    await self._send(send)
                    group.cancel_scope.cancel()

                group.start_soon(run)
                await _gone(receive)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._pieces.aclose()
                if self._close is not None:
                    await self._close()

    async def _send(self, send: Send) -> None:
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # the connection is gone
            return
