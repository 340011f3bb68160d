"""What a model's process does: runs requests together, and says what came of them.

Three threads: one reads what the server says, one makes tokens of requests (templates and
tokenizers take milliseconds), and the main one steps the engine. When the server goes away, so
does this process.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvant.engine.batch import Batch, QueueFullError, Request, check_length
from kvant.engine.constrain import Grammars
from kvant.engine.results import Piece
from kvant.engine.sampling import Sampling
from kvant.errors import CacheFullError, KvantError, UnsupportedError, UsageError
from kvant.server import wire
from kvant.server.jobs import BusyError, Delta
from kvant.server.prepare import Defaults, Preparer

if TYPE_CHECKING:
    from kvant.runtimes.onnxruntime_genai import GenaiBatch
    from kvant.tokenizer.build import Tokenizer

__all__ = ["Link", "Loaded", "Worker"]

_TEXTS, _TEXT_TOKENS = 16, 512
"""Texts, and about how many tokens, that vectors are made of between two steps."""

Message = dict[str, Any]


class Link:
    """The socket to the server; any thread may say something."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._frames = wire.Frames()
        self._ready: list[Message] = []

    def say(self, message: Mapping[str, Any]) -> None:
        """Tell the server."""
        data = wire.pack(message)
        with self._lock:
            self._sock.sendall(data)

    def hear(self) -> Message:
        """The next message.

        Raises:
            EOFError: the server is gone.
        """
        while not self._ready:
            data = self._sock.recv(1 << 18)
            if not data:
                raise EOFError
            self._ready = list(self._frames.feed(data))
        return self._ready.pop(0)


@dataclass(slots=True)
class Loaded:
    """A model that runs.

    Attributes:
        tokenizer: its own.
        sampling: what it recommends.
        context: most tokens of a prompt and its answer.
        batch: runs requests; None for an encoder.
        grammars: for constraints; None where there are none.
        embed: token ids of texts to rows; None where it makes no vectors.
    """

    tokenizer: Tokenizer
    sampling: Sampling
    context: int
    batch: Batch | GenaiBatch | None
    grammars: Grammars | None = None
    embed: Callable[[list[list[int]]], npt.NDArray[np.float32]] | None = None


@dataclass(slots=True)
class _Live:
    """A request at work: the server's number for it, and when things happened."""

    number: int
    request: Request
    arrived: float
    key: int = -1
    waited: float = 0.0
    """Seconds until it was in the batch: the tokenizer's, and a step's that was under way."""
    begun: bool = False


@dataclass(slots=True)
class _Texts:
    """Texts to make vectors of, a few between two steps."""

    number: int
    ids: list[list[int]]
    rows: list[Any]


