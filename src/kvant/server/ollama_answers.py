"""Ollama's generate, chat and embeddings."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvant.errors import UnsupportedError
from kvant.server.answering import Answers, Step, Whole, begin
from kvant.server.events import CallEnd, Text, Thought
from kvant.server.exchange import Stream, attend, dump, read
from kvant.server.failures import error_body, http_error_of
from kvant.server.fields import FieldError
from kvant.server.jobs import Backend, EmbedJob, Job
from kvant.server.ollama_requests import (
    ChatMessage,
    ChatRequest,
    Common,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    constraint_of,
    sampling_of,
    seconds_of,
    stop_of,
    template_values,
)
from kvant.server.openai_completions import cut_vectors
from kvant.server.openai_shapes import token_entry
from kvant.server.template_traits import traits_of
from kvant.server.tool_use import Tool, ToolUse

__all__ = ["chat", "embed", "embeddings", "generate", "time_text"]

_CONTEXT_MOST = 8 << 20


async def generate(backend: Backend, request: Request) -> Response:
    """``POST /api/generate``."""
    began = time.perf_counter()
    asked = await read(request, GenerateRequest)
    if not asked.prompt and not asked.suffix:
        return await _load(backend, request, asked, {"response": ""})
    turns = None if asked.raw or asked.suffix else _turns(asked)
    _check(asked)
    job = _job(
        asked,
        messages=turns,
        prompt=asked.prompt if turns is None else None,
        raw=asked.raw,
        suffix=asked.suffix or None,
        chat_template=asked.template,
    )
    reply = _Reply(asked, began, turns)
    return await _answer(backend, request, asked, job, None, reply)


async def chat(backend: Backend, request: Request) -> Response:
    """``POST /api/chat``."""
    began = time.perf_counter()
    asked = await read(request, ChatRequest)
    if not asked.messages:
        empty = {"message": {"role": "assistant", "content": ""}}
        return await _load(backend, request, asked, empty)
    tools = tuple(
        Tool(t.function.name, t.function.description, t.function.parameters or {"type": "object"})
        for t in asked.tools or ()
    )
    use = ToolUse(tools).check("tools", "tools")
    job = _job(asked, messages=[_message(m) for m in asked.messages], tools=use.offered)
    return await _answer(backend, request, asked, job, use, _Reply(asked, began))


def _check(asked: GenerateRequest) -> None:
    if asked.raw and (asked.template or asked.system or asked.context):
        raise FieldError("raw", "the prompt is used as it is; leave out template, system, context.")
    if asked.suffix and (asked.template or asked.context or asked.raw):
        raise FieldError("suffix", "cannot be used together with raw, template or context.")


def _turns(asked: GenerateRequest) -> list[Mapping[str, Any]]:
    """The conversation that a prompt stands for."""
    turns: list[Mapping[str, Any]] = list(_conversation(asked.context or ()))
    if asked.system is not None:
        turns = [t for t in turns if t["role"] != "system"]
        turns.insert(0, {"role": "system", "content": asked.system})
    return [*turns, {"role": "user", "content": asked.prompt}]


def _context(turns: Sequence[Mapping[str, Any]]) -> list[int]:
    """A conversation as numbers: of its JSON text, three bytes each.

    Ollama's are token ids; clients only hand them back, and this way the server keeps nothing.
    """
    raw = json.dumps([[t["role"], t["content"]] for t in turns], ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 3)
    return [int.from_bytes(raw[i : i + 3], "big") for i in range(0, len(raw), 3)]


def _conversation(context: Sequence[int]) -> list[dict[str, str]]:
    """What `_context` made numbers of.

    Raises:
        FieldError: it did not make these.
    """
    if not context:
        return []
    problem = FieldError("context", "is not what an answer of this server gave. Leave it out.")
    if len(context) * 3 > _CONTEXT_MOST or not all(0 <= n < 1 << 24 for n in context):
        raise problem
    try:
        found = json.loads(b"".join(n.to_bytes(3, "big") for n in context))
        turns = [{"role": role, "content": content} for role, content in found]
    except (ValueError, TypeError, RecursionError):
        raise problem from None
    roles = ("system", "user", "assistant")
    if not all(t["role"] in roles and isinstance(t["content"], str) for t in turns):
        raise problem
    return turns


def _message(message: ChatMessage) -> dict[str, Any]:
    """A turn, as templates read it."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        turn["reasoning_content"] = message.thinking
    if message.tool_name is not None:
        turn["name"] = message.tool_name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": dict(call.function.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return turn


def _job(asked: Common, **more: Any) -> Job:
    options = asked.options
    most = options.num_predict
    return Job(
        model=asked.model,
        template=template_values(asked),
        sampling=sampling_of(asked),
        max_tokens=most if most is not None and most > 0 else None,
        stop=stop_of(options),
        constraint=constraint_of(asked.format),
        keep_alive=seconds_of(asked.keep_alive),
        context=options.num_ctx,
        **more,
    )


async def _load(
    backend: Backend, request: Request, asked: Common, empty: Mapping[str, Any]
) -> Response:
    """Without a text, a request loads its model, or with ``keep_alive: 0`` unloads it."""
    keep = seconds_of(asked.keep_alive)
    if keep == 0:
        await attend(request, backend.unload(asked.model))
    else:
        await attend(request, backend.load(asked.model, keep))
    reason = "unload" if keep == 0 else "load"
    head = {"model": asked.model, "created_at": time_text(time.time())}
    return JSONResponse({**head, **empty, "done": True, "done_reason": reason})


