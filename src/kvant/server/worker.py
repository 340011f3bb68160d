"""A model's process: loads it, runs requests together, and says what came of them.

Started by `engine_process`, with a socket for standard input. Three threads: one reads what the
server says, one makes tokens of requests (templates and tokenizers take milliseconds), and the
main one steps the engine. When the server goes away, so does this process.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kvant.errors import KvantError, UsageError
from kvant.server import wire
from kvant.server.jobs import Delta
from kvant.server.prepare import Defaults, Prepared, Preparer

__all__ = ["main"]

_STATS_SECONDS = 0.25
_NICE = 1

Message = dict[str, Any]


class _Link:
    """The socket to the server; any thread may say something."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._frames = wire.Frames()
        self._ready: list[Message] = []

    def say(self, message: Mapping[str, Any]) -> None:
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
class _Live:
    """A request at work: the server's number for it, and when things happened."""

    number: int
    prepared: Prepared
    arrived: float
    key: int = -1
    first: float | None = None
    started: float | None = None


class Worker:
    """What runs after the model is there."""

    def __init__(self, link: _Link, model: Any, defaults: Defaults, batch: Any) -> None:
        self._link, self._model, self._batch = link, model, batch
        self._preparer = Preparer(
            model.tokenizer, model.default_sampling, defaults, model.context
        )
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._by_number: dict[int, _Live] = {}
        self._by_key: dict[int, _Live] = {}
        self._gone: set[int] = set()  # ended by the server before they were prepared
        self._seen = -1  # highest number that was prepared
        self._told = 0.0

    # ---- the thread that listens -----------------------------------------------------------------

    def listen(self) -> None:
        """Take what the server says until it is gone, then end the process."""
        try:
            while True:
                self._heard(self._link.hear())
        except (EOFError, OSError):
            pass
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

    def _prepare(self, number: int, job: Message, arrived: float) -> None:
        try:
            prepared = self._preparer.prepare(wire.job_from(job))
        except BaseException as error:
            self._refuse(number, error)
            return
        self._link.say({"is": "admitted", "id": number, "prompt": len(prepared.tokens)})
        live = _Live(number, prepared, arrived)
        self._todo.put(lambda: self._add(live))

    def _prepare_texts(self, number: int, message: Message) -> None:
        try:
            p, most = self._preparer, self._model.context
            ids = [p.encode(t) if isinstance(t, str) else p.checked(t) for t in message["inputs"]]
            if message["truncate"]:
                ids = [tokens[:most] for tokens in ids]
        except BaseException as error:
            self._refuse(number, error)
            return
        self._todo.put(lambda: self._embed(number, ids))

    def _refuse(self, number: int, error: BaseException) -> None:
        if not isinstance(error, KvantError):
            _note(f"request failed: {type(error).__name__}: {error}")
        self._link.say({"is": "error", "id": number, "error": wire.error_to(error)})
        self._todo.put(lambda: self._forget(number))

    # ---- the thread that steps -------------------------------------------------------------------

    def run(self) -> None:
        """Step for ever."""
        while True:
            idle = self._batch is None or self._batch.idle
            if idle:
                self._report()
                self._todo.get()()
            self._drain()
            if self._batch is not None and not self._batch.idle:
                self._step()

    def _drain(self) -> None:
        try:
            while True:
                self._todo.get_nowait()()
        except queue.Empty:
            pass

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
        try:
            if self._batch is None:
                raise UsageError("The model is an encoder; it writes no text. Ask for embeddings.")
            live.key = self._batch.add(live.prepared)
        except KvantError as error:
            self._refuse(live.number, error)
            return
        self._by_number[live.number] = self._by_key[live.key] = live

    def _cancel(self, number: int) -> None:
        live = self._by_number.pop(number, None)
        if live is None:
            if number > self._seen:
                self._gone.add(number)
            return
        del self._by_key[live.key]
        self._batch.cancel(live.key)

    def _step(self) -> None:
        try:
            pieces = self._batch.step()
        except KvantError as error:
            # What was in the step cannot be told apart: all of it ends, and says why.
            for live in list(self._by_number.values()):
                self._cancel(live.number)
                self._refuse(live.number, error)
            return
        now = time.perf_counter()
        deltas = [self._delta(self._by_key[key], piece, now) for key, piece in pieces]
        if deltas:
            message: Message = {"is": "deltas", "of": deltas}
            if now - self._told >= _STATS_SECONDS:
                self._told = now
                message["stats"] = self._stats()
            self._link.say(message)
        elif now - self._told >= _STATS_SECONDS:
            self._report()

    def _delta(self, live: _Live, piece: Any, now: float) -> list[Any]:
        delta = self._as_delta(live, piece)
        short: list[Any] = [live.number, wire.delta_to(delta)]
        if live.first is None:
            live.first = now
            live.started = live.started or live.arrived
            short.append([0, live.started - live.arrived, now - live.started])
        if piece.finish_reason:
            if len(short) == 2:
                short.append(None)
            short.append(now - live.first)
            del self._by_number[live.number], self._by_key[live.key]
        return short

    def _as_delta(self, live: _Live, piece: Any) -> Delta:
        if live.prepared.sampling.logprobs is None:
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
        return {} if self._batch is None else dict(self._batch.stats())

    def _report(self) -> None:
        self._told = time.perf_counter()
        self._link.say({"is": "stats", "stats": self._stats()})

    def _embed(self, number: int, ids: list[list[int]]) -> None:
        if not self._reach(number):
            return
        try:
            vectors = self._model.embed_tokens(ids)
        except KvantError as error:
            self._refuse(number, error)
            return
        tokens = sum(map(len, ids))
        self._link.say(
            {"is": "embedded", "id": number, "tokens": tokens, **wire.vectors_to(vectors)}
        )


