"""Models in processes: admission, memory, what happens when one dies."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvant
from kvant.builtin import demo_path
from kvant.errors import ContextError, InputError, NotEnoughMemoryError, UsageError
from kvant.server import scope as scopes
from kvant.server.backend import ServingBackend
from kvant.server.jobs import (
    BusyError,
    DeadlineError,
    EmbedJob,
    EngineLostError,
    Job,
    ModelNotFoundError,
)
from kvant.server.library import Library
from kvant.server.running import Running, Watcher
from kvant.server.scope import Principal, Scope
from kvant.server.settings import Settings

GREEDY = {"temperature": 0}
LONG = Job(model="demo", prompt="Once upon a time", max_tokens=900, ignore_end=True)


def _run(
    work: Callable[[ServingBackend], Awaitable[Any]],
    settings: Settings | None = None,
    models: tuple[str, ...] = (),
    max_memory: int = 8 << 30,
    watchers: tuple[Watcher, ...] = (),
) -> Any:
    async def whole() -> Any:
        backend = ServingBackend(
            settings or Settings(kv_tokens=8192),
            Library(models),
            max_memory=max_memory,
            watchers=watchers,
        )
        try:
            return await work(backend)
        finally:
            await backend.close()

    return asyncio.run(whole())


async def _text(backend: ServingBackend, job: Job) -> str:
    return "".join([delta.text async for delta in await backend.answer(job)])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _pid(backend: ServingBackend, model: str = "demo") -> int:
    engine = backend._slots[model].engine
    assert engine is not None
    return engine.pid


def test_same_text_as_the_library() -> None:
    job = Job(model="demo", prompt="Once upon a time", sampling=GREEDY, max_tokens=24)
    with kvant.load("demo") as model:
        expected = model.generate("Once upon a time", kvant.Sampling(temperature=0), max_tokens=24)
        vectors = model.embed(["a little girl", "the sun"])

    async def work(backend: ServingBackend) -> None:
        running = await backend.answer(job)
        deltas = [d async for d in running]
        assert "".join(d.text for d in deltas) == expected.text
        assert tuple(t for d in deltas for t in d.tokens) == expected.tokens
        assert deltas[-1].finish_reason == "length"
        assert (running.prompt_tokens, running.completion_tokens) == (4, 24)
        assert running.timings.load > 0
        assert running.timings.generation > 0
        logged = await backend.answer(
            Job(model="demo", prompt=[440], sampling={**GREEDY, "logprobs": 2}, max_tokens=3)
        )
        deltas = [d async for d in logged]
        assert all(len(d.pieces) == len(d.tokens) == len(d.logprobs) for d in deltas)
        assert all(len(top) == 2 for d in deltas for top in d.tops)
        found = await backend.embed(EmbedJob(model="demo", inputs=["a little girl", "the sun"]))
        np.testing.assert_array_equal(found.vectors, vectors)

    _run(work)


def test_many_at_once_get_what_they_get_alone() -> None:
    prompts = [f"The {word} was" for word in ("dog", "cat", "bird", "fish", "sun", "moon")] * 3

    async def work(backend: ServingBackend) -> None:
        jobs = [
            Job(model="demo", prompt=p, sampling={"seed": i}, max_tokens=20)
            for i, p in enumerate(prompts)
        ]
        together = await asyncio.gather(*(_text(backend, job) for job in jobs))
        alone = [await _text(backend, job) for job in jobs]
        assert list(together) == alone
        assert backend.stats()["demo"]["kv_usage"] == 0

    _run(work)


def test_closing_an_answer_frees_its_place() -> None:
    async def work(backend: ServingBackend) -> None:
        running = await backend.answer(LONG)
        async for _ in running:
            break
        assert backend.loaded()[0].running == 1
        await running.aclose()
        assert running.outcome == "cancelled"
        await asyncio.sleep(0.3)
        assert backend.loaded()[0].running == 0
        assert backend.stats()["demo"]["kv_usage"] == 0
        task = asyncio.create_task(_text(backend, LONG))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    _run(work)


def test_deadline() -> None:
    async def work(backend: ServingBackend) -> None:
        await backend.load("demo")
        slow = Job(model="demo", prompt="Once", max_tokens=900, ignore_end=True, deadline=0.15)
        with pytest.raises(DeadlineError, match=r"0\.15 seconds"):
            async for _ in await backend.answer(slow):  # on a busy machine it may end before that
                pass
        await asyncio.sleep(0.3)
        assert backend.loaded()[0].running == 0
        assert backend.stats()["demo"]["kv_usage"] == 0

    _run(work)


def test_bounds_of_queue_and_user() -> None:
    settings = Settings(parallel=2, queue=1, kv_tokens=8192)

    async def work(backend: ServingBackend) -> None:
        answers = [await backend.answer(LONG) for _ in range(3)]
        with pytest.raises(BusyError, match="as many as may") as error:
            await backend.answer(LONG)
        assert 1 <= error.value.retry_after <= 60
        await answers[0].aclose()
        last = await backend.answer(Job(model="demo", prompt="Once", max_tokens=2))
        for answer in answers[1:]:
            await answer.aclose()
        assert len([d async for d in last]) == 2

    _run(work, settings)

    async def of_one(backend: ServingBackend) -> None:
        first = await backend.answer(Job(model="demo", prompt="Once", user="a"))
        with pytest.raises(BusyError, match="as many as one may"):
            await backend.answer(Job(model="demo", prompt="Once", user="a"))
        other = await backend.answer(Job(model="demo", prompt="Once", max_tokens=1, user="b"))
        assert [d async for d in other]
        await first.aclose()

    _run(of_one, Settings(per_user=1, kv_tokens=8192))


def test_a_process_that_dies_fails_its_requests_and_no_others() -> None:
    class Seen(Watcher):
        def __init__(self) -> None:
            self.outcomes: list[str | None] = []

        def ended(self, running: Running) -> None:
            self.outcomes.append(running.outcome)

    seen = Seen()

    async def work(backend: ServingBackend) -> None:
        running = await backend.answer(LONG)
        async for _ in running:
            break
        os.kill(_pid(backend), signal.SIGKILL)
        with pytest.raises(EngineLostError, match="ended"):
            async for _ in running:
                pass
        assert await _text(backend, Job(model="demo", prompt="Once", max_tokens=2))
        assert seen.outcomes == ["lost", "length"]

    _run(work, watchers=(seen,))


def test_memory_goes_to_who_needs_it() -> None:
    other = f"other={demo_path()}"

    async def work(backend: ServingBackend) -> None:
        await backend.load("demo")
        first = _pid(backend)
        job = Job(model="other", prompt="Once", max_tokens=2)
        assert await _text(backend, job)  # demo made room
        assert [m.name for m in backend.loaded()] == ["other"]
        assert not _alive(first)
        held = await backend.answer(Job(model="other", prompt="x", max_tokens=300, ignore_end=True))
        assert await _text(backend, Job(model="demo", prompt="Once", max_tokens=2))
        assert held.outcome == "length"  # nobody's answer is cut off for it

    _run(work, models=(other,), max_memory=400 << 20)

    async def refuse(backend: ServingBackend) -> None:
        with pytest.raises(NotEnoughMemoryError, match="may take 100 MB"):
            await backend.load("demo")

    _run(refuse, max_memory=100_000_000)


def test_keep_alive() -> None:
    async def work(backend: ServingBackend) -> None:
        await _text(backend, Job(model="demo", prompt="Once", max_tokens=1, keep_alive=0.2))
        pid = _pid(backend)
        expires = backend.loaded()[0].expires
        assert expires is not None
        assert expires - time.time() < 0.25
        await asyncio.sleep(1)
        assert not backend.loaded()
        assert not _alive(pid)
        await _text(backend, Job(model="demo", prompt="Once", max_tokens=1, keep_alive=-1))
        assert backend.loaded()[0].expires is None
        assert await backend.unload("demo")
        assert not backend.loaded()
        assert not await backend.unload("demo")

    _run(work)


def test_what_does_not_fit_or_make_sense() -> None:
    async def work(backend: ServingBackend) -> None:
        cases: list[tuple[Job, type[Exception], str]] = [
            (Job(model="demo", prompt="word " * 3000), ContextError, "the context holds 512"),
            (Job(model="nothing", prompt="x"), ModelNotFoundError, "kvant list"),
            (Job(model="../etc", prompt="x"), ModelNotFoundError, "no model"),
            (Job(model="demo", prompt="x", sampling={"top_p": 7}), UsageError, "top_p"),
            (Job(model="demo", prompt=[10**6]), UsageError, "vocabulary|from 0 to"),
            (Job(model="demo", prompt="x", suffix="y"), InputError, "filling in"),
            (Job(model="demo", prompt="x", stop=("",)), UsageError, "stop string"),
        ]
        for job, kind, message in cases:
            with pytest.raises(kind, match=message):
                await backend.answer(job)
        with pytest.raises(ContextError):
            await backend.embed(EmbedJob(model="demo", inputs=["word " * 3000]))
        cut = await backend.embed(EmbedJob(model="demo", inputs=["a " * 3000], truncate=True))
        assert cut.tokens == 512
        assert backend._users == {}
        assert all(slot.asked == 0 for slot in backend._slots.values())
        with pytest.raises(UsageError, match="takes contexts of 1 to"):
            await backend.answer(Job(model="demo", prompt="x", context=10**6))

    _run(work, Settings(context=512, kv_tokens=8192))


def test_a_larger_context_loads_anew() -> None:
    async def work(backend: ServingBackend) -> None:
        await backend.load("demo")
        assert backend.loaded()[0].context == 256
        await _text(backend, Job(model="demo", prompt="x", context=512, max_tokens=1))
        assert backend.loaded()[0].context == 512

    _run(work, Settings(context=256, kv_tokens=8192))


def test_models_of_others_are_not_there() -> None:
    async def work(backend: ServingBackend) -> None:
        scope = Scope("r", Principal("eve/1", "user", ("llama*",)), 0.0)
        token = scopes.current.set(scope)
        with pytest.raises(ModelNotFoundError, match="for this key"):
            await backend.answer(Job(model="demo", prompt="x"))
        scopes.current.reset(token)

    _run(work)


def test_drain_lets_answers_finish() -> None:
    async def work(backend: ServingBackend) -> None:
        running = await backend.answer(
            Job(model="demo", prompt="Once", max_tokens=100, ignore_end=True)
        )
        draining = asyncio.create_task(backend.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="shutting down"):
            await backend.answer(LONG)
        assert sum([len(d.tokens) async for d in running]) == 100
        await draining

    _run(work)


def test_names(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(b"")
    library = Library((str(model), f"again={model}"))
    assert library.own() == ["again", "demo", "tiny"]
    assert library.resolve("tiny:latest").path == model
    with pytest.raises(UsageError, match="Two models"):
        Library((str(model), str(model)))
    with pytest.raises(InputError, match="no such file"):
        Library(("x=/no/such/file",))
    for name in (str(model), "/etc/passwd", "~/x", "a/../b", "", "x\ny", "a" * 1000):
        with pytest.raises(ModelNotFoundError):
            library.resolve(name)
