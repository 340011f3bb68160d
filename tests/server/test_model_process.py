"""What a model's process and the server say to each other, and in which order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from kvant.api.source import open_source, threads_or_default, tokenizer_of
from kvant.builtin import demo_path
from kvant.engine.batch import Batch
from kvant.engine.constrain import Constraint, Grammars
from kvant.engine.load import load_engine
from kvant.engine.sampling import Sampling
from kvant.errors import CacheFullError, UsageError
from kvant.server import wire
from kvant.server.engine_process import EngineProcess
from kvant.server.jobs import EmbedJob, Job
from kvant.server.prepare import Defaults
from kvant.server.work import Link, Loaded, Worker
from kvant.server.worker import _native

ASK = Job(model="m", prompt="Once upon a time", max_tokens=3, sampling={"temperature": 0})


class Heard:
    """A link whose other side notes what it hears; before it does, ``meanwhile`` happens once."""

    def __init__(self, *orders: Mapping[str, Any]) -> None:
        self.messages: list[Mapping[str, Any]] = []
        self.orders = list(orders)
        self.meanwhile: Any = None

    def say(self, message: Mapping[str, Any]) -> None:
        wire.pack(message)
        work, self.meanwhile = self.meanwhile, None
        if work is not None:
            work()
        self.messages.append(message)

    def hear(self) -> Mapping[str, Any]:
        return self.orders.pop(0)

    @property
    def kinds(self) -> list[str]:
        return [m["is"] for m in self.messages]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    checkpoint = open_source(demo_path())
    engine = load_engine(checkpoint, threads=threads_or_default(1), kv_tokens=1024)
    return engine, tokenizer_of(checkpoint)


def _worker(link: Heard, parts: tuple[Any, Any], **changes: Any) -> Worker:
    engine, tokenizer = parts
    batch = Batch(engine, tokenizer, context=512)
    loaded = Loaded(tokenizer, Sampling(), 512, batch, Grammars(tokenizer, engine.vocab_size))
    for name, value in changes.items():
        setattr(loaded, name, value)
    return Worker(cast(Link, link), loaded, Defaults())


def _prepare(worker: Worker, job: Job) -> None:
    worker._prepare(0, wire.job_to(job), time.perf_counter())


def test_an_admission_is_said_before_the_answer(parts: tuple[Any, Any]) -> None:
    """However quick the thread that steps is."""
    link = Heard()
    worker = _worker(link, parts)
    batch: Any = worker._batch

    def step() -> None:
        worker._drain()
        while not batch.idle:
            worker._step(batch)

    link.meanwhile = step
    _prepare(worker, ASK)
    step()
    assert link.kinds[0] == "admitted"
    assert link.messages[-1]["of"][-1][1][2] == "length"


@pytest.mark.parametrize(
    ("job", "changes", "why"),
    [
        ({"sampling": {"logit_bias": {99999: 1.0}}}, {}, "Token ids of logit_bias"),
        ({}, {"batch": None}, "an encoder"),
        ({"constraint": Constraint("regex", "a")}, {"grammars": None}, "no constrained answers"),
        ({"constraint": Constraint("regex", "(")}, {}, "cannot be used"),
    ],
)
def test_what_is_refused_is_not_admitted(
    parts: tuple[Any, Any], job: dict[str, Any], changes: dict[str, Any], why: str
) -> None:
    link = Heard()
    _prepare(_worker(link, parts, **changes), Job(model="m", prompt="Once", **job))
    assert link.kinds == ["error"]
    assert why in link.messages[0]["error"]["message"]


def test_vectors_too_long_to_be_said(
    parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(ids: list[list[int]]) -> Any:
        return np.zeros((len(ids), 64), np.float32)

    link = Heard()
    worker = _worker(link, parts, embed=embed)
    monkeypatch.setattr(wire, "MOST_BYTES", 10_000)
    worker._prepare_texts(0, {"inputs": ["a"] * 100, "truncate": False})
    for _ in range(20):
        worker._drain()
    assert link.kinds == ["error"]
    assert "Ask for less" in link.messages[0]["error"]["message"]
    assert worker._texts == set()


def test_vectors_that_do_not_fit_leave_nothing(parts: tuple[Any, Any]) -> None:
    def embed(ids: list[list[int]]) -> Any:
        raise CacheFullError("full")

    link = Heard()
    worker = _worker(link, parts, embed=embed)
    worker._prepare_texts(0, {"inputs": ["a"], "truncate": False})
    worker._drain()
    assert link.kinds == ["error"]
    assert worker._texts == set()


class _Wire:
    """A transport that has nothing to send."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        raise AssertionError(data)


def test_a_job_too_long_to_be_said_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        process = EngineProcess()
        process._transport = cast(asyncio.WriteTransport, _Wire())
        with pytest.raises(UsageError, match="Ask for less"):
            process.answer(Job(model="m", prompt="x" * 2000))
        with pytest.raises(UsageError, match="Ask for less"):
            await process.embed(EmbedJob(model="m", inputs=["x" * 2000]))
        assert (process._streams, process._embeds) == ({}, {})

    monkeypatch.setattr(wire, "MOST_BYTES", 1000)
    asyncio.run(work())


def test_a_draft_model_is_in_the_account() -> None:
    """Its weights and cache are memory too: of what is asked for, and of what is taken."""

    def load(draft: str | None) -> tuple[Mapping[str, Any], int]:
        order = {
            "path": demo_path(),
            "adapter": None,
            "draft": draft,
            "kv_type": "f16",
            "threads": 1,
            "parallel": 2,
            "queue": 2,
        }
        link = Heard({"do": "load", "context": 256, "kv_tokens": 512})
        found = _native(cast(Link, link), order)
        assert found is not None
        return link.messages[0], found[1]

    alone, taken = load("ngram")
    both, taken_together = load(str(demo_path()))
    assert both["weights"] == 2 * alone["weights"]
    assert both["token_bytes"] == 2 * alone["token_bytes"]
    assert taken_together > 1.9 * taken
