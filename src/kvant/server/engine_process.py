"""A model in a process of its own, seen from the server: start it, ask it, hear of its end."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from kvant.errors import KvantError
from kvant.server import wire
from kvant.server.jobs import DeadlineError, Delta, EmbedJob, EngineLostError, Job, Timings
from kvant.server.prepare import Defaults

__all__ = ["EngineProcess", "EngineSpec", "Opened", "Stream", "end_process"]

_CLOSE_SECONDS = 5.0
_OPEN_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What to run, and how."""

    path: Path
    adapter: Path | None
    defaults: Defaults
    threads: int | None
    kv_type: str
    parallel: int
    queue: int
    draft: str | None


@dataclass(frozen=True, slots=True)
class Opened:
    """What a model will take: bytes of weights, bytes a token of cache, its longest context."""

    weights: int
    token_bytes: float
    context: int
    encodes: bool


class Stream:
    """An answer under way; `kvant.server.jobs.Answer` without the model's name.

    Attributes:
        prompt_tokens: known once `admitted`.
        cached_tokens: known with the first delta.
        completion_tokens: written so far.
        timings: complete with the last delta.
        outcome: None while it runs; then why it ended.
    """

    def __init__(self, number: int, cancel: Callable[[int], None]) -> None:
        self.number = number
        self._cancel = cancel
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self.timings = Timings()
        self.outcome: str | None = None
        self.first: float | None = None
        """When the first delta came, by `time.perf_counter`."""
        self.chat_template: str | None = None
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deltas: asyncio.Queue[Delta | KvantError] = asyncio.Queue()
        self.on_end: Callable[[], None] | None = None

    # ---- what the process said -------------------------------------------------------------------

    def admit(self, prompt_tokens: int) -> None:
        """It is going to run."""
        self.prompt_tokens = prompt_tokens
        if not self.admitted.done():
            self.admitted.set_result(None)

    def take(
        self,
        delta: Delta,
        begun: tuple[int, float, float] | None = None,
        generation: float | None = None,
    ) -> None:
        """A delta.

        Args:
            delta: the piece.
            begun: tokens that were cached, seconds it waited, seconds it read; with the first one.
            generation: seconds it wrote; with the last one.
        """
        if self.outcome is not None:
            return
        self.completion_tokens += len(delta.tokens)
        if begun is not None:
            self.cached_tokens, self.timings.queue, self.timings.prompt = begun
        if self.first is None:
            self.first = time.perf_counter()
        if delta.finish_reason:
            self.timings.generation = generation or 0.0
            self._end(delta.finish_reason)
        self._deltas.put_nowait(delta)

    def fail(self, error: KvantError, outcome: str) -> None:
        """It ends with an error."""
        if self.outcome is not None:
            return
        self._end(outcome)
        if not self.admitted.done():
            self.admitted.set_exception(error)
        self._deltas.put_nowait(error)

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        if self.on_end is not None:
            self.on_end()

    # ---- what the client does --------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """The deltas.

        Raises:
            DeadlineError, EngineLostError: while it was written.
        """
        while True:
            item = await self._deltas.get()
            if isinstance(item, KvantError):
                raise item
            yield item
            if item.finish_reason:
                return

    def expire(self, seconds: float) -> None:
        """The time is over."""
        if self.outcome is None:
            self._cancel(self.number)
            error = DeadlineError(
                f"The answer took longer than the {seconds:g} seconds it had. Ask for fewer "
                "tokens, or allow more time."
            )
            self.fail(error, "deadline")

    async def aclose(self) -> None:
        """End it; its place and its cache are free at once."""
        self.stop("cancelled")

    def stop(self, outcome: str) -> None:
        """As `aclose`, with a reason."""
        if self.outcome is None:
            self._cancel(self.number)
            if not self.admitted.done():
                self.admitted.cancel()
            self._end(outcome)


class EngineProcess(asyncio.Protocol):
    """The process. Make it with `start`, then `load`.

    Args:
        engine: what runs the model in it: ``native``, or ``onnxruntime-genai``.
    """

    def __init__(self, engine: str = "native") -> None:
        self._engine = engine
        self._frames = wire.Frames()
        self._transport: asyncio.WriteTransport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._streams: dict[int, Stream] = {}
        self._embeds: dict[int, asyncio.Future[wire.Message]] = {}
        self._numbers = itertools.count()
        self._news: asyncio.Future[wire.Message] | None = None
        self.stats: Mapping[str, float] = {}
        self.context = self.memory = 0
        self.template: str | None = None
        self.lost = False
        self.on_lost: Callable[[], None] | None = None

    # ---- its life --------------------------------------------------------------------------------

    async def start(self, spec: EngineSpec) -> Opened:
        """Start the process and let it look at the model.

        Raises:
            InputError: the model cannot be read.
            EngineLostError: the process ended.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kvant.server.worker"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the server, which then ends this one
            )
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=ours)
        self._say(
            {
                "do": "open",
                "engine": self._engine,
                "path": str(spec.path),
                "adapter": None if spec.adapter is None else str(spec.adapter),
                "defaults": asdict(spec.defaults),
                "threads": spec.threads,
                "kv_type": spec.kv_type,
                "parallel": spec.parallel,
                "queue": spec.queue,
                "draft": spec.draft,
            }
        )
        found = await self._answer_to_load(_OPEN_SECONDS)
        return Opened(
            found["weights"], found["token_bytes"], found["context"], bool(found["encodes"])
        )

    async def load(self, context: int, kv_tokens: int) -> None:
        """Load the model.

        Raises:
            NotEnoughMemoryError: it does not fit.
            InputError: the model cannot be read.
            EngineLostError: the process ended.
        """
        self._say({"do": "load", "context": context, "kv_tokens": kv_tokens})
        found = await self._answer_to_load(None)
        self.context, self.memory = found["context"], found["memory"]
        self.template = found["template"]

    async def _answer_to_load(self, seconds: float | None) -> wire.Message:
        self._news = asyncio.get_running_loop().create_future()
        if self.lost:
            raise self._lost_error()
        try:
            async with asyncio.timeout(seconds):
                found = await self._news
        except TimeoutError:
            self.kill()
            raise EngineLostError("The model's process does not answer; it was ended.") from None
        finally:
            self._news = None
        if found["is"] == "failed":
            raise wire.error_from(found["error"])
        return found

    async def close(self) -> None:
        """End the process and wait for its end; its memory is free then."""
        process = self._process
        if process is None:
            return
        if not self.lost:
            self._say({"do": "close"})
        ended = asyncio.get_running_loop().run_in_executor(None, end_process, process)
        await ended
        if self._transport is not None:
            self._transport.close()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    @property
    def pid(self) -> int:
        """The process."""
        return -1 if self._process is None else self._process.pid

    # ---- requests --------------------------------------------------------------------------------

    def answer(self, job: Job) -> Stream:
        """Send a job; await ``admitted`` of what is returned.

        Raises:
            EngineLostError: the process has ended.
            UsageError: the job is too long to be sent.
        """
        if self.lost:
            raise self._lost_error()
        number = next(self._numbers)
        stream = Stream(number, self._cancel)
        stream.chat_template = job.chat_template
        self._say({"do": "answer", "id": number, "job": wire.job_to(job)})
        self._streams[number] = stream
        return stream

    async def embed(self, job: EmbedJob) -> wire.Message:
        """Vectors, as `wire.vectors_from` reads them, and ``tokens``."""
        if self.lost:
            raise self._lost_error()
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        inputs = [t if isinstance(t, str) else list(t) for t in job.inputs]
        self._say({"do": "embed", "id": number, "inputs": inputs, "truncate": job.truncate})
        self._embeds[number] = future
        try:
            found: wire.Message = await future
            return found
        finally:
            if self._embeds.pop(number, None) is not None and not self.lost:
                self._say({"do": "cancel", "id": number})

    def _cancel(self, number: int) -> None:
        if self._streams.pop(number, None) is not None and not self.lost:
            self._say({"do": "cancel", "id": number})

    def _say(self, message: Mapping[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.pack(message))

    # ---- what the process says -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        # Other event loops' transports are none of asyncio's classes.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Frames, or parts of them."""
        try:
            for message in self._frames.feed(data):
                self._heard(message)
        except (wire.FrameError, KeyError, TypeError, ValueError, IndexError):
            self.kill()  # what is heard next is that the connection is lost

    def _heard(self, message: wire.Message) -> None:
        what = message["is"]
        if "stats" in message:
            self.stats = message["stats"]
        if what == "deltas":
            for short in message["of"]:
                stream = self._streams.get(short[0])
                if stream is not None:
                    if short[1][2] is not None:
                        del self._streams[short[0]]
                    stream.take(wire.delta_from(short[1]), *short[2:])
        elif what == "admitted":
            stream = self._streams.get(message["id"])
            if stream is not None:
                own = stream.chat_template
                stream.chat_template = (None, self.template, own)[message["template"]]
                stream.admit(message["prompt"])
        elif what == "error":
            error = wire.error_from(message["error"])
            stream = self._streams.pop(message["id"], None)
            if stream is not None:
                stream.fail(error, "error")
            future = self._embeds.pop(message["id"], None)
            if future is not None and not future.done():
                future.set_exception(error)
        elif what == "embedded":
            future = self._embeds.pop(message["id"], None)
            if future is not None and not future.done():
                future.set_result(message)
        elif self._news is not None and not self._news.done():
            self._news.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, or is about to."""
        self.lost = True
        error = self._lost_error()
        for stream in list(self._streams.values()):
            stream.fail(error, "lost")
        self._streams.clear()
        for future in self._embeds.values():
            if not future.done():
                future.set_exception(error)
        self._embeds.clear()
        if self._news is not None and not self._news.done():
            self._news.set_exception(error)
        if self._process is not None:
            self._process.kill()
        if self.on_lost is not None:
            self.on_lost()

    def _lost_error(self) -> EngineLostError:
        status = None if self._process is None else self._process.poll()
        how = "" if status is None else f" (status {status})"
        return EngineLostError(
            f"The process that ran the model ended{how}. Ask again; another one is started then."
        )


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that was told to; not for ever."""
    try:
        process.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    # Where this kvant was found, the other process finds it too.
    paths = [p for p in sys.path if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
