"""Other engines as processes that kvant starts, watches and ends: vLLM and MLX LM.

They speak OpenAI's API on a port of this machine that nobody else is told. Conversations are
written and made tokens of here, so tools, reasoning and errors are the same with every engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kvant.engine.batch import Request
from kvant.errors import KvantError, MissingExtraError, UnsupportedError, UsageError
from kvant.server import wire
from kvant.server.engine_process import EngineSpec, Opened, Stream, end_process
from kvant.server.jobs import Delta, EmbedJob, EngineLostError, Job
from kvant.server.prepare import Preparer
from kvant.server.upstream import Refused, alive, events

__all__ = ["ExternalEngine"]

_START_SECONDS = 900.0
"""A large model takes minutes to be read and compiled for a GPU."""
_DYING_SECONDS = 1.0
_LOG_BYTES = 2000
_STOP = ("stop", "length")


class ExternalEngine:
    """The same face as `kvant.server.engine_process.EngineProcess`."""

    def __init__(self, engine: str, tensor_parallel: int | None) -> None:
        self._engine, self._tensor_parallel = engine, tensor_parallel
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._spec: EngineSpec | None = None
        self._preparer: Preparer | None = None
        # A preparer is for one thread at a time.
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._tokenizer: Any = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._numbers = 0
        self._written = 0
        self.context = self.memory = 0
        self.template: str | None = None
        self.on_lost: Callable[[], None] | None = None

    # ---- its life --------------------------------------------------------------------------------

    async def start(self, spec: EngineSpec) -> Opened:
        """Look at the model: its tokenizer is read here.

        Raises:
            InputError: it cannot be read.
            UnsupportedError: it has an adapter.
        """
        if spec.adapter is not None:
            raise UnsupportedError(
                f"{spec.path}: --engine {self._engine} serves no adapters. Merge it: kvant convert "
                "--lora, or use --engine native."
            )
        self._spec = spec
        return await asyncio.get_running_loop().run_in_executor(None, self._open, spec)

    def _open(self, spec: EngineSpec) -> Opened:
        from kvant.api.sampling_defaults import default_sampling
        from kvant.api.source import open_source, tokenizer_of

        checkpoint = open_source(spec.path)
        most = checkpoint.config.max_position_embeddings
        self._tokenizer = tokenizer_of(checkpoint)
        self._preparer = Preparer(
            self._tokenizer, default_sampling(checkpoint), spec.defaults, most
        )
        self.template = self._preparer.template
        weights = sum(w.stored.nbytes for w in checkpoint.weights.values())
        # How it keeps its cache is its own affair, and mostly in another memory.
        return Opened(weights, 0.0, most, checkpoint.graph.encodes)

    async def load(self, context: int, kv_tokens: int) -> None:
        """Start the process and wait until it serves.

        Raises:
            MissingExtraError: the engine is not installed.
            EngineLostError: it ended, or did not begin to serve in time.
        """
        assert self._spec is not None
        assert self._preparer is not None
        self._port = _free_port()
        self._process = subprocess.Popen(
            self._command(self._spec, context),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
        log = _Tail(self._process)
        ends = time.monotonic() + _START_SECONDS
        while not await alive(self._port, "/health"):
            if self._process.poll() is not None or time.monotonic() > ends:
                said = await asyncio.get_running_loop().run_in_executor(None, log.text)
                raise EngineLostError(f"{self._engine} did not begin to serve: {said[-500:]}")
            await asyncio.sleep(0.2)
        self.context = self._preparer.context = context
        self.memory = sum(f.stat().st_size for f in _files(self._spec.path))
        self._watch = asyncio.ensure_future(self._watching())

    def _command(self, spec: EngineSpec, context: int) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(self._port)]
        if self._engine == "mlx":
            program = [sys.executable, "-m", "mlx_lm.server"]
            return [*program, "--model", str(spec.path), *where]
        found = shutil.which("vllm")
        if found is None:
            raise MissingExtraError(
                "--engine vllm: the program vllm is not on the PATH. Install it: pip install vllm"
            )
        command = [found, "serve", str(spec.path), *where, "--served-model-name", "model"]
        command += ["--max-model-len", str(context), "--max-num-seqs", str(spec.parallel)]
        if self._tensor_parallel is not None:
            command += ["--tensor-parallel-size", str(self._tensor_parallel)]
        return command

    async def _watching(self) -> None:
        assert self._process is not None
        while self._process.poll() is None:
            await asyncio.sleep(0.25)
        for task in list(self._tasks.values()):
            task.cancel()
        if self.on_lost is not None:
            self.on_lost()

    async def close(self) -> None:
        """End the process."""
        if self._watch is not None:
            self._watch.cancel()
        loop = asyncio.get_running_loop()
        if self._process is not None:
            self._signal(signal.SIGTERM)
            await loop.run_in_executor(None, end_process, self._process)
            self.kill()  # those of its processes that did not hear, or outlived it
        await loop.run_in_executor(None, self._forget)

    def _forget(self) -> None:
        self._preparing.shutdown(cancel_futures=True)
        if self._preparer is not None:
            self._preparer.close()

    def kill(self) -> None:
        """End the process, and those it started, at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # The session is its own, so all it started are in its group; the group is there for as long
        # as any of them is.
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    @property
    def lost(self) -> bool:
        """Whether the process has ended."""
        return self._process is not None and self._process.poll() is not None

    @property
    def pid(self) -> int:
        """The process."""
        return -1 if self._process is None else self._process.pid

    @property
    def stats(self) -> Mapping[str, float]:
        """What is known from here."""
        return {"running": len(self._tasks), "written_tokens": self._written}

    # ---- requests --------------------------------------------------------------------------------

    def answer(self, job: Job) -> Stream:
        """Send a job; await ``admitted`` of what is returned."""
        if self.lost:
            raise EngineLostError(f"{self._engine} has ended. Ask again; it is started then.")
        self._numbers += 1
        stream = Stream(self._numbers, self._cancel)
        stream.chat_template = job.chat_template or self.template if job.messages else None
        task = asyncio.ensure_future(self._answer(job, stream))
        self._tasks[stream.number] = task
        task.add_done_callback(lambda _: self._done(stream))
        return stream

    def _done(self, stream: Stream) -> None:
        self._tasks.pop(stream.number, None)
        # Whatever ended the task, also before its first line; who has ended already hears nothing.
        stream.fail(EngineLostError(f"{self._engine} has ended. Ask again."), "lost")

    async def embed(self, job: EmbedJob) -> wire.Message:
        """Vectors are made by kvant's own engine only."""
        raise UnsupportedError(
            f"--engine {self._engine} makes no embeddings here. Serve the model with --engine "
            "native for them."
        )

    def _cancel(self, number: int) -> None:
        task = self._tasks.get(number)
        if task is not None:
            task.cancel()

    async def _answer(self, job: Job, stream: Stream) -> None:
        try:
            assert self._preparer is not None
            loop = asyncio.get_running_loop()
            request = await loop.run_in_executor(self._preparing, self._preparer.prepare, job)
            body = self._body(request)
            stream.admit(len(request.prompt))
            await self._pieces(body, stream)
        except Refused as error:
            kind = UsageError if error.status < 500 else EngineLostError
            stream.fail(kind(f"{self._engine}: {error}"), "error")
        except EngineLostError as error:
            # A process that dies lets go of its connections first; whoever hears of the error may
            # ask again at once, and should find it gone.
            ends = time.monotonic() + _DYING_SECONDS
            while not self.lost and time.monotonic() < ends:
                await asyncio.sleep(0.02)
            stream.fail(error, "lost")
        except KvantError as error:
            stream.fail(error, "error")
        except Exception as error:
            lost = EngineLostError(f"{self._engine}: {type(error).__name__}.")
            stream.fail(lost, "error")

    def _body(self, request: Request) -> dict[str, Any]:
        s = request.sampling
        if s.logprobs is not None or (self._engine == "mlx" and request.constraint is not None):
            raise UnsupportedError(
                f"Log probabilities and constrained answers are not available with --engine "
                f"{self._engine}. Leave them out, or use --engine native."
            )
        body: dict[str, Any] = {
            "model": "model" if self._engine == "vllm" else "default_model",
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens or self.context - len(request.prompt),
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "min_p": s.min_p,
            "presence_penalty": s.presence_penalty,
            "frequency_penalty": s.frequency_penalty,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if s.repetition_penalty != 1.0:
            body["repetition_penalty"] = s.repetition_penalty
        if s.seed is not None:
            body["seed"] = s.seed
        if s.logit_bias:
            body["logit_bias"] = {str(k): v for k, v in s.logit_bias.items()}
        if request.stop:
            body["stop"] = list(request.stop)
        if self._engine == "mlx":
            if request.ignore_end:
                raise UnsupportedError("--engine mlx always ends where the model does.")
            body["prompt"] = self._text(request.prompt)
        else:
            body["ignore_eos"] = request.ignore_end
            if request.constraint is not None:
                body["structured_outputs"] = _structured(request.constraint)
        return body

    def _text(self, tokens: Any) -> str:
        """The text of tokens, without what its tokenizer adds again."""
        ids = list(tokens)
        if ids and ids[0] == self._tokenizer.bos_id:
            del ids[0]
        found: str = self._tokenizer.decode(ids, special=True)
        return found

    async def _pieces(self, body: Mapping[str, Any], stream: Stream) -> None:
        began = time.perf_counter()
        first = 0.0
        reason: Any = None
        count = 0
        async for event in events(self._port, "/v1/completions", body):
            usage = event.get("usage")
            if isinstance(usage, dict):
                count = int(usage.get("completion_tokens", count))
            for choice in event.get("choices") or ():
                reason = choice.get("finish_reason") or reason
                text = choice.get("text") or ""
                if text:
                    first = first or time.perf_counter()
                    stream.take(Delta(text), (0, 0.0, first - began))
        self._written += count
        stream.completion_tokens = count
        last = Delta("", finish_reason=reason if reason in _STOP else "stop")
        now = time.perf_counter()
        stream.take(last, (0, 0.0, (first or now) - began), now - (first or now))


class _Tail:
    """The end of what a process says; the rest is thrown away as it comes.

    Some engines log prompts, so it is kept nowhere else.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._said = b""
        self._thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                self._said = (self._said + data)[-_LOG_BYTES:]

    def text(self) -> str:
        """The last two thousand bytes, of a process that has ended all of them."""
        self._thread.join(_DYING_SECONDS)
        return self._said.decode("utf-8", "replace").strip()


def _structured(constraint: Any) -> dict[str, Any]:
    kind = {"json_schema": "json", "json_object": "json_object"}.get(
        constraint.kind, constraint.kind
    )
    return {kind: True if kind == "json_object" else constraint.text}


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.glob("*.safetensors"))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
