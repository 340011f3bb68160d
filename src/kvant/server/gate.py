"""What every request passes before an API sees it: who asks, may they, is it too much.

One plain ASGI layer instead of a pile of them: each would cost every token of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvant.errors import FileFormatError
from kvant.server import scope as scopes
from kvant.server.audit import AuditLog
from kvant.server.backend import ServingBackend
from kvant.server.failures import HttpError, api_of, error_response
from kvant.server.keys import KeyFile
from kvant.server.limits import Rates
from kvant.server.metrics import Metrics
from kvant.server.scope import ANYBODY, Principal, Role
from kvant.server.settings import Settings

__all__ = ["Gate", "Guards"]

_LOG = logging.getLogger("kvant.server.requests")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPEN = frozenset({"/", "/health", "/ready"})
"""Nothing there is anybody's secret, and whoever watches the server has no key."""
_OPERATOR = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/")
_BLOBS = "/api/blobs/"
_DENIALS_PER_MINUTE = 60
"""Refused keys that the audit log gets of one address: others cannot fill the disk with it."""
_CORS_SECONDS = "600"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_LINGER_BYTES, _LINGER_SECONDS = 32 << 20, 2.0


@dataclass(frozen=True, slots=True)
class Guards:
    """What the gate asks."""

    settings: Settings
    keys: KeyFile
    metrics: Metrics
    audit: AuditLog | None
    backend: ServingBackend


class Gate:
    """The layer around the application.

    Args:
        app: what is behind it.
        guards: what it asks.
        paths: known paths, for the figures; others are counted together.
    """

    def __init__(self, app: ASGIApp, guards: Guards, paths: Collection[str]) -> None:
        self._app, self._g = app, guards
        self._paths = frozenset(paths)
        self._rates, self._denials = Rates(), Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no web sockets
        visit = _Visit(scope, send, self._allowed_origin(Headers(scope=scope)))
        try:
            await self._pass(scope, receive, visit)
        except Exception as error:
            if visit.status is not None:
                raise  # too late for another answer
            await self._refuse(visit, receive, error)
        finally:
            self._leave(visit)

    async def _pass(self, scope: Scope, receive: Receive, visit: _Visit) -> None:
        headers = visit.headers
        if visit.method == "OPTIONS" and visit.origin is not None:
            await Response(status_code=204)(scope, receive, visit.send)
            return
        principal = visit.principal = self._principal(visit)
        if visit.path not in _OPEN:
            self._check(visit, principal)
        request = scopes.Scope(visit.id, principal, visit.began)
        visit.scope = request
        scope.setdefault("state", {})["body"] = self._g.settings.body
        token = scopes.current.set(request)
        try:
            await self._app(scope, self._bounded(visit, headers, receive), visit.send)
        finally:
            scopes.current.reset(token)
            for running in request.running:  # whatever was begun for it ends with it
                if running.outcome is None:
                    await running.aclose()

    # ---- who, and may they -----------------------------------------------------------------------

    def _principal(self, visit: _Visit) -> Principal:
        s, headers = self._g.settings, visit.headers
        token = headers.get("x-api-key", "")
        kind, _, rest = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            token = rest.strip()
        # Clients that insist on sending something send "ollama" or the like: no key at all.
        if token and (s.needs_keys or token.startswith("kvant-")):
            try:
                found = self._g.keys.check(token)
            except FileFormatError:
                raise HttpError(500, "The server's file of keys is damaged.") from None
            if found is None:
                self._denied(visit, token)
                raise HttpError(
                    401,
                    "The key is unknown, expired or revoked. Ask for another one.",
                    "invalid_api_key",
                )
            return found
        if s.needs_keys and visit.path not in _OPEN:
            raise HttpError(
                401,
                "This server wants a key: send it as `Authorization: Bearer KEY`. `kvant key "
                "create` makes one.",
                "invalid_api_key",
            )
        if not s.needs_keys:
            self._check_origin(visit)
        return ANYBODY

    def _denied(self, visit: _Visit, token: str) -> None:
        address = visit.address
        if self._g.audit is None or self._denials.wait(address, _DENIALS_PER_MINUTE):
            return
        ident = token.split("-")[1][:8] if token.startswith("kvant-") else ""
        self._g.audit.add("denied", request=visit.id, address=address, key=ident, path=visit.path)

    def _check_origin(self, visit: _Visit) -> None:
        """Nobody is asked for a key, so pages of other sites must not speak for who is here."""
        origin, host = visit.headers.get("origin"), visit.headers.get("host", "")
        if visit.origin is None and origin is not None and _host_of(origin) != host:
            raise HttpError(
                403, f"Pages of {origin[:100]} may not use this server. --cors ORIGIN lets them."
            )
        if self._g.settings.loopback and not _is_here(host, self._g.settings.host):
            raise HttpError(
                403, f"The request is for host {host[:100]!r}, which this server is not called."
            )

    def _check(self, visit: _Visit, principal: Principal) -> None:
        path, s = visit.path, self._g.settings
        if self._g.backend.draining:
            raise HttpError(503, "The server is shutting down.", None, None, 5.0)
        role: Role = "user"
        if path == "/metrics" or path.startswith(_OPERATOR):
            role = "operator"
        if not principal.may(role):
            raise HttpError(403, f"This takes a key of role {role}; yours is {principal.role}.")
        bound = principal.requests_per_minute or s.requests_per_minute
        if bound is not None:
            wait = self._rates.wait(principal.name, bound)
            if wait:
                raise HttpError(
                    429,
                    f"More than {bound} requests a minute. Ask again in {wait:.0f} seconds.",
                    "rate_limit_exceeded",
                    None,
                    wait,
                )
        length = visit.headers.get("content-length", "0")
        sound = length.isascii() and length.isdecimal() and len(length) < 20
        if not path.startswith(_BLOBS) and (not sound or int(length) > s.body):
            raise self._too_large()

    def _too_large(self) -> HttpError:
        return HttpError(413, f"A request has at most {self._g.settings.body:,} bytes. Send less.")

    def _allowed_origin(self, headers: Headers) -> str | None:
        origin = headers.get("origin")
        allowed = self._g.settings.cors
        return origin if origin is not None and (origin in allowed or "*" in allowed) else None

    # ---- the body --------------------------------------------------------------------------------

    def _bounded(self, visit: _Visit, headers: Headers, receive: Receive) -> Receive:
        """``receive``, within a size and a time until the body is complete."""
        blob = visit.path.startswith(_BLOBS)
        s = self._g.settings
        read, complete = 0, False

        async def bounded() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()
            try:
                left = s.body_seconds - (0 if blob else time.perf_counter() - visit.began)
                async with asyncio.timeout(max(0.0, left)):
                    message = await receive()
            except TimeoutError:
                visit.close = True
                raise HttpError(
                    408, f"The request took longer than {s.body_seconds:g} seconds to arrive."
                ) from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if read > s.body and not blob:
                    visit.close = not (complete or await _discard(receive))
                    complete = True
                    raise self._too_large()
            return message

        return bounded

    # ---- the end ---------------------------------------------------------------------------------

    async def _refuse(self, visit: _Visit, receive: Receive, error: Exception) -> None:
        # Who still writes does not see an answer on a connection that is closed: what is left of
        # the body is thrown away first, within bounds.
        whole = visit.method in ("GET", "HEAD", "OPTIONS") or await _discard(receive)
        visit.close = visit.close or not whole
        response = error_response(api_of(visit.path), error)
        await response(visit.request, receive, visit.send)

    def _leave(self, visit: _Visit) -> None:
        path = visit.path if visit.path in self._paths else "other"
        status = visit.status or 499
        method = visit.method if visit.method in _METHODS else "other"  # any word may be sent
        self._g.metrics.http.add(path=path, method=method, status=str(status))
        seconds = time.perf_counter() - visit.began
        values: dict[str, object] = {
            "request": visit.id,
            "address": visit.address,
            "user": visit.principal.name,
            "method": visit.method,
            "path": visit.path[:200],
            "status": status,
            "seconds": round(seconds, 4),
        }
        running = visit.scope.running if visit.scope is not None else []
        if running:
            values["model"] = running[0].model
            values["prompt_tokens"] = sum(r.prompt_tokens for r in running)
            values["completion_tokens"] = sum(r.completion_tokens for r in running)
            values["outcome"] = running[0].outcome
        if self._g.audit is not None and visit.path.startswith(_OPERATOR):
            self._g.audit.add("manage", **values)
        _LOG.info("request", extra={"values": values})