async def _answer(
    backend: Backend,
    request: Request,
    asked: Common,
    job: Job,
    use: ToolUse | None,
    reply: _Reply,
) -> Response:
    answers = await attend(request, begin(backend, [job], 1, use, reasons=not job.raw))
    try:
        traits = traits_of(answers.first.chat_template)
        known = answers.first.chat_template is None or traits.tags or traits.switchable
        if asked.think and not known:
            raise UnsupportedError(f"{asked.model} does not support thinking; leave out think.")
        if asked.stream:
            return Stream(reply.lines(answers), "application/x-ndjson", answers.aclose)
        wholes = await attend(request, answers.collect())
        await answers.aclose()
        return JSONResponse(reply.whole(answers, wholes[0]))
    except BaseException:
        await answers.aclose()
        raise


class _Reply:
    """Says an answer as Ollama does. ``turns`` are a generate's conversation."""

    def __init__(
        self, asked: Common, began: float, turns: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        self._asked, self._began, self._turns = asked, began, turns
        self._chats = isinstance(asked, ChatRequest)

    def whole(self, answers: Answers, whole: Whole) -> dict[str, Any]:
        """The finished answer."""
        body = self._body(whole.text, whole.thought, [_call(c) for c in whole.calls])
        if self._asked.logprobs:
            body["logprobs"] = [e for d in whole.deltas for e in token_entry(d)]
        return {**self._head(), **body, **self._end(answers, whole)}

    async def lines(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """The answer as it is written."""
        whole = Whole()
        pending: list[dict[str, Any]] = []
        try:
            async for step in answers.steps():
                whole.add(step)
                if self._asked.logprobs:
                    pending += token_entry(step.delta)
                for body in self._bodies(step):
                    if pending:
                        body["logprobs"], pending = pending, []
                    yield dump({**self._head(), **body, "done": False}) + b"\n"
            last = self._body("", "", [])
            if pending:
                last["logprobs"] = pending
            yield dump({**self._head(), **last, **self._end(answers, whole)}) + b"\n"
        except Exception as error:
            yield dump(error_body("ollama", http_error_of(error))) + b"\n"

    def _bodies(self, step: Step) -> list[dict[str, Any]]:
        found = []
        for event in step.events:
            match event:
                case Text(text):
                    found.append(self._body(text, "", []))
                case Thought(text):
                    found.append(self._body("", text, []))
                case CallEnd():
                    found.append(self._body("", "", [_call(event)]))
        return found

    def _body(self, text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._chats:
            return {"response": text, **({"thinking": thought} if thought else {})}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = calls
        return {"message": message}

    def _head(self) -> dict[str, Any]:
        return {"model": self._asked.model, "created_at": time_text(time.time())}

    def _end(self, answers: Answers, whole: Whole) -> dict[str, Any]:
        answer = answers.first
        timings = answer.timings
        end: dict[str, Any] = {"done": True, "done_reason": whole.finish_reason}
        if self._turns is not None:
            answered = {"role": "assistant", "content": whole.text}
            end["context"] = _context([*self._turns, answered])
        return {
            **end,
            "total_duration": nanoseconds(time.perf_counter() - self._began),
            "load_duration": nanoseconds(timings.load),
            "prompt_eval_count": answer.prompt_tokens,
            "prompt_eval_duration": nanoseconds(timings.prompt),
            "eval_count": answer.completion_tokens,
            "eval_duration": nanoseconds(timings.generation),
        }


def _call(call: CallEnd) -> dict[str, Any]:
    """A call; arguments that are no JSON (the answer was cut off) are shown as they are."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"arguments": call.arguments}
    function = {"index": call.index, "name": call.name, "arguments": arguments}
    return {"id": call.id, "function": function}


async def embed(backend: Backend, request: Request) -> Response:
    """``POST /api/embed``."""
    began = time.perf_counter()
    asked = await read(request, EmbedRequest)
    inputs = [asked.input] if isinstance(asked.input, str) else list(asked.input)
    keep = seconds_of(asked.keep_alive)
    if len(inputs) > 4096:
        raise FieldError("input", f"expected at most 4096 texts, got {len(inputs)}.")
    if not inputs or inputs == [""]:
        await attend(request, backend.load(asked.model, keep))
        return JSONResponse({"model": asked.model, "embeddings": []})
    job = EmbedJob(model=asked.model, inputs=inputs, truncate=asked.truncate, keep_alive=keep)
    found = await attend(request, backend.embed(job))
    return JSONResponse(
        {
            "model": asked.model,
            "embeddings": cut_vectors(found.vectors, asked.dimensions, "dimensions").tolist(),
            "total_duration": nanoseconds(time.perf_counter() - began),
            "load_duration": nanoseconds(found.timings.load),
            "prompt_eval_count": found.tokens,
        }
    )


async def embeddings(backend: Backend, request: Request) -> Response:
    """``POST /api/embeddings``."""
    asked = await read(request, EmbeddingsRequest)
    keep = seconds_of(asked.keep_alive)
    if not asked.prompt:
        await attend(request, backend.load(asked.model, keep))
        return JSONResponse({"embedding": []})
    job = EmbedJob(model=asked.model, inputs=[asked.prompt], keep_alive=keep)
    found = await attend(request, backend.embed(job))
    return JSONResponse({"embedding": found.vectors[0].tolist()})


def nanoseconds(seconds: float) -> int:
    """As Ollama counts time."""
    return int(seconds * 1e9)


def time_text(seconds: float) -> str:
    """A time stamp as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
