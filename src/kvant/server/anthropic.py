"""Anthropic's Messages API."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvant.engine.stopping import StopStrings
from kvant.server.answering import Answers, begin
from kvant.server.anthropic_requests import (
    Block,
    CountRequest,
    MessagesRequest,
    Turn,
    constraint_of,
    tool_use_of,
)
from kvant.server.catalogue import Catalogue
from kvant.server.events import CallEnd, CallPart, CallStart, Event, Text, Thought
from kvant.server.exchange import Stream, attend, dump, read, route
from kvant.server.failures import error_body, http_error_of
from kvant.server.fields import FieldError
from kvant.server.jobs import Backend, Job
from kvant.server.tool_use import ToolUse

__all__ = ["routes"]


def routes(backend: Backend, store: Catalogue) -> list[Route]:
    """``/v1/messages``, ``/v1/messages/count_tokens``. ``store`` is not needed here."""
    del store
    return [
        route("/v1/messages", partial(messages, backend), "anthropic"),
        route("/v1/messages/count_tokens", partial(count_tokens, backend), "anthropic"),
    ]


async def messages(backend: Backend, request: Request) -> Response:
    """``POST /v1/messages``."""
    asked = await read(request, MessagesRequest)
    tool_use = tool_use_of(asked)
    job = _job(asked, tool_use)
    answers = await attend(request, begin(backend, [job], 1, tool_use, reasons=True))
    reply = _Reply(asked, answers)
    if asked.stream:
        return Stream(reply.events(), "text/event-stream; charset=utf-8", answers.aclose)
    try:
        return JSONResponse(await attend(request, reply.whole()))
    finally:
        await answers.aclose()


async def count_tokens(backend: Backend, request: Request) -> Response:
    """``POST /v1/messages/count_tokens``: an answer is begun, for its length, and ended."""
    asked = await read(request, CountRequest)
    tool_use = tool_use_of(asked)
    job = _job(asked, tool_use)
    answers = await attend(request, begin(backend, [job], 1, tool_use, reasons=True))
    await answers.aclose()
    return JSONResponse({"input_tokens": answers.prompt_tokens})


def _job(asked: CountRequest, tool_use: ToolUse) -> Job:
    """What a request asks for. Stop sequences are not in it: see `_Reply`."""
    constraint = constraint_of(asked, tool_use)
    thinks = asked.thinking is not None and asked.thinking.type != "disabled"
    template: dict[str, Any] = {"enable_thinking": thinks and constraint is None}
    if asked.output_config is not None and asked.output_config.effort is not None:
        template["reasoning_effort"] = asked.output_config.effort
    sampling: dict[str, Any] = {}
    most: int | None = 1
    if isinstance(asked, MessagesRequest):
        most = asked.max_tokens
        names = ("temperature", "top_p", "top_k")
        sampling = {k: v for k in names if (v := getattr(asked, k)) is not None}
        if sampling.get("top_p") == 0:
            sampling["top_p"] = 1e-9
    return Job(
        model=asked.model,
        messages=_turns(asked),
        tools=tool_use.offered,
        template=template,
        sampling=sampling,
        max_tokens=most,
        constraint=constraint,
    )


def _turns(asked: CountRequest) -> list[dict[str, Any]]:
    """The conversation as templates read it.

    Raises:
        FieldError: blocks that are not text; a conversation that ends with the assistant.
    """
    turns: list[dict[str, Any]] = []
    if asked.system is not None:
        system = asked.system
        text = system if isinstance(system, str) else _text(system, "system")
        turns.append({"role": "system", "content": text})
    called: dict[str, str] = {}
    for i, turn in enumerate(asked.messages):
        turns += _turn(turn, f"messages[{i}]", called)
    if asked.messages[-1].role == "assistant":
        raise FieldError(
            f"messages[{len(asked.messages) - 1}].role",
            "the conversation ends with the assistant's words, which is not supported; expected "
            "the last message to be the user's.",
        )
    return turns


def _turn(turn: Turn, path: str, called: dict[str, str]) -> list[dict[str, Any]]:
    """One message as turns: results of tools are turns of their own.

    ``called`` is ids of calls to the tools' names.
    """
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    made: dict[str, Any] = {"role": turn.role, "content": ""}
    for i, block in enumerate(turn.content):
        place = f"{path}.content[{i}]"
        match block.type:
            case "text":
                texts.append(_needed(block.text, f"{place}.text"))
            case "thinking":
                made["reasoning_content"] = _needed(block.thinking, f"{place}.thinking")
            case "redacted_thinking":
                continue
            case "tool_use":
                name = _needed(block.name, f"{place}.name")
                identity = _needed(block.id, f"{place}.id")
                called[identity] = name
                function = {"name": name, "arguments": dict(block.input or {})}
                call = {"id": identity, "type": "function", "function": function}
                made.setdefault("tool_calls", []).append(call)
            case "tool_result":
                identity = _needed(block.tool_use_id, f"{place}.tool_use_id")
                result = {"role": "tool", "content": _result(block, place)}
                result["tool_call_id"] = identity
                if identity in called:
                    result["name"] = called[identity]
                results.append(result)
            case _:
                raise _unreadable(block.type, place)
    made["content"] = "".join(texts)
    if results and not texts:
        return results
    return [*results, made]


def _result(block: Block, path: str) -> str:
    content = block.content or ""
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _unreadable(str(part.get("type")), f"{path}.content[{i}]")
        texts.append(part["text"])
    return "".join(texts)


def _text(blocks: Sequence[Block], path: str) -> str:
    texts = []
    for i, block in enumerate(blocks):
        if block.type != "text":
            raise _unreadable(block.type, f"{path}[{i}]")
        texts.append(_needed(block.text, f"{path}[{i}].text"))
    return "\n".join(texts)


def _needed(value: str | None, path: str) -> str:
    if value is None:
        raise FieldError(path, "is missing; it has no default.")
    return value


def _unreadable(kind: str, path: str) -> FieldError:
    return FieldError(path, f"expected a text, got {kind[:40]!r}; models here read and write text.")


class _Reply:
    """Says an answer as Anthropic does.

    The API tells which stop sequence ended an answer, and an engine only that one did: so they
    are looked for here, and the answer is ended when one is found.
    """

    def __init__(self, asked: MessagesRequest, answers: Answers) -> None:
        self._asked, self._answers = asked, answers
        self._id = f"msg_{secrets.token_hex(12)}"
        self._stop = StopStrings(tuple(asked.stop_sequences or ()))
        thinking = asked.thinking
        self._thinks = (
            thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"
        )
        self._reason = "end_turn"

    async def whole(self) -> dict[str, Any]:
        """The finished answer."""
        blocks: list[dict[str, Any]] = []
        async for found in self._found():
            last = blocks[-1] if blocks else {"type": ""}
            match found:
                case Text(text) if last["type"] == "text":
                    last["text"] += text
                case Text(text):
                    blocks.append({"type": "text", "text": text})
                case Thought(text) if last["type"] == "thinking":
                    last["thinking"] += text
                case Thought(text):
                    blocks.append({"type": "thinking", "thinking": text, "signature": ""})
                case CallEnd(_, identity, name, arguments):
                    block = {"type": "tool_use", "id": identity, "name": name}
                    blocks.append({**block, "input": _object(arguments)})
        return self._message(blocks, self._reason, self._usage())

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as it is written."""
        started = {**self._usage(), "output_tokens": 0}
        yield _event({"type": "message_start", "message": self._message([], None, started)})
        yield _event({"type": "ping"})
        blocks = _Blocks()
        try:
            async for found in self._found():
                for data in blocks.add(found):
                    yield _event(data)
            for data in blocks.end():
                yield _event(data)
            delta = {"stop_reason": self._reason, "stop_sequence": self._stop.matched}
            yield _event({"type": "message_delta", "delta": delta, "usage": self._usage()})
            yield _event({"type": "message_stop"})
        except Exception as error:
            yield _event(error_body("anthropic", http_error_of(error)))

    async def _found(self) -> AsyncGenerator[Event, None]:
        """The events, up to a stop sequence."""
        called = False
        reason = "stop"
        async for step in self._answers.steps():
            for found in step.events:
                if isinstance(found, Text):
                    text = self._stop.add(found.text)
                    if text:
                        yield Text(text)
                    if self._stop.matched:
                        self._reason = "stop_sequence"
                        return
                elif self._thinks or not isinstance(found, Thought):
                    rest = "" if isinstance(found, Thought) else self._stop.finish()
                    if rest:
                        yield Text(rest)
                    yield found
            called = called or step.called
            reason = step.delta.finish_reason or reason
        rest = self._stop.finish()
        if rest:
            yield Text(rest)
        if reason == "length":
            self._reason = "max_tokens"
        elif called:
            self._reason = "tool_use"

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._asked.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": self._stop.matched,
            "usage": usage,
        }

    def _usage(self) -> dict[str, int]:
        """Anthropic counts tokens that were in the cache apart."""
        cached = self._answers.cached_tokens
        return {
            "input_tokens": self._answers.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._answers.completion_tokens,
        }


