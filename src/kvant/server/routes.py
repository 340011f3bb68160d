"""All APIs' routes over one backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

from kvant.server import anthropic, ollama, openai, openapi
from kvant.server.jobs import Backend
from kvant.server.library import Library
from kvant.server.models import Models

if TYPE_CHECKING:
    from kvant.registry import Store

__all__ = ["api_routes"]


def api_routes(backend: Backend, library: Library, store: Store | None) -> list[BaseRoute]:
    """The routes of OpenAI's, Ollama's and Anthropic's APIs, and the document of them."""
    models = Models(library, store)
    found: list[BaseRoute] = []
    for module in (openai, ollama, anthropic):
        found += module.routes(backend, models)
    return [*found, *openapi.routes(found)]
