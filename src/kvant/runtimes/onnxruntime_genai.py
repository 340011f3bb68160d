"""A folder for ONNX Runtime GenAI, run by it: the same face as `kvant.engine.batch.Batch`.

It computes logits; tokens are chosen, decoded and ended by kvant, so that requests mean the same
as with kvant's own engine. Each request has a generator of its own, and they take turns: on a
processor its own batching waits for the longest text of a batch.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvant.engine.answer import Answer
from kvant.engine.batch import Event, Request, Stats, check_length
from kvant.engine.sampling import Turn, draw_turns
from kvant.engine.stopping import end_tokens
from kvant.errors import (
    DataError,
    FileFormatError,
    InputError,
    MissingExtraError,
    UnsupportedError,
)
from kvant.files.config_json import read_json
from kvant.runtimes.genai_config import refuse_foreign
from kvant.tokenizer.build import Tokenizer

__all__ = ["GenaiBatch", "GenaiFolder"]


@dataclass(frozen=True, slots=True)
class GenaiFolder:
    """What ``genai_config.json`` says of a model. Bytes; ``token_bytes`` of keys and values."""

    path: Path
    vocab_size: int
    context: int
    token_bytes: float
    weights: int

    @classmethod
    def open(cls, path: Path) -> GenaiFolder:
        """Read it.

        Raises:
            InputError: it is not there.
            FileFormatError: it does not say what is needed, or names libraries or files elsewhere.
        """
        file = path / "genai_config.json"
        config: Any = read_json(file)
        try:
            model = config["model"]
            decoder = model.get("decoder", {})
            names = ("num_hidden_layers", "num_key_value_heads", "head_size")
            numbers = [model["vocab_size"], model["context_length"]]
            numbers += [decoder.get(name) or 0 for name in names]
        except (KeyError, TypeError, AttributeError):
            numbers = []
        if not numbers or any(type(n) is not int or not 0 <= n < 1 << 31 for n in numbers):
            raise FileFormatError(
                f"{file}: expected model.vocab_size and model.context_length, and whole numbers in "
                "model.decoder. Make the folder again."
            )
        refuse_foreign(config, file)
        vocab, context, layers, heads, size = numbers
        files = [p for p in path.iterdir() if p.suffix in (".onnx", ".data")]
        weights = sum(p.stat().st_size for p in files)
        return cls(path, vocab, context, 8.0 * layers * heads * size, weights)

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, as kvant runs it.

        Raises:
            InputError: there is none, or it cannot be used.
        """
        from kvant.tokenizer.build import build
        from kvant.tokenizer.hf import from_folder

        return build(from_folder(self.path, self.vocab_size))


@dataclass(eq=False)
class _Live:
    """A request, and the generator that reads it."""

    answer: Answer
    request: Request
    generator: Any = None


class GenaiBatch:
    """Answers requests in turns. Not for several threads at once.

    Args:
        folder: the model.
        tokenizer: its own.
        context: most tokens of a prompt and its answer.
        running: most requests that take turns; the others wait.

    Raises:
        MissingExtraError: the package is not installed.
        InputError: it cannot load the model.
    """

    def __init__(
        self, folder: GenaiFolder, tokenizer: Tokenizer, *, context: int, running: int
    ) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import onnxruntime_genai
        except ImportError:
            raise MissingExtraError(
                f"{folder.path}: needs the package onnxruntime-genai. Install it: pip install "
                "onnxruntime-genai"
            ) from None
        self._og: Any = onnxruntime_genai
        try:
            self._model = self._og.Model(str(folder.path))
        except RuntimeError as error:
            raise InputError(f"{folder.path}: ONNX Runtime GenAI says: {error}") from None
        self._tokenizer, self._vocab_size = tokenizer, folder.vocab_size
        self._context, self._most = context, running
        self._ends = end_tokens(tokenizer.definition)
        self._numbers = itertools.count()
        self._running: dict[int, _Live] = {}
        self._waiting: deque[_Live] = deque()
        self._prompts = self._computed = self._written = self._steps = 0

    def add(self, request: Request) -> int:
        """Take a request; returns the number that its events carry.

        Raises:
            ContextError: it does not fit in the context.
            UnsupportedError: it has a constraint.
        """
        check_length(request.prompt, self._context)
        if request.constraint is not None:
            raise UnsupportedError(
                "Constrained answers are not available with --engine onnxruntime-genai. Leave the "
                "constraint out, or serve a GGUF file of the model."
            )
        room = self._context - len(request.prompt)
        most = room if request.max_tokens is None else min(room, request.max_tokens)
        ends = frozenset[int]() if request.ignore_end else self._ends
        answer = Answer(
            next(self._numbers),
            request,
            list(request.prompt),
            self._tokenizer,
            self._vocab_size,
            most,
            ends,
        )
        self._waiting.append(_Live(answer, request))
        return answer.number

    def cancel(self, number: int) -> None:
        """End a request; one that has ended already is no error."""
        if self._running.pop(number, None) is None:
            self._waiting = deque(w for w in self._waiting if w.answer.number != number)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._running and not self._waiting

    def step(self) -> list[Event]:
        """One token of each request that runs, and the whole prompt of one that begins."""
        if self._waiting and len(self._running) < self._most:
            live = self._waiting.popleft()
            self._running[live.answer.number] = live
        events: list[Event] = []
        for number, live in list(self._running.items()):
            event = self._next(live)
            if event is not None:
                events.append((number, event))
                if isinstance(event, DataError) or event.finish_reason:
                    del self._running[number]
        self._steps += 1
        return events

    def _next(self, live: _Live) -> Any:
        if live.generator is None:
            live.answer.begin(0)
            params = self._og.GeneratorParams(self._model)
            params.set_search_options(max_length=self._context)
            live.generator = self._og.Generator(self._model, params)
            new = list(live.request.prompt)
            self._prompts += len(new)
        else:
            new = live.answer.tokens[-1:]
        live.generator.append_tokens(np.asarray(new, np.int32))
        self._computed += len(new)
        logits = np.asarray(live.generator.get_logits(), np.float32)
        rows = np.ascontiguousarray(logits.reshape(-1, logits.shape[-1])[-1:, : self._vocab_size])
        (found,) = draw_turns([Turn(live.answer.sampler)], rows)
        if isinstance(found, DataError):
            return found
        self._written += len(found)
        live.answer.tokens += [drawn.token for drawn in found]
        return live.answer.advance(found)

    def stats(self) -> Stats:
        """What is going on; the cache is the runtime's own."""
        return Stats(
            running=len(self._running),
            waiting=len(self._waiting),
            blocks_used=0,
            blocks_total=1,
            prompt_tokens=self._prompts,
            cached_tokens=0,
            computed_tokens=self._computed,
            written_tokens=self._written,
            preemptions=0,
            steps=self._steps,
        )
