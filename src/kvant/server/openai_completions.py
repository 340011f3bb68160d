"""OpenAI's text completions, and embeddings."""

from __future__ import annotations

import base64
import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvant.server.answering import Answers, Whole, begin
from kvant.server.exchange import Stream, attend, read
from kvant.server.failures import error_body, http_error_of
from kvant.server.fields import FieldError
from kvant.server.jobs import Backend, Delta, EmbedJob, Job
from kvant.server.openai_requests import (
    MAX_CHOICES,
    CompletionRequest,
    EmbeddingsRequest,
    constraint_of,
    sampling_of,
    stop_of,
)
from kvant.server.openai_shapes import event, finite, token_text, usage

__all__ = ["completions", "cut_vectors", "embeddings", "prompts_of"]


async def completions(backend: Backend, request: Request) -> Response:
    """``POST /v1/completions``."""
    asked = await read(request, CompletionRequest)
    prompts = prompts_of(asked.prompt, "prompt")
    _check(asked, prompts)
    job = Job(
        model=asked.model,
        suffix=asked.suffix,
        sampling=sampling_of(asked, asked.logprobs),
        max_tokens=max(1, asked.max_tokens),
        stop=stop_of(asked.stop),
        constraint=constraint_of(asked),
        ignore_end=asked.ignore_eos,
    )
    jobs = [dataclasses.replace(job, prompt=prompt) for prompt in prompts]
    answers = await attend(request, begin(backend, jobs, asked.n))
    reply = _Reply(asked, prompts, answers)
    if asked.stream:
        return Stream(reply.events(), "text/event-stream; charset=utf-8", answers.aclose)
    try:
        return JSONResponse(await attend(request, reply.whole()))
    finally:
        await answers.aclose()


