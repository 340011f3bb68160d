from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("uvicorn")

import uvicorn
from api_backends import InProcess, Scripted, Shelf
from starlette.applications import Starlette

from kvant.server import anthropic, ollama, openai


class Running:
    """A server on loopback, with what it runs on."""

    def __init__(self, backend: InProcess | Scripted, shelf: Shelf, port: int) -> None:
        self.backend, self.shelf = backend, shelf
        self.url = f"http://127.0.0.1:{port}"


@contextmanager
def running(backend: InProcess | Scripted, shelf: Shelf) -> Iterator[Running]:
    modules = (openai, ollama, anthropic)
    app = Starlette(routes=[r for m in modules for r in m.routes(backend, shelf)])
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(backend, shelf, port)
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def demo() -> Iterator[Running]:
    """The built-in model, served."""
    with running(InProcess(), Shelf("demo")) as found:
        yield found


@pytest.fixture(scope="session")
def _scripted() -> Iterator[Running]:
    with running(Scripted(), Shelf("demo", "other")) as found:
        yield found


@pytest.fixture
def scripted(_scripted: Running) -> Running:
    """A model that says what its backend's script says."""
    backend = _scripted.backend
    assert isinstance(backend, Scripted)
    backend.__init__()
    _scripted.shelf.__init__("demo", "other")
    return _scripted