async def _discard(receive: Receive) -> bool:
    """Read the rest of a body; whether that was all of it."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while size < _LINGER_BYTES:
                message = await receive()
                if message["type"] != "http.request":
                    return False
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return True
    return False


class _Visit:
    """A request on its way."""

    def __init__(self, scope: Scope, send: Send, origin: str | None) -> None:
        self.request, self._send, self.origin = scope, send, origin
        self.headers = Headers(scope=scope)
        self.began = time.perf_counter()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        client = scope.get("client")
        self.address = client[0] if client else ""
        given = self.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        self.principal = Principal("", "user")
        self.scope: scopes.Scope | None = None
        self.status: int | None = None
        self.close = False

    async def send(self, message: Message) -> None:
        """Pass on what the application says; the first part gets headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            headers["x-content-type-options"] = "nosniff"
            if self.close:
                headers["connection"] = "close"
            if self.status == 401:
                headers["www-authenticate"] = "Bearer"
            if self.origin is not None:
                headers["access-control-allow-origin"] = self.origin
                headers["access-control-allow-methods"] = "GET, POST, DELETE, HEAD"
                headers["access-control-allow-headers"] = "*, Authorization"
                headers["access-control-max-age"] = _CORS_SECONDS
                headers.add_vary_header("Origin")
        await self._send(message)


def _host_of(origin: str) -> str:
    """The host of an Origin header; empty where it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _is_here(host: str, bound: str) -> bool:
    """Whether a Host header names this machine, and not a name that only points to it."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets with no address between them
        return False
    if name in ("localhost", bound) or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class JsonLines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        values: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "values", {}),
        }
        if record.exc_info:
            values["error"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=True)


class PlainLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        v = getattr(record, "values", None)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        if v is None:
            text = f"{clock} {record.levelname.lower()}: {record.getMessage()}"
            return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
        line = f"{clock} {v['status']} {v['method']} {v['path']!s:.60} {v['seconds']:.3f} s"
        if "model" in v:
            line += f" {v['model']} {v['prompt_tokens']}+{v['completion_tokens']} {v['outcome']}"
        return f"{line} {v['user']} {v['request']}".encode("ascii", "backslashreplace").decode()
