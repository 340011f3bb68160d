"""OpenAI's chat completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvant.server.answering import Answers, Step, Whole, begin
from kvant.server.events import CallPart, CallStart, Event, Text, Thought
from kvant.server.exchange import Stream, attend, read
from kvant.server.failures import error_body, http_error_of
from kvant.server.fields import FieldError
from kvant.server.jobs import Backend, Constraint, Delta, Job
from kvant.server.openai_requests import (
    ChatMessage,
    ChatRequest,
    MessageToolCall,
    constraint_of,
    sampling_of,
    stop_of,
)
from kvant.server.openai_shapes import event, token_entry, usage
from kvant.server.tool_use import Tool, ToolUse

__all__ = ["chat", "chat_job"]

#: What the server itself tells templates.
_RESERVED = frozenset({"self", "messages", "tools", "now", "bos_token", "eos_token"})


async def chat(backend: Backend, request: Request) -> Response:
    """``POST /v1/chat/completions``."""
    asked = await read(request, ChatRequest)
    tool_use = _tool_use(asked)
    job = chat_job(asked, tool_use)
    answers = await attend(request, begin(backend, [job], asked.n, tool_use, reasons=True))
    reply = _Reply(asked, answers)
    if asked.stream:
        return Stream(reply.events(), "text/event-stream; charset=utf-8", answers.aclose)
    try:
        return JSONResponse(await attend(request, reply.whole()))
    finally:
        await answers.aclose()


def chat_job(asked: ChatRequest, tool_use: ToolUse) -> Job:
    """What a request asks for.

    Raises:
        FieldError: fields that contradict each other, or are not what they should be.
    """
    if asked.top_logprobs is not None and not asked.logprobs:
        raise FieldError("top_logprobs", "is only allowed with logprobs: true.")
    constraint = _constraint(asked, tool_use)
    template = dict(asked.chat_template_kwargs or {})
    for key in template:
        if key in _RESERVED or not key.isidentifier():
            raise FieldError(f"chat_template_kwargs.{key[:60]}", "is not for requests to set.")
    if asked.reasoning_effort is not None:
        template.setdefault("reasoning_effort", asked.reasoning_effort)
        template.setdefault("enable_thinking", asked.reasoning_effort != "none")
    if constraint is not None:
        # The answer begins with what it must match, so there is no place for reasoning.
        template.setdefault("enable_thinking", False)
    most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    return Job(
        model=asked.model,
        messages=[_message(m, f"messages[{i}]") for i, m in enumerate(asked.messages)],
        tools=tool_use.offered,
        template=template,
        chat_template=asked.chat_template,
        sampling=sampling_of(asked, (asked.top_logprobs or 0) if asked.logprobs else None),
        max_tokens=most,
        stop=stop_of(asked.stop),
        constraint=constraint,
        ignore_end=asked.ignore_eos,
    )


def _constraint(asked: ChatRequest, tool_use: ToolUse) -> Constraint | None:
    wanted, demanded = constraint_of(asked, asked.response_format), tool_use.constraint()
    if wanted is not None and demanded is not None:
        raise FieldError("response_format", "cannot be kept together with a demanded tool call.")
    return wanted or demanded


def _tool_use(asked: ChatRequest) -> ToolUse:
    tools = tuple(
        Tool(t.function.name, t.function.description, t.function.parameters or {"type": "object"})
        for t in asked.tools or ()
    )
    choice = asked.tool_choice or "auto"
    if isinstance(choice, str):
        use = ToolUse(tools, choice, parallel=asked.parallel_tool_calls)
    else:
        use = ToolUse(tools, "named", choice.function.name, asked.parallel_tool_calls)
    return use.check("tools", "tool_choice")


def _message(message: ChatMessage, path: str) -> dict[str, Any]:
    """A turn, as templates read it."""
    role = "system" if message.role == "developer" else message.role
    turn: dict[str, Any] = {"role": role, "content": _content(message, f"{path}.content")}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None:
        turn["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        turn["tool_calls"] = [
            _called(c, f"{path}.tool_calls[{i}]") for i, c in enumerate(message.tool_calls)
        ]
    return turn


def _content(message: ChatMessage, path: str) -> str:
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise FieldError(path, "is missing; it has no default.")
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "refusal") or text is None:
            raise FieldError(
                f"{path}[{i}]", f"expected a text, got {part.type[:40]!r}; models here read text."
            )
        texts.append(text)
    return "".join(texts)


def _called(call: MessageToolCall, path: str) -> dict[str, Any]:
    """Templates read the arguments as an object, the API has them as a text."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise FieldError(f"{path}.function.arguments", "expected the JSON text of an object.")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


class _Reply:
    """Says answers as OpenAI does."""

    def __init__(self, asked: ChatRequest, answers: Answers) -> None:
        self._asked, self._answers = asked, answers
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": None,
        }

    async def whole(self) -> dict[str, Any]:
        """The finished answers."""
        wholes = await self._answers.collect()
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(i, whole) for i, whole in enumerate(wholes)],
            "usage": usage(self._answers),
        }

    def _choice(self, index: int, whole: Whole) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.thought and self._asked.include_reasoning:
            message["reasoning_content"] = whole.thought
        if whole.calls:
            message["content"] = whole.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in whole.calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(whole.deltas) if self._asked.logprobs else None,
            "finish_reason": _reason(whole.finish_reason, bool(whole.calls)),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answers as they are written."""
        try:
            for index in range(self._asked.n):
                yield self._chunk(index, {"role": "assistant", "content": ""})
            pending: list[list[Delta]] = [[] for _ in range(self._asked.n)]
            async for step in self._answers.steps():
                for chunk in self._step(step, pending[step.index]):
                    yield chunk
            options = self._asked.stream_options
            if options is not None and options.include_usage:
                yield event({**self._base(), "choices": [], "usage": usage(self._answers)})
        except Exception as error:
            yield event(error_body("openai", http_error_of(error)))
        yield b"data: [DONE]\n\n"

    def _step(self, step: Step, pending: list[Delta]) -> list[bytes]:
        """Chunks of a step; logprobs of tokens whose text is held back come with the next one."""
        found = [d for e in step.events if (d := self._delta(e)) is not None]
        reason = step.delta.finish_reason
        if self._asked.logprobs and step.delta.tokens:
            pending.append(step.delta)
        if reason is not None and not found and pending:
            found = [{"content": ""}]
        chunks = []
        for delta in found:
            logprobs = _logprobs(pending) if pending else None
            pending.clear()
            chunks.append(self._chunk(step.index, delta, logprobs))
        if reason is not None:
            chunks.append(self._chunk(step.index, {}, None, _reason(reason, step.called)))
        return chunks

    def _delta(self, what: Event) -> dict[str, Any] | None:
        match what:
            case Text(text):
                return {"content": text}
            case Thought(text):
                return {"reasoning_content": text} if self._asked.include_reasoning else None
            case CallStart(index, id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": id, "type": "function", "function": function}
                return {"tool_calls": [call]}
            case CallPart(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return None

    def _base(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._base(), "choices": [choice]}
        options = self._asked.stream_options
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = usage(self._answers)
        elif options is not None and options.include_usage:
            chunk["usage"] = None
        return event(chunk)


def _reason(reason: str, called: bool) -> str:
    return "tool_calls" if called and reason == "stop" else reason


def _logprobs(deltas: Sequence[Delta]) -> dict[str, Any]:
    return {"content": [e for d in deltas for e in token_entry(d)], "refusal": None}
