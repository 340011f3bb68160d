from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from api_backends import Recorder, Scripted, Shelf
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from kvant.api.models import store
from kvant.server import anthropic, ollama, openai, openapi
from kvant.server.backend import ServingBackend
from kvant.server.library import Library
from kvant.server.routes import api_routes
from kvant.server.settings import Settings


class Serving:
    """A server on loopback, with what it runs on."""

    def __init__(self, backend: Recorder | Scripted, shelf: Shelf, port: int) -> None:
        self.backend, self.shelf = backend, shelf
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)


@contextmanager
def listening(app: Starlette) -> Iterator[int]:
    """Run ``app`` in a thread; its port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def real(folder: Path, routes: Callable[[Recorder, Library], list[BaseRoute]]) -> Iterator[Serving]:
    """The built-in model behind the real backend."""
    settings = Settings(folder=folder, models=("demo",), audit=False, parallel=16, threads=1)
    library = Library(settings.models, store(folder / "models"))
    backend = ServingBackend(settings, library, max_memory=4 << 30)
    recorder = Recorder(backend)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        await backend.close()

    with listening(Starlette(routes=routes(recorder, library), lifespan=life)) as port:
        yield Serving(recorder, Shelf(), port)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The built-in model, served, over an empty store."""
    folder = tmp_path_factory.mktemp("kvant-home")
    kept = store(folder / "models")
    with real(folder, lambda backend, library: api_routes(backend, library, kept)) as found:
        yield found


@pytest.fixture(scope="session")
def _scripted() -> Iterator[Serving]:
    backend, shelf = Scripted(), Shelf("demo", "other")
    modules = (openai, ollama, anthropic)
    routes = [r for m in modules for r in m.routes(backend, shelf)]
    with listening(Starlette(routes=[*routes, *openapi.routes(routes)])) as port:
        yield Serving(backend, shelf, port)


@pytest.fixture
def scripted(_scripted: Serving) -> Serving:
    """A model that says what its backend's script says."""
    _scripted.backend.__init__()
    _scripted.shelf.__init__("demo", "other")
    return _scripted
