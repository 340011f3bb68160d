"""Two backends for tests: the built-in model in this process, and one that says given texts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any

import kvant
from kvant.engine.results import FinishReason, Piece
from kvant.engine.sampling import TokenLogprob
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
from kvant.tokenizer.chat import render

END = object()


class InProcessAnswer:
    """An answer written by a thread."""

    def __init__(self, backend: InProcess, job: Job, tokens: Sequence[int]) -> None:
        self.model, self.prompt_tokens = job.model, len(tokens)
        self.cached_tokens = self.completion_tokens = 0
        self.timings = Timings()
        self.chat_template = backend.template if job.messages is not None else None
        self.closed = False
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._wants = job.sampling.get("logprobs") is not None
        self._backend = backend
        threading.Thread(target=self._write, args=(job, tokens), daemon=True).start()

    def _write(self, job: Job, tokens: Sequence[int]) -> None:
        model = self._backend.model
        try:
            with self._backend.lock:
                began = time.perf_counter()
                sampling = replaced(model.default_sampling, **job.sampling)
                request = model._request(list(tokens), sampling, job.max_tokens, job.stop)
                for _, piece in model._generate([request]):
                    now = time.perf_counter()
                    if not self.completion_tokens:
                        self.timings.prompt, began = now - began, now
                    self.completion_tokens += len(piece.tokens)
                    self.timings.generation = now - began
                    self._put(self._delta(piece))
                    if self.closed:
                        break
        except Exception as error:
            self._put(error)
        self._put(END)

    def _delta(self, piece: Piece) -> Delta:
        raw = self._backend.model.tokenizer.token_bytes
        if not self._wants:
            return Delta(str(piece), piece.tokens, finish_reason=piece.finish_reason)
        return Delta(
            str(piece),
            piece.tokens,
            piece.logprobs,
            tuple(raw(t) for t in piece.tokens),
            tuple(tuple(raw(t) for t, _ in p.top) for p in piece.logprobs),
            piece.finish_reason,
        )

    def _put(self, what: object) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, what)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while (found := await self._queue.get()) is not END:
            if isinstance(found, Exception):
                raise found
            yield found

    async def aclose(self) -> None:
        self.closed = True


class InProcess:
    """`kvant.server.jobs.Backend` over one loaded model."""

    def __init__(self, name: str = "demo") -> None:
        self.name, self.lock = name, threading.Lock()
        self.model = kvant.load(name, threads=1)
        self.template = self.model.require_chat_template()
        self.keep: float | None = 300.0
        self.is_loaded = True
        self.jobs: list[Job] = []
        self.answers: list[InProcessAnswer] = []

    def _check(self, name: str) -> None:
        if name.removesuffix(":latest") != self.name:
            raise ModelNotFoundError(f"There is no model {name!r} here.")

    async def answer(self, job: Job) -> InProcessAnswer:
        self._check(job.model)
        self.jobs.append(job)
        tokens = await asyncio.to_thread(self._tokens, job)
        sampling = replaced(self.model.default_sampling, **job.sampling)
        self.model._request(list(tokens), sampling, job.max_tokens, job.stop)  # says what is wrong
        self.answers.append(InProcessAnswer(self, job, tokens))
        return self.answers[-1]

    def _tokens(self, job: Job) -> Sequence[int]:
        if job.messages is not None:
            text = render(
                job.chat_template or self.template,
                job.messages,
                add_generation_prompt=True,
                tools=list(job.tools) or None,
                **job.template,
            )
            return self.model.tokenizer.encode(text, add_special=False, parse_special=True)
        assert job.prompt is not None
        if isinstance(job.prompt, str):
            return self.model._encode(job.prompt)
        return job.prompt

    async def embed(self, job: EmbedJob) -> Embedded:
        self._check(job.model)

        def work() -> Embedded:
            with self.lock:
                texts = [
                    t if isinstance(t, str) else self.model.tokenizer.decode(list(t))
                    for t in job.inputs
                ]
                tokens = sum(len(self.model._encode(t)) for t in texts)
                return Embedded(job.model, self.model.embed(texts), tokens, Timings())

        return await asyncio.to_thread(work)

    async def load(self, model: str, keep_alive: float | None = None) -> None:
        self._check(model)
        self.is_loaded, self.keep = True, keep_alive

    async def unload(self, model: str) -> bool:
        self._check(model)
        was, self.is_loaded = self.is_loaded, False
        return was

    def loaded(self) -> Sequence[LoadedModel]:
        if not self.is_loaded:
            return []
        expires = None if self.keep is None or self.keep < 0 else time.time() + self.keep
        return [LoadedModel(self.name, "sha256:00", 1, 2, self.model.context, 0, 0, expires)]


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
