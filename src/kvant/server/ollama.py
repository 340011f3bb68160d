"""Ollama's API: its routes."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kvant.server import ollama_answers as answers
from kvant.server import ollama_models as models
from kvant.server.catalogue import Catalogue
from kvant.server.exchange import route
from kvant.server.jobs import Backend
from kvant.server.page import page
from kvant.version import __version__

__all__ = ["API_LEVEL", "routes"]

#: The version of Ollama whose API this is; clients refuse servers that are too old.
API_LEVEL = "0.13.0"


def routes(backend: Backend, store: Catalogue) -> list[Route]:
    """``/api/...``, and ``/``: the status page, by which clients see that there is a server."""

    def made(method: str, path: str, handler: Any, *first: Any) -> Route:
        return route(path, partial(handler, *first), "ollama", (method,))

    return [
        made("POST", "/api/generate", answers.generate, backend),
        made("POST", "/api/chat", answers.chat, backend),
        made("POST", "/api/embed", answers.embed, backend),
        made("POST", "/api/embeddings", answers.embeddings, backend),
        made("GET", "/api/tags", models.tags, store),
        made("GET", "/api/ps", models.processes, backend, store),
        made("POST", "/api/show", models.show, store),
        made("POST", "/api/pull", models.pull, store),
        made("POST", "/api/push", models.push, store),
        made("POST", "/api/create", models.create, store),
        made("POST", "/api/copy", models.copy, store),
        made("DELETE", "/api/delete", models.delete, store),
        made("HEAD", "/api/blobs/{digest}", models.has_blob, store),
        made("POST", "/api/blobs/{digest}", models.add_blob, store),
        made("GET", "/api/version", _version),
        made("GET", "/", _alive),
    ]


async def _version(request: Request) -> Response:
    """``GET /api/version``."""
    return JSONResponse({"version": API_LEVEL, "kvant": __version__})


async def _alive(request: Request) -> Response:
    """``GET /`` and ``HEAD /``: the page for browsers; clients look for these words."""
    if "text/html" in request.headers.get("accept", ""):
        return page()
    return PlainTextResponse("Ollama is running")