class _Blocks:
    """Events of a stream's blocks: each is opened, filled and closed before the next."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""

    def add(self, found: Event) -> list[dict[str, Any]]:
        """What is sent for an event."""
        match found:
            case Text(text):
                begun = self._begin("text", {"type": "text", "text": ""})
                return [*begun, self._delta({"type": "text_delta", "text": text})]
            case Thought(text):
                block = {"type": "thinking", "thinking": "", "signature": ""}
                begun = self._begin("thinking", block)
                return [*begun, self._delta({"type": "thinking_delta", "thinking": text})]
            case CallStart(_, identity, name):
                used: dict[str, Any] = {"type": "tool_use", "id": identity, "name": name}
                return self._begin(identity, {**used, "input": {}})
            case CallPart(_, text):
                return [self._delta({"type": "input_json_delta", "partial_json": text})]
            case CallEnd():
                return self.end()

    def end(self) -> list[dict[str, Any]]:
        """Close the open block."""
        if not self._open:
            return []
        events = [{"type": "content_block_stop", "index": self._index}]
        if self._open == "thinking":
            events.insert(0, self._delta({"type": "signature_delta", "signature": ""}))
        self._open = ""
        return events

    def _begin(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        if self._open == kind:
            return []
        events = self.end()
        self._index += 1
        self._open = kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*events, start]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def _object(arguments: str) -> dict[str, Any]:
    """Arguments; where the answer was cut off in them, as they are."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}


def _event(data: dict[str, Any]) -> bytes:
    name: str = data["type"]
    return b"event: " + name.encode() + b"\ndata: " + dump(data) + b"\n\n"
