"""What Anthropic's Messages API takes, field by field.

Source: Anthropic's API reference, "Messages" and "Count tokens".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from kvant.server.fields import FieldError, Ignored, Refused, Within
from kvant.server.jobs import Constraint
from kvant.server.tool_use import Tool, ToolUse

__all__ = ["Block", "CountRequest", "MessagesRequest", "Turn", "constraint_of", "tool_use_of"]

Json: TypeAlias = Mapping[str, Any]
_NOT_OURS = Ignored("it concerns Anthropic's own service")
_CACHE = Ignored("prefixes are found by their content")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of a message. Which fields it has is a matter of its ``type``."""

    type: Annotated[
        str, "text, thinking, redacted_thinking, tool_use or tool_result; others are refused."
    ]
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Json | None = None
    tool_use_id: str | None = None
    content: Annotated[str | Sequence[Json] | None, "Of a tool_result: text, or text blocks."] = (
        None
    )
    is_error: Annotated[bool | None, Ignored("the text of the result says it")] = None
    cache_control: Annotated[Any, _CACHE] = None
    citations: Annotated[Any, Ignored("models here cite nothing")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Sequence[Block]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """An entry of ``tools``."""

    name: str
    input_schema: Annotated[Json | None, "A JSON schema of its arguments."] = None
    description: str | None = None
    type: Annotated[str | None, "Only custom; tools that run at Anthropic are refused."] = None
    cache_control: Annotated[Any, _CACHE] = None
    strict: Annotated[bool | None, Ignored("calls that are demanded always match")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """``tool_choice``: ``any`` and ``tool`` are made to match the tool's schema."""

    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str, "With type tool."] = ""
    disable_parallel_tool_use: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """``thinking``."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int | None, Ignored("max_tokens bounds it all")] = None
    display: Annotated[Literal["summarized", "omitted"] | None, "omitted leaves it out."] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """``output_config.format``."""

    type: Literal["json_schema"]
    schema: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """``output_config``."""

    format: Annotated[OutputFormat | None, "A schema the answer has to match."] = None
    effort: Annotated[
        Literal["low", "medium", "high", "xhigh", "max"] | None, "For the template."
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRequest:
    """``POST /v1/messages/count_tokens``."""

    model: Annotated[str, "A model's name.", Within(1, 512)]
    messages: Annotated[
        Sequence[Turn], "The conversation; the last one is not the assistant's.", Within(1, 100_000)
    ]
    system: Annotated[str | Sequence[Block] | None, "The system message."] = None
    tools: Annotated[Sequence[ToolSpec] | None, Within(0, 1024)] = None
    tool_choice: ToolChoice | None = None
    thinking: Annotated[Thinking | None, "Reasoning before the answer; none by default."] = None
    output_config: OutputConfig | None = None
    cache_control: Annotated[Any, _CACHE] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesRequest(CountRequest):
    """``POST /v1/messages``."""

    max_tokens: Annotated[int, "Most tokens to write.", Within(1, 2**31 - 1)]
    stream: Annotated[bool, "Server-sent events."] = False
    stop_sequences: Annotated[
        Sequence[Annotated[str, Within(1, 4096)]] | None,
        "Texts that end the answer.",
        Within(0, 64),
    ] = None
    temperature: Annotated[float | None, Within(0, 1)] = None
    top_p: Annotated[float | None, Within(0, 1)] = None
    top_k: Annotated[int | None, Within(0, 2**31 - 1)] = None
    metadata: Annotated[Any, _NOT_OURS] = None
    service_tier: Annotated[Any, _NOT_OURS] = None
    inference_geo: Annotated[Any, _NOT_OURS] = None
    speed: Annotated[Any, _NOT_OURS] = None
    container: Annotated[Any, Refused("nothing here runs code")] = None
    mcp_servers: Annotated[Any, Refused("nothing here calls other servers")] = None


def tool_use_of(asked: CountRequest) -> ToolUse:
    """The tools of a request.

    Raises:
        FieldError: tools that are not the client's own, a choice without its tool.
    """
    tools = []
    for i, spec in enumerate(asked.tools or ()):
        if spec.type not in (None, "custom"):
            raise FieldError(f"tools[{i}].type", f"expected custom, got {spec.type[:60]!r}.")
        schema = spec.input_schema or {"type": "object"}
        tools.append(Tool(spec.name, spec.description, schema))
    choice = asked.tool_choice or ToolChoice(type="auto")
    modes: dict[str, Literal["auto", "none", "required", "named"]] = {
        "auto": "auto",
        "none": "none",
        "any": "required",
        "tool": "named",
    }
    use = ToolUse(
        tuple(tools),
        modes[choice.type],
        choice.name,
        parallel=not choice.disable_parallel_tool_use,
        id_prefix="toolu_",
    )
    return use.check("tools", "tool_choice")


def constraint_of(asked: CountRequest, tool_use: ToolUse) -> Constraint | None:
    """What the answer must match.

    Raises:
        FieldError: a format and a demanded call.
    """
    form = asked.output_config.format if asked.output_config is not None else None
    demanded = tool_use.constraint()
    if form is None:
        return demanded
    if demanded is not None:
        raise FieldError("output_config.format", "cannot be kept together with a demanded call.")
    return Constraint("json_schema", json.dumps(form.schema))
