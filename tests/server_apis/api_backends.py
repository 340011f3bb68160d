"""Two backends for tests, the real one and one that says given texts, and a list of models."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced

import kvant
from kvant.engine.results import FinishReason
from kvant.engine.sampling import TokenLogprob
from kvant.server.backend import Running, ServingBackend
from kvant.server.catalogue import Details, Entry, NewModel, Progress, Report, Shown
from kvant.server.jobs import (
    Delta,
    Embedded,
    EmbedJob,
    Job,
    LoadedModel,
    ModelNotFoundError,
    Timings,
)


class Recorder:
    """The real backend, and what was asked of it."""

    def __init__(self, backend: ServingBackend) -> None:
        self._backend = backend
        self.jobs: list[Job] = []
        self.answers: list[Running] = []

    async def answer(self, job: Job) -> Running:
        self.jobs.append(job)
        self.answers.append(await self._backend.answer(job))
        return self.answers[-1]

    async def embed(self, job: EmbedJob) -> Embedded:
        return await self._backend.embed(job)

    async def load(self, model: str, keep_alive: float | None = None) -> None:
        await self._backend.load(model, keep_alive)

    async def unload(self, model: str) -> bool:
        return await self._backend.unload(model)

    def loaded(self) -> Sequence[LoadedModel]:
        return self._backend.loaded()


class ScriptedAnswer:
    """Says pieces, with one token each."""

    def __init__(self, script: Script, job: Job) -> None:
        self.model, self.chat_template = job.model, script.template
        self.prompt_tokens, self.cached_tokens, self.completion_tokens = 20, 16, 0
        self.timings = Timings(0.001, 0.002, 0.003, 0.004)
        self.closed = False
        self._script = script

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for i, piece in enumerate(self._script.pieces):
            await asyncio.sleep(self._script.pause)
            self.completion_tokens += 1
            lp = TokenLogprob(i, -0.5, ((i, -0.5),))
            raw = piece.encode()
            yield Delta(piece, (i,), (lp,), (raw,), ((raw,),))
        if self._script.error is not None:
            raise self._script.error
        self.completion_tokens += 1
        yield Delta("", (99,), (), (), (), self._script.reason)

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Script:
    """What a scripted answer says, as which model."""

    pieces: Sequence[str]
    template: str | None = None
    reason: FinishReason = "stop"
    error: Exception | None = None
    refuse: Exception | None = None
    pause: float = 0.0


@dataclass
class Scripted:
    """`kvant.server.jobs.Backend` that says what it is told to."""

    script: Script = field(default_factory=lambda: Script(["Hello"]))
    jobs: list[Job] = field(default_factory=list)
    answers: list[ScriptedAnswer] = field(default_factory=list)

    async def answer(self, job: Job) -> ScriptedAnswer:
        self.jobs.append(job)
        if self.script.refuse is not None:
            raise self.script.refuse
        self.answers.append(ScriptedAnswer(self.script, job))
        return self.answers[-1]

    async def embed(self, job: EmbedJob) -> Embedded:
        raise ModelNotFoundError("There is no such model.")

    async def load(self, model: str, keep_alive: float | None = None) -> None:
        return

    async def unload(self, model: str) -> bool:
        return False

    def loaded(self) -> Sequence[LoadedModel]:
        return []


class Shelf:
    """`kvant.server.catalogue.Catalogue` in memory."""

    def __init__(self, *names: str) -> None:
        self.entries = {
            n: Entry(n, "sha256:" + "0" * 64, 11, 1.7e9, Details("gguf", "llama", "11M", "Q8_0"))
            for n in names
        }
        self.blobs: dict[str, bytes] = {}
        self.made: list[NewModel] = []
        self.slow = threading.Event()
        self.stopped: Exception | None = None

    def _known(self, name: str) -> str:
        found = name.removesuffix(":latest")
        if found not in self.entries:
            raise ModelNotFoundError(f"There is no model {name!r} here.")
        return found

    def list(self) -> Sequence[Entry]:
        return list(self.entries.values())

    def show(self, name: str) -> Shown:
        return Shown(
            self.entries[self._known(name)],
            modelfile="FROM demo",
            template="{{ messages }}",
            parameters={"temperature": 0.5, "stop": ["a", "b"]},
            license="Apache-2.0",
            info={"general.architecture": "llama", "tokenizer.ggml.tokens": ["x"] * 100},
            capabilities=("completion", "tools"),
        )

    def pull(self, name: str, report: Report, *, insecure: bool) -> None:
        if name.startswith("absent"):
            raise ModelNotFoundError(f"{name} is not in that registry.")
        report(Progress("pulling manifest"))
        for done in (0, 50, 100):
            report(Progress("pulling 0123", "sha256:0123", 100, done))
        if name.startswith("endless"):
            try:
                while True:
                    report(Progress("pulling more"))
                    time.sleep(0.01)
            except Exception as error:
                self.stopped = error
                raise
        if name.startswith("broken"):
            raise kvant.KvantError("The digest is wrong.")
        self.entries[name] = Entry(name)

    def push(self, name: str, report: Report, *, insecure: bool) -> None:
        report(Progress(f"pushing {self._known(name)}"))

    def create(self, name: str, new: NewModel, report: Report) -> None:
        if new.base is not None:
            self._known(new.base)
        self.made.append(new)
        report(Progress("writing manifest"))
        self.entries[name] = Entry(name)

    def copy(self, source: str, destination: str) -> None:
        self.entries[destination] = replaced(self.entries[self._known(source)], name=destination)

    def remove(self, name: str) -> None:
        del self.entries[self._known(name)]

    def has_blob(self, digest: str) -> bool:
        return digest in self.blobs

    def add_blob(self, digest: str, pieces: Iterable[bytes]) -> None:
        self.blobs[digest] = b"".join(pieces)
