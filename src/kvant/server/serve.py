"""From settings to a running server, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from kvant.engine.load import available_memory
from kvant.errors import UsageError
from kvant.registry import Store
from kvant.server.app import AuditWatcher, build
from kvant.server.audit import AuditLog
from kvant.server.backend import ServingBackend
from kvant.server.gate import Guards, JsonLines, PlainLines
from kvant.server.keys import KeyFile
from kvant.server.library import Library
from kvant.server.metrics import Metrics
from kvant.server.port import bind
from kvant.server.running import Watcher
from kvant.server.settings import Settings

if TYPE_CHECKING:
    from kvant.registry import Store

__all__ = ["check", "serve"]

_LOG = logging.getLogger("kvant.server")
_MEMORY_SHARE = 0.9
_KEEP_ALIVE = 75
"""Seconds an idle connection stays; longer than most proxies keep theirs."""

Say = Callable[[str], None]


def check(settings: Settings, keys: KeyFile) -> None:
    """Refuse what would be open to others by mistake.

    Raises:
        UsageError: other addresses without keys, or keys wanted and none there.
    """
    if settings.needs_keys and not any(k.revoked is None for k in keys.all()):
        where = "" if settings.loopback else f" on {settings.host}, where others reach it,"
        raise UsageError(
            f"Serving{where} takes keys, and there are none. Make one with `kvant key create "
            "NAME`, or serve everybody with --no-keys."
        )


def serve(settings: Settings, store: Store | None, say: Say, *, json_log: bool = False) -> None:
    """Serve until a signal ends it.

    Args:
        settings: how.
        store: the local store.
        say: hears where it listens.
        json_log: log as JSON instead of lines for people.

    Raises:
        OutputError: the port is taken, or the audit log cannot be written.
        UsageError: it would be open to others without keys.
        InputError: a model named at the start cannot be loaded.
    """
    keys = KeyFile(settings.folder)
    check(settings, keys)
    library = Library(settings.models, store)
    sock = bind(settings.host, settings.port)
    try:
        _log_to_stderr(json_log)
        audit = AuditLog(settings.folder) if settings.audit else None
        try:
            asyncio.run(_run(settings, library, store, keys, audit, sock, say))
        finally:
            if audit is not None:
                audit.add("stopped")
                audit.close()
    finally:
        sock.close()


async def _run(
    settings: Settings,
    library: Library,
    store: Store | None,
    keys: KeyFile,
    audit: AuditLog | None,
    sock: socket.socket,
    say: Say,
) -> None:
    from kvant.server.routes import api_routes

    metrics = Metrics()
    watchers: list[Watcher] = [metrics]
    if audit is not None:
        watchers.append(AuditWatcher(audit, settings.audit_prompts))
    memory = settings.max_memory or int(available_memory() * _MEMORY_SHARE)
    backend = ServingBackend(settings, library, max_memory=memory, watchers=watchers)
    guards = Guards(settings, keys, metrics, audit, backend)
    app = build(guards, api_routes(backend, library, store))
    server = _Server(_config(app, settings), backend)
    try:
        for name in library.named:
            await backend.load(name, settings.keep_alive)
        address = sock.getsockname()
        scheme = "http" if settings.tls is None else "https"
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        url = f"{scheme}://{shown}:{address[1]}"
        if audit is not None:
            audit.add("started", url=url, keys=settings.needs_keys)
        say(url)
        await server.serve(sockets=[sock])
    finally:
        await backend.drain(0 if server.force_exit else settings.drain)


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    tls: dict[str, Any] = {}
    if settings.tls is not None:
        tls = {"ssl_certfile": str(settings.tls.certificate), "ssl_keyfile": str(settings.tls.key)}
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        ws="none",
        lifespan="off",
        backlog=2048,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, int(settings.drain)),
        # Who asked is read from headers only where a proxy is known to write them.
        proxy_headers=False,
        **tls,
    )


class _Server(uvicorn.Server):
    """uvicorn's server; the first signal lets answers finish, the second does not."""

    def __init__(self, config: uvicorn.Config, backend: ServingBackend) -> None:
        super().__init__(config)
        self._backend = backend

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        self._backend.draining = True
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """As uvicorn's, but a signal that was heard is not raised again at the end."""
        old = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _log_to_stderr(as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    for name, level in (("kvant", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
