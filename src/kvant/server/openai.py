"""OpenAI's API: its routes."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvant.server.catalogue import Catalogue, Entry
from kvant.server.exchange import Handler, route
from kvant.server.jobs import Backend, ModelNotFoundError
from kvant.server.openai_chat import chat
from kvant.server.openai_completions import completions, embeddings

__all__ = ["routes"]


def routes(backend: Backend, store: Catalogue) -> list[Route]:
    """``/v1/chat/completions``, ``/v1/completions``, ``/v1/embeddings``, ``/v1/models``."""

    def post(path: str, handler: Any) -> Route:
        bound: Handler = partial(handler, backend)
        return route(path, bound, "openai")

    return [
        post("/v1/chat/completions", chat),
        post("/v1/completions", completions),
        post("/v1/embeddings", embeddings),
        route("/v1/models", partial(_models, store), "openai", ("GET",)),
        route("/v1/models/{model:path}", partial(_model, store), "openai", ("GET",)),
    ]


async def _models(store: Catalogue, request: Request) -> Response:
    """``GET /v1/models``."""
    found = await run_in_threadpool(store.list)
    return JSONResponse({"object": "list", "data": [_entry(e) for e in found]})


async def _model(store: Catalogue, request: Request) -> Response:
    """``GET /v1/models/{model}``."""
    name = request.path_params["model"]
    for entry in await run_in_threadpool(store.list):
        if entry.name in (name, f"{name}:latest") or name == f"{entry.name}:latest":
            return JSONResponse(_entry(entry))
    raise ModelNotFoundError(f"There is no model {name[:200]!r} here; /v1/models lists those.")


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": int(entry.modified),
        "owned_by": "kvant",
    }
