"""When models are loaded, loaded anew and given up, and what is counted; engines stand in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from kvant.api.models import store
from kvant.registry import Modelfile
from kvant.server import wire
from kvant.server.backend import ServingBackend
from kvant.server.engine_process import EngineSpec, Opened, Stream
from kvant.server.exchange import attend
from kvant.server.jobs import BusyError, DeadlineError, Delta, EmbedJob, Job, ModelNotFoundError
from kvant.server.library import Library
from kvant.server.settings import Settings

ASK = Job(model="demo", prompt="Once")


class StandIn:
    """An engine that takes as long as it is told to."""

    def __init__(self, loading: float = 0.0, closing: float = 0.0) -> None:
        self._loading, self._closing = loading, closing
        self.context = self.memory = 0
        self.lost = self.closed = False
        self.stats: dict[str, float] = {}
        self.on_lost: Callable[[], None] | None = None
        self.spec: EngineSpec | None = None
        self.streams: list[Stream] = []

    async def start(self, spec: EngineSpec) -> Opened:
        self.spec = spec
        return Opened(1000, 1.0, 2048, False)

    async def load(self, context: int, kv_tokens: int) -> None:
        await asyncio.sleep(self._loading)
        self.context, self.memory = context, 2000

    async def close(self) -> None:
        await asyncio.sleep(self._closing)
        self.closed = True

    def kill(self) -> None:
        self.lost = True

    def answer(self, job: Job) -> Stream:
        stream = Stream(len(self.streams), lambda _: None)
        self.streams.append(stream)
        stream.admit(1)
        return stream

    async def embed(self, job: EmbedJob) -> wire.Message:
        await asyncio.sleep(60)
        return {}


class Serving:
    """A backend over stand-ins: each engine is the next of them."""

    def __init__(self, engines: list[StandIn], library: Library, **settings: Any) -> None:
        self.engines = engines
        self.made: list[StandIn] = []
        self.backend = ServingBackend(
            Settings(engine="native", **settings), library, max_memory=1 << 30
        )
        cast(Any, self.backend)._made = self._make

    def _make(self, resolved: object) -> StandIn:
        self.made.append(self.engines[len(self.made)])
        return self.made[-1]


def _run(
    work: Callable[[Serving], Awaitable[None]],
    *engines: StandIn,
    library: Library | None = None,
    **settings: Any,
) -> None:
    async def whole() -> None:
        serving = Serving(list(engines), library or Library(), **settings)
        async with asyncio.timeout(30):
            await work(serving)
            await serving.backend.close()
        assert serving.backend._memory == {}
        assert all(engine.closed for engine in serving.made)

    asyncio.run(whole())


async def _end(stream: Stream) -> None:
    stream.take(Delta("x", (1,), finish_reason="stop"), (0, 0.0, 0.0), 0.0)


def _leaving(after: float) -> Request:
    async def receive() -> Message:
        await asyncio.sleep(after)
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


# ---- who goes away ------------------------------------------------------------------------------


def test_a_client_that_leaves_while_its_model_loads() -> None:
    """Cancelled again at every await, the request must not take the account of memory with it."""

    async def work(serving: Serving) -> None:
        with pytest.raises(ClientDisconnect):
            await attend(_leaving(0.05), serving.backend.answer(ASK))
        await asyncio.sleep(0.2)
        assert serving.made[0].closed
        assert serving.backend._memory == {}
        assert serving.backend._slots == {}
        assert await serving.backend.answer(ASK)

    _run(work, StandIn(loading=60, closing=0.05), StandIn())


def test_a_client_that_leaves_while_another_model_goes(tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(b"")

    async def work(serving: Serving) -> None:
        serving.backend.max_memory = 300 << 20  # one at a time
        await serving.backend.load("demo")
        with pytest.raises(ClientDisconnect):
            await attend(_leaving(0.05), serving.backend.answer(Job(model="other", prompt="x")))
        await asyncio.sleep(0.3)
        assert [engine.closed for engine in serving.made] == [True, True]
        assert serving.backend._memory == {}
        assert serving.backend._slots == {}

    _run(work, StandIn(closing=0.2), StandIn(), library=Library((str(file),)))


def test_who_is_refused_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(b"")

    async def work(serving: Serving) -> None:
        backend = serving.backend
        running = await backend.answer(ASK)
        with pytest.raises(BusyError):
            await backend.answer(Job(model="other", prompt="x"))
        assert list(backend._slots) == ["demo"]
        await running.aclose()

    _run(work, StandIn(), library=Library((str(file),)), per_user=1)


# ---- time ---------------------------------------------------------------------------------------


def test_the_deadline_runs_while_a_model_loads() -> None:
    async def work(serving: Serving) -> None:
        job = Job(model="demo", prompt="Once", deadline=0.1)
        with pytest.raises(DeadlineError, match=r"0\.1 seconds"):
            await serving.backend.answer(job)
        assert serving.backend._memory == {}
        embed = EmbedJob(model="demo", inputs=["x"], deadline=0.1)
        with pytest.raises(DeadlineError, match=r"0\.1 seconds"):
            await serving.backend.embed(embed)

    _run(work, StandIn(loading=60), StandIn(loading=60))


def test_the_deadline_of_vectors() -> None:
    async def work(serving: Serving) -> None:
        await serving.backend.load("demo")
        with pytest.raises(DeadlineError, match=r"0\.1 seconds"):
            await serving.backend.embed(EmbedJob(model="demo", inputs=["x"], deadline=0.1))
        assert not serving.made[0].closed

    _run(work, StandIn())


def test_the_deadline_that_is_named_is_the_one_that_held() -> None:
    async def work(serving: Serving) -> None:
        running = await serving.backend.answer(Job(model="demo", prompt="x", deadline=500))
        with pytest.raises(DeadlineError, match=r"0\.1 seconds"):
            async for _ in running:
                pass

    _run(work, StandIn(), deadline=0.1)


def test_when_a_model_goes() -> None:
    async def work(serving: Serving) -> None:
        backend = serving.backend
        running = await backend.answer(ASK)

        def left() -> float:
            expires = backend.loaded()[0].expires
            assert expires is not None
            return expires - time.time()

        assert 49 < left() <= 50  # in its first answer too
        await asyncio.sleep(1.2)
        assert 49 < left() <= 50
        await running.aclose()
        assert 49 < left() <= 50
        await backend.load("demo", -1)
        assert backend.loaded()[0].expires is None

    _run(work, StandIn(), keep_alive=50.0)


# ---- models that change -------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> Library:
    kept = store(tmp_path / "models")
    kept.pull("demo")
    kept.copy("demo", "mine")
    return Library((), kept)


def test_a_model_that_is_made_anew_is_loaded_anew(tmp_path: Path, library: Library) -> None:
    other = store(tmp_path / "models")
    ask = Job(model="mine", prompt="x")

    async def work(serving: Serving) -> None:
        first = await serving.backend.answer(ask)
        second = await serving.backend.answer(ask)
        said = Modelfile.of(base="demo", system="You are a pirate.")
        await asyncio.get_running_loop().run_in_executor(None, other.create, "mine", said)
        third = await serving.backend.answer(ask)  # nobody's answer is cut off for it
        assert len(serving.made) == 1
        for running in (first, second, third):
            await running.aclose()
        again = await serving.backend.answer(ask)
        assert [engine.closed for engine in serving.made] == [True, False]
        spec = serving.made[1].spec
        assert spec is not None
        assert spec.defaults.system == "You are a pirate."
        digest = serving.backend.loaded()[0].digest
        assert digest == library.resolve("mine").digest
        await again.aclose()
        await (await serving.backend.answer(ask)).aclose()
        assert len(serving.made) == 2

    _run(work, StandIn(), StandIn(), library=library)


def test_a_model_that_is_removed_is_gone(tmp_path: Path, library: Library) -> None:
    other = store(tmp_path / "models")

    async def work(serving: Serving) -> None:
        await serving.backend.load("mine")
        other.remove("mine")
        with pytest.raises(ModelNotFoundError):
            await serving.backend.answer(Job(model="mine", prompt="x"))
        assert await serving.backend.unload("mine")
        assert serving.made[0].closed

    _run(work, StandIn(), library=library)


def test_a_file_that_is_removed_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"")
    library = Library((str(file),))

    async def work(serving: Serving) -> None:
        await serving.backend.load("tiny")
        file.unlink()
        with pytest.raises(ModelNotFoundError, match="not there any more"):
            await serving.backend.answer(Job(model="tiny", prompt="x"))

    _run(work, StandIn(), library=library)


def test_a_model_in_use_again_is_not_forgotten() -> None:
    """Who comes while a model is unloaded finds a place that stays."""

    async def work(serving: Serving) -> None:
        backend = serving.backend
        await backend.load("demo")
        going = asyncio.create_task(backend.unload("demo"))
        await asyncio.sleep(0.02)
        running = await backend.answer(Job(model="demo", prompt="Once", keep_alive=50))
        await running.aclose()
        await going
        assert [m.name for m in backend.loaded()] == ["demo"]

    _run(work, StandIn(closing=0.3), StandIn())
