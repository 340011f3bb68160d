"""All APIs' routes over one backend."""

from __future__ import annotations

from starlette.routing import BaseRoute

from kvant.registry import Store
from kvant.server import anthropic, ollama, openai, openapi
from kvant.server.jobs import Backend
from kvant.server.library import Library
from kvant.server.store_catalogue import StoreCatalogue

__all__ = ["api_routes"]


def api_routes(backend: Backend, library: Library, store: Store | None) -> list[BaseRoute]:
    """The routes of OpenAI's, Ollama's and Anthropic's APIs, and the document of them."""
    catalogue = StoreCatalogue(library, store)
    modules = (openai, ollama, anthropic)
    found: list[BaseRoute] = []
    for module in modules:
        found += module.routes(backend, catalogue)
    return [*found, *openapi.routes(found)]