class Worker:
    """What runs after the model is there."""

    def __init__(self, link: Link, model: Loaded, defaults: Defaults) -> None:
        self._link, self._model, self._batch = link, model, model.batch
        self._preparer = Preparer(model.tokenizer, model.sampling, defaults, model.context)
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._preparing.submit(self._preparer.warm)
        self._by_number: dict[int, _Live] = {}
        self._by_key: dict[int, _Live] = {}
        self._texts: set[int] = set()  # requests for vectors that are under way
        self._gone: set[int] = set()  # ended by the server before they were prepared
        self._seen = -1  # highest number that was prepared

    @property
    def template(self) -> str | None:
        """What conversations are written with."""
        return self._preparer.template

    # ---- the thread that listens -----------------------------------------------------------------

    def listen(self) -> None:
        """Take what the server says until it is gone, then end the process."""
        try:
            while True:
                self._heard(self._link.hear())
        except (EOFError, OSError):
            pass
        except wire.FrameError as error:
            note(f"what the server says makes no sense: {error}")
        # At once, in the middle of a step too: nobody is there to hear of it.
        os._exit(0)

    def _heard(self, message: Message) -> None:
        do, number = message["do"], message.get("id", -1)
        if do == "answer":
            self._preparing.submit(self._prepare, number, message["job"], time.perf_counter())
        elif do == "embed":
            self._preparing.submit(self._prepare_texts, number, message)
        elif do == "cancel":
            self._todo.put(lambda: self._cancel(number))
        elif do == "close":
            os._exit(0)

    # ---- the thread that makes tokens ------------------------------------------------------------

    def _prepare(self, number: int, message: Message, arrived: float) -> None:
        try:
            job = wire.job_from(message)
            request = self._preparer.prepare(job)
            self._check(request)
        except BaseException as error:
            self._refuse(number, error)
            return
        # Which template: none, the model's, or the client's own, which the server knows.
        template = 0 if job.messages is None else 2 if job.chat_template else 1
        prompt = len(request.prompt)
        admitted = {"is": "admitted", "id": number, "prompt": prompt, "template": template}
        live = _Live(number, request, arrived)
        # In this order: once it is in the batch, its last piece may be said at any moment.
        self._link.say(admitted)
        self._todo.put(lambda: self._add(live))

    def _check(self, request: Request) -> None:
        """Refuse before it is admitted what the batch would refuse afterwards."""
        if self._batch is None:
            raise UsageError("The model is an encoder; it writes no text. Ask for embeddings.")
        if request.constraint is not None:
            if self._model.grammars is None:
                raise UnsupportedError(
                    "This engine writes no constrained answers. Leave the constraint out, or serve "
                    "a GGUF file of the model."
                )
            self._model.grammars.matcher(request.constraint)  # compiled here, found there

    def _prepare_texts(self, number: int, message: Message) -> None:
        try:
            if self._model.embed is None:
                raise UnsupportedError("This engine makes no embeddings. Use --engine native.")
            p, most = self._preparer, self._model.context
            encode = p.cut if message["truncate"] else p.encode
            ids = [encode(t) if isinstance(t, str) else p.checked(t) for t in message["inputs"]]
            if message["truncate"]:
                ids = [tokens[:most] for tokens in ids]
            for tokens in ids:
                check_length(tokens, most + 1)
        except BaseException as error:
            self._refuse(number, error)
            return
        texts = _Texts(number, ids, [])
        self._todo.put(lambda: self._begin_texts(texts))

    def _refuse(self, number: int, error: BaseException) -> None:
        if not isinstance(error, (KvantError, QueueFullError)):
            note(f"request failed: {type(error).__name__}: {error}")
        if isinstance(error, QueueFullError):
            error = BusyError(f"{error}. Ask again in a moment.", 1.0)
        self._link.say({"is": "error", "id": number, "error": wire.error_to(error)})
        self._todo.put(lambda: self._forget(number))

    # ---- the thread that steps -------------------------------------------------------------------

    def run(self) -> None:
        """Step for ever."""
        batch = self._batch
        while True:
            if batch is None or batch.idle:
                self._report()
                self._todo.get()()
            self._drain()
            if batch is not None and not batch.idle:
                self._step(batch)

    def _drain(self) -> None:
        # What is put meanwhile (the rest of some texts) comes after the next step.
        for _ in range(self._todo.qsize()):
            self._todo.get()()

    def _reach(self, number: int) -> bool:
        """A request has been prepared; whether anybody still wants it."""
        self._seen = max(self._seen, number)
        wanted = number not in self._gone
        self._gone.discard(number)
        return wanted

    def _forget(self, number: int) -> None:
        self._reach(number)

    def _add(self, live: _Live) -> None:
        if not self._reach(live.number):
            return
        assert self._batch is not None
        try:
            live.key = self._batch.add(live.request)
        except Exception as error:
            self._refuse(live.number, error)
            return
        live.waited = time.perf_counter() - live.arrived
        self._by_number[live.number] = self._by_key[live.key] = live

    def _cancel(self, number: int) -> None:
        live = self._by_number.pop(number, None)
        if live is None:
            if number > self._seen or number in self._texts:
                self._gone.add(number)
            return
        del self._by_key[live.key]
        assert self._batch is not None
        self._batch.cancel(live.key)

    def _step(self, batch: Batch | GenaiBatch) -> None:
        try:
            events = batch.step()
        except KvantError as error:
            # What was in the step cannot be told apart: all of it ends, and says why.
            for live in list(self._by_number.values()):
                self._cancel(live.number)
                self._refuse(live.number, error)
            return
        deltas = []
        for key, event in events:
            live = self._by_key[key]
            if isinstance(event, KvantError):
                del self._by_key[key], self._by_number[live.number]
                self._refuse(live.number, event)
            else:
                deltas.append(self._delta(live, event))
        message: Message = {"is": "deltas", "of": deltas} if deltas else {"is": "stats"}
        self._link.say({**message, "stats": self._stats()})

    def _delta(self, live: _Live, piece: Piece) -> list[Any]:
        short: list[Any] = [live.number, wire.delta_to(self._as_delta(live, piece))]
        if live.begun and not piece.finish_reason:
            return short
        usage = piece.usage
        assert usage is not None
        queued = live.waited + usage.queue_seconds
        short.append([usage.cached_tokens, queued, usage.prompt_seconds])
        live.begun = True
        if piece.finish_reason:
            short.append(usage.generation_seconds)
            del self._by_number[live.number], self._by_key[live.key]
        return short

    def _as_delta(self, live: _Live, piece: Piece) -> Delta:
        if live.request.sampling.logprobs is None:
            return Delta(str(piece), piece.tokens, finish_reason=piece.finish_reason)
        text = self._model.tokenizer.token_bytes
        return Delta(
            str(piece),
            piece.tokens,
            piece.logprobs,
            tuple(text(t, special=True) for t in piece.tokens),
            tuple(tuple(text(i, special=True) for i, _ in p.top) for p in piece.logprobs),
            piece.finish_reason,
        )

    def _stats(self) -> Message:
        if self._batch is None:
            return {}
        s = self._batch.stats()
        return {
            "running": s.running,
            "waiting": s.waiting,
            "kv_usage": s.blocks_used / s.blocks_total,
            "prefix_queries": s.prompt_tokens,
            "prefix_hits": s.cached_tokens,
            "preemptions": s.preemptions,
            "steps": s.steps,
            "written_tokens": s.written_tokens,
            "computed_tokens": s.computed_tokens,
            "draft_tokens": s.drafted,
            "accepted_tokens": s.accepted,
        }

    def _report(self) -> None:
        self._link.say({"is": "stats", "stats": self._stats()})

    # ---- vectors ---------------------------------------------------------------------------------

    def _begin_texts(self, texts: _Texts) -> None:
        if self._reach(texts.number):
            self._texts.add(texts.number)
            self._embed(texts)

    def _embed(self, texts: _Texts) -> None:
        """The next few vectors; the rest after a step, so that nobody who writes waits long."""
        if texts.number in self._gone:
            self._gone.discard(texts.number)
            self._texts.discard(texts.number)
            return
        count, tokens = 0, 0
        rest = texts.ids[len(texts.rows) :]
        while count < min(len(rest), _TEXTS) and (not count or tokens < _TEXT_TOKENS):
            tokens += len(rest[count])
            count += 1
        try:
            if count and self._model.embed is not None:
                texts.rows += list(self._model.embed(rest[:count]))
        except CacheFullError as error:
            if self._batch is None or self._batch.idle:
                self._texts.discard(texts.number)
                self._refuse(texts.number, error)
                return
        except KvantError as error:
            self._texts.discard(texts.number)
            self._refuse(texts.number, error)
            return
        if len(texts.rows) < len(texts.ids):
            self._todo.put(lambda: self._embed(texts))
            return
        self._texts.discard(texts.number)
        rows = np.stack(texts.rows) if texts.rows else np.zeros((0, 0), np.float32)
        found = {"tokens": sum(map(len, texts.ids)), **wire.vectors_to(rows)}
        try:
            self._link.say({"is": "embedded", "id": texts.number, **found})
        except UsageError as error:  # longer than a message may be
            self._refuse(texts.number, error)


def note(text: str) -> None:
    """A line for the server's log."""
    print(f"kvant worker {os.getpid()}: {text}", file=sys.stderr, flush=True)