# ---- loading -------------------------------------------------------------------------------------


def _serve(link: _Link) -> None:
    from kvant import _core
    from kvant.api.model import Model
    from kvant.api.source import open_source, threads_or_default, tokenizer_of
    from kvant.engine.load import KV_TYPES, load_engine

    order = link.hear()
    checkpoint = open_source(order["path"], order.get("adapter"))
    block = sum(
        _core.kv_block_bytes(s.heads, s.head_dim, KV_TYPES[order["kv_type"]])
        for s in checkpoint.graph.states
    )
    weights = sum(w.stored.nbytes for w in checkpoint.weights.values())
    link.say(
        {
            "is": "opened",
            "weights": weights,
            "token_bytes": block / _core.KV_BLOCK,
            "context": checkpoint.config.max_position_embeddings,
            "encodes": checkpoint.graph.encodes,
        }
    )
    plan = link.hear()
    if plan["do"] != "load":
        return
    with ThreadPoolExecutor(1) as beside:
        building = beside.submit(tokenizer_of, checkpoint)
        engine = load_engine(
            checkpoint,
            threads=threads_or_default(order["threads"]),
            kv_tokens=plan["kv_tokens"],
            kv_type=order["kv_type"],
        )
        tokenizer = building.result()
    model = Model(checkpoint, engine, tokenizer, context=plan["context"])
    batch = None
    if not engine.encodes:
        from kvant.server.serial import Serial

        batch = Serial(engine, tokenizer, context=model.context)
    given = order["defaults"]
    defaults = Defaults(**{**given, "stop": tuple(given["stop"])})
    worker = Worker(link, model, defaults, batch)
    link.say(
        {
            "is": "loaded",
            "context": model.context,
            "memory": engine.memory.total,
            "kv_tokens": engine.kv.capacity_tokens,
            "describe": model.describe(),
        }
    )
    threading.Thread(target=worker.listen, daemon=True, name="listen").start()
    worker.run()


def _note(text: str) -> None:
    print(f"kvant worker {os.getpid()}: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Entry point: ``python -m kvant.server.worker``, a socket as standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when this ends
    link = _Link(socket.socket(fileno=os.dup(0)))
    try:
        _serve(link)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    except KvantError as error:
        link.say({"is": "failed", "error": wire.error_to(error)})
        return 1
    except MemoryError:
        from kvant.errors import NotEnoughMemoryError

        lost = NotEnoughMemoryError("The system gave the model's process no more memory.")
        link.say({"is": "failed", "error": wire.error_to(lost)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
