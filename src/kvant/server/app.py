"""The application: the APIs' routes, health and figures, behind one gate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from kvant.server.audit import AuditLog
from kvant.server.gate import Gate, Guards
from kvant.server.running import Running, Watcher
from kvant.server.scope import visible
from kvant.version import __version__

__all__ = ["AuditWatcher", "build"]


def build(guards: Guards, routes: Sequence[BaseRoute]) -> ASGIApp:
    """The application around the APIs' ``routes``."""
    backend, metrics = guards.backend, guards.metrics

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        why = []
        if backend.draining:
            why.append("shutting down")
        if guards.audit is not None and guards.audit.failed:
            why.append(f"the audit log cannot be written: {guards.audit.failed}")
        return JSONResponse({"ready": not why, "why": why}, 503 if why else 200)

    async def figures(request: Request) -> Response:
        return PlainTextResponse(
            metrics.text(backend), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def status(request: Request) -> Response:
        stats = {name: s for name, s in backend.stats().items() if visible(name)}
        loaded = [m for m in backend.loaded() if visible(m.name)]
        models = [{**stats.get(m.name, {}), **asdict(m)} for m in loaded]
        return JSONResponse(
            {
                "version": __version__,
                "time": time.time(),
                "draining": backend.draining,
                "tokens": metrics.tokens(stats),
                "models": models,
            }
        )

    own = [
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", figures),
        Route("/status", status),
    ]
    everything = [*own, *routes]
    app = Starlette(routes=everything)
    return Gate(app, guards, [r.path for r in everything if isinstance(r, Route)])


class AuditWatcher(Watcher):
    """Writes a line for every answer: who, which model, when, tokens, outcome."""

    def __init__(self, log: AuditLog, prompts: bool) -> None:
        self._log, self._prompts = log, prompts

    def refused(self, model: str, user: str, reason: str) -> None:
        """A request was not admitted."""
        self._log.add("refused", user=user, model=model, outcome=reason)

    def ended(self, running: Running) -> None:
        """An answer has ended."""
        job = running.job
        said = {"prompt": job.messages or job.prompt} if self._prompts else {}
        self._log.add(
            "answer",
            request=running.request_id,
            user=job.user,
            model=running.model,
            prompt_tokens=running.prompt_tokens,
            completion_tokens=running.completion_tokens,
            outcome=running.outcome,
            **said,
        )

    def embedded(self, model: str, user: str, tokens: int) -> None:
        """Vectors were made."""
        self._log.add("embed", user=user, model=model, prompt_tokens=tokens, outcome="stop")