def prompts_of(
    given: str | Sequence[str | int | Sequence[int]], path: str
) -> list[str | tuple[int, ...]]:
    """The prompts of a field that takes one or many, as text or as token ids.

    Raises:
        FieldError: a mixture, nothing, or ids that are none.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise FieldError(path, "is empty.")
    kinds = {int if isinstance(p, int) else str if isinstance(p, str) else tuple for p in given}
    if len(kinds) > 1:
        raise FieldError(
            path, "expected texts, or token ids, or lists of token ids, got a mixture."
        )
    found: list[str | tuple[int, ...]]
    if kinds == {int}:
        found = [cast(tuple[int, ...], tuple(given))]
    else:
        found = [p if isinstance(p, str) else tuple(cast(Sequence[int], p)) for p in given]
    for prompt in found:
        if isinstance(prompt, tuple):
            if not prompt:
                raise FieldError(path, "a list of token ids is empty.")
            if min(prompt) < 0 or max(prompt) >= 2**31:
                raise FieldError(path, "a token id is a whole number from 0.")
    return found


def _check(asked: CompletionRequest, prompts: Sequence[str | tuple[int, ...]]) -> None:
    if len(prompts) * asked.n > MAX_CHOICES:
        raise FieldError(
            "n",
            f"expected at most {MAX_CHOICES} answers in all, got {len(prompts)} times {asked.n}.",
        )
    if asked.echo and asked.logprobs is not None:
        raise FieldError("echo", "is not supported with logprobs: those of prompts are not known.")
    if asked.echo and not all(isinstance(p, str) for p in prompts):
        raise FieldError("echo", "is supported for prompts that are text.")
    if asked.echo and asked.suffix:
        raise FieldError("echo", "is not supported with suffix.")
    if not asked.max_tokens and not asked.echo:
        raise FieldError("max_tokens", "expected a whole number from 1; 0 only with echo.")


class _Reply:
    """Says answers as OpenAI does."""

    def __init__(
        self,
        asked: CompletionRequest,
        prompts: Sequence[str | tuple[int, ...]],
        answers: Answers,
    ) -> None:
        self._asked, self._prompts, self._answers = asked, prompts, answers
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
        }
        self._offsets = [0] * len(answers.answers)

    def _echo(self, index: int) -> str:
        prompt = self._prompts[index // self._asked.n]
        return prompt if self._asked.echo and isinstance(prompt, str) else ""

    async def whole(self) -> dict[str, Any]:
        """The finished answers."""
        wholes = await self._answers.collect()
        choices = [self._whole(i, whole) for i, whole in enumerate(wholes)]
        return {**self._head, "choices": choices, "usage": usage(self._answers)}

    def _whole(self, index: int, whole: Whole) -> dict[str, Any]:
        if not self._asked.max_tokens:
            return self._choice(index, self._echo(index), [], "length")
        text = self._echo(index) + whole.text
        return self._choice(index, text, whole.deltas, whole.finish_reason)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answers as they are written."""
        asked, pending = self._asked, [list[Delta]() for _ in self._offsets]
        try:
            if asked.echo:
                for i in range(len(self._offsets)):
                    yield self._event(self._choice(i, self._echo(i), [], None))
            async for step in self._answers.steps():
                delta = step.delta
                if not asked.max_tokens:
                    delta = Delta("", finish_reason=delta.finish_reason and "length")
                waiting = pending[step.index]
                if delta.tokens:
                    waiting.append(delta)
                if delta.text or delta.finish_reason is not None:
                    choice = self._choice(step.index, delta.text, waiting, delta.finish_reason)
                    yield self._event(choice)
                    waiting.clear()
            options = asked.stream_options
            if options is not None and options.include_usage:
                yield event({**self._head, "choices": [], "usage": usage(self._answers)})
        except Exception as error:
            yield event(error_body("openai", http_error_of(error)))
        yield b"data: [DONE]\n\n"

    def _event(self, choice: dict[str, Any]) -> bytes:
        chunk = {**self._head, "choices": [choice]}
        options = self._asked.stream_options
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = usage(self._answers)
        return event(chunk)

    def _choice(
        self, index: int, text: str, deltas: Sequence[Delta], reason: str | None
    ) -> dict[str, Any]:
        logprobs = None if self._asked.logprobs is None else self._logprobs(index, deltas)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any]:
        found: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for delta in deltas:
            for i, (piece, chosen) in enumerate(zip(delta.pieces, delta.logprobs, strict=True)):
                text = token_text(piece)
                tops = delta.tops[i] if delta.tops else ()
                others = zip(tops, chosen.top, strict=True)
                found["tokens"].append(text)
                found["token_logprobs"].append(finite(chosen.logprob))
                found["top_logprobs"].append({token_text(t): finite(p) for t, (_, p) in others})
                found["text_offset"].append(self._offsets[index])
                self._offsets[index] += len(text)
        return found


async def embeddings(backend: Backend, request: Request) -> Response:
    """``POST /v1/embeddings``."""
    asked = await read(request, EmbeddingsRequest)
    inputs = prompts_of(asked.input, "input")
    if len(inputs) > 2048:
        raise FieldError("input", f"expected at most 2048 texts, got {len(inputs)}.")
    found = await attend(request, backend.embed(EmbedJob(model=asked.model, inputs=inputs)))
    vectors = cut_vectors(found.vectors, asked.dimensions, "dimensions")
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
            if asked.encoding_format == "base64"
            else row.tolist(),
        }
        for i, row in enumerate(vectors)
    ]
    used = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": used})


def cut_vectors(
    vectors: npt.NDArray[np.float32], dimensions: int | None, path: str
) -> npt.NDArray[np.float32]:
    """The first ``dimensions`` numbers of each vector, of length one.

    Raises:
        FieldError: there are fewer.
    """
    if dimensions is None:
        return vectors
    if vectors.size and dimensions > vectors.shape[1]:
        raise FieldError(path, f"the model's vectors have {vectors.shape[1]}, got {dimensions}.")
    rows = vectors[:, :dimensions]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    cut: npt.NDArray[np.float32] = (rows / np.maximum(lengths, 1e-30)).astype(np.float32)
    return cut
