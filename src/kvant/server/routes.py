"""All APIs' routes over one backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

from kvant.server import anthropic, ollama, openai
from kvant.server.backend import ServingBackend
from kvant.server.library import Library
from kvant.server.models import Models

if TYPE_CHECKING:
    from kvant.registry import Store

__all__ = ["api_routes"]


def api_routes(backend: ServingBackend, library: Library, store: Store | None) -> list[BaseRoute]:
    """OpenAI's, Ollama's and Anthropic's."""
    models = Models(library, store)
    return [
        *openai.routes(backend, models),
        *anthropic.routes(backend, models),
        *ollama.routes(backend, models),
    ]
