"""What OpenAI's API takes, field by field; vLLM's additions are among them.

Source: OpenAI's API reference, and vLLM's "Extra Parameters" of its OpenAI-compatible server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from kvant.server.fields import FieldError, Ignored, Refused, Within
from kvant.server.jobs import Constraint

__all__ = [
    "MAX_CHOICES",
    "ChatRequest",
    "Common",
    "CompletionRequest",
    "EmbeddingsRequest",
    "ResponseFormat",
    "StreamOptions",
    "constraint_of",
    "sampling_of",
    "stop_of",
]

#: Answers to one request, of all its prompts together.
MAX_CHOICES = 64
_NOT_OURS = Ignored("it concerns OpenAI's own service")
_TEXT_ONLY = "models here read and write text"
_REGEX_SIGNS = re.compile(r"([\\.+*?()|\[\]{}^$])")

Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """``stream_options``."""

    include_usage: Annotated[bool, "A last chunk with the usage, and no choices."] = False
    continuous_usage_stats: Annotated[bool, "vLLM's: the usage so far in every chunk."] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSchema:
    """``response_format.json_schema``."""

    name: Annotated[str, "Not shown to the model."] = ""
    description: Annotated[str | None, Ignored("the schema says it all")] = None
    schema: Annotated[Json | None, "The JSON schema the answer has to match."] = None
    strict: Annotated[bool | None, Ignored("a schema is always kept to")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """vLLM's ``structured_outputs``."""

    json: Json | str | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: Annotated[str | None, "In Lark's form."] = None
    json_object: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What chat and text completions share."""

    model: Annotated[str, "A model's name.", Within(1, 512)]
    temperature: Annotated[
        float | None,
        "0 always takes the likeliest token. The model's own by default.",
        Within(0, 2),
    ] = None
    top_p: Annotated[float | None, "The model's own by default.", Within(0, 1)] = None
    top_k: Annotated[int | None, "vLLM's; -1 or 0 for all.", Within(-1, 2**31 - 1)] = None
    min_p: Annotated[float | None, "vLLM's.", Within(0, 1)] = None
    repetition_penalty: Annotated[float | None, "vLLM's.", Within(0.01, 100)] = None
    presence_penalty: Annotated[float | None, Within(-2, 2)] = None
    frequency_penalty: Annotated[float | None, Within(-2, 2)] = None
    logit_bias: Annotated[
        Mapping[str, Annotated[float, Within(-100, 100)]] | None,
        "Token id to what is added to its logit, -100 to 100.",
        Within(0, 1 << 14),
    ] = None
    seed: Annotated[
        int | None, "The same request gives the same answer.", Within(-(2**63), 2**63 - 1)
    ] = None
    stop: Annotated[
        str | Sequence[Annotated[str, Within(1, 4096)]] | None,
        "Up to 64 texts that end the answer and are not part of it.",
        Within(1, 4096),
    ] = None
    n: Annotated[
        int, "Answers; they share what was read of the prompt.", Within(1, MAX_CHOICES)
    ] = 1
    stream: Annotated[bool, "Server-sent events."] = False
    stream_options: StreamOptions | None = None
    ignore_eos: Annotated[bool, "vLLM's: writes on when the model would end the text."] = False
    guided_json: Annotated[Json | str | None, "vLLM's: as json_schema."] = None
    guided_regex: Annotated[str | None, "vLLM's."] = None
    guided_choice: Annotated[Sequence[str] | None, "vLLM's: one of these texts."] = None
    guided_grammar: Annotated[str | None, "vLLM's; in Lark's form."] = None
    structured_outputs: Annotated[StructuredOutputs | None, "vLLM's."] = None
    user: Annotated[str | None, _NOT_OURS] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPart:
    """A part of a message; only texts are read."""

    type: str
    text: str | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledFunction:
    """The function of a tool call, in a message."""

    name: str
    arguments: Annotated[str, "JSON."] = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageToolCall:
    """A tool call, in an assistant's message."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | Sequence[ContentPart] | None, "Text, or parts that are text."] = None
    name: str | None = None
    tool_calls: Annotated[Sequence[MessageToolCall] | None, "With role assistant."] = None
    tool_call_id: Annotated[str | None, "With role tool."] = None
    reasoning_content: Annotated[str | None, "With role assistant; for the template."] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: Annotated[Json | None, "A JSON schema; no arguments by default."] = None
    strict: Annotated[bool | None, Ignored("calls that are demanded always match")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """An entry of ``tools``."""

    function: FunctionSpec
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenFunction:
    """The function of ``tool_choice``."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """``tool_choice`` that names a tool."""

    function: ChosenFunction
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Common):
    """``POST /v1/chat/completions``."""

    messages: Annotated[Sequence[ChatMessage], "The conversation.", Within(1, 100_000)]
    max_completion_tokens: Annotated[
        int | None,
        "Most tokens to write; until the model stops or the context is full by default.",
        Within(1, 2**31 - 1),
    ] = None
    max_tokens: Annotated[int | None, "The older name of it.", Within(1, 2**31 - 1)] = None
    logprobs: Annotated[bool, "Logarithms of the tokens' probabilities."] = False
    top_logprobs: Annotated[int | None, "And of the likeliest others.", Within(0, 20)] = None
    tools: Annotated[Sequence[ToolSpec] | None, Within(0, 1024)] = None
    tool_choice: Annotated[
        Literal["auto", "none", "required"] | ToolChoice | None,
        "required and a named one are made to match the tool's schema.",
    ] = None
    parallel_tool_calls: Annotated[bool, "Whether there may be several calls."] = True
    response_format: ResponseFormat | None = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        "For the template; none switches the reasoning off where the model can.",
    ] = None
    chat_template: Annotated[str | None, "vLLM's: Jinja, in place of the model's own."] = None
    chat_template_kwargs: Annotated[Json | None, "vLLM's: values the template reads."] = None
    include_reasoning: Annotated[
        bool, "vLLM's: false leaves reasoning_content out of the answer."
    ] = True
    audio: Annotated[Any, Refused(_TEXT_ONLY)] = None
    modalities: Annotated[Any, Refused(_TEXT_ONLY, (["text"],))] = None
    functions: Annotated[Any, Refused("it was replaced by tools")] = None
    function_call: Annotated[Any, Refused("it was replaced by tool_choice", ("none", "auto"))] = (
        None
    )
    web_search_options: Annotated[Any, Refused("nothing here reads the web")] = None
    prompt_logprobs: Annotated[Any, Refused("use `kvant eval`", (0, False))] = None
    use_beam_search: Annotated[Any, Refused("there is no beam search", (False,))] = None
    prediction: Annotated[Any, Ignored("the server speculates by itself")] = None
    verbosity: Annotated[Any, Ignored("models here have no such switch")] = None
    metadata: Annotated[Any, _NOT_OURS] = None
    store: Annotated[Any, Ignored("nothing is stored")] = None
    service_tier: Annotated[Any, _NOT_OURS] = None
    safety_identifier: Annotated[Any, _NOT_OURS] = None
    prompt_cache_key: Annotated[Any, Ignored("prefixes are found by their content")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(Common):
    """``POST /v1/completions``."""

    prompt: Annotated[
        str | Sequence[str | int | Sequence[int]],
        "A text, token ids, or a list of such.",
        Within(1, 1 << 20),
    ]
    max_tokens: Annotated[int, "Most tokens to write.", Within(0, 2**31 - 1)] = 16
    logprobs: Annotated[int | None, "Of the token and so many of the likeliest.", Within(0, 20)] = (
        None
    )
    echo: Annotated[bool, "The prompt, which has to be text, before the answer."] = False
    suffix: Annotated[str | None, "What comes after, for models that fill in."] = None
    best_of: Annotated[Any, Refused("ask for n answers and choose", (1,))] = None
    prompt_logprobs: Annotated[Any, Refused("use `kvant eval`", (0, False))] = None
    use_beam_search: Annotated[Any, Refused("there is no beam search", (False,))] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """``POST /v1/embeddings``."""

    model: Annotated[str, "A model's name.", Within(1, 512)]
    input: Annotated[
        str | Sequence[str | int | Sequence[int]],
        "A text, token ids, or a list of such.",
        Within(1, 1 << 20),
    ]
    encoding_format: Annotated[
        Literal["float", "base64"], "base64 is of little-endian float32."
    ] = "float"
    dimensions: Annotated[
        int | None, "So many of the first numbers, made length one again.", Within(1, 1 << 20)
    ] = None
    user: Annotated[str | None, _NOT_OURS] = None


_SAMPLING = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


def sampling_of(request: Common, logprobs: int | None) -> dict[str, Any]:
    """Fields of `kvant.Sampling` that the client set.

    Raises:
        FieldError: a token of ``logit_bias`` is no number; ``top_p`` is 0.
    """
    found = {k: v for k in _SAMPLING if (v := getattr(request, k)) is not None}
    if found.get("top_p") == 0:
        found["top_p"] = 1e-9  # OpenAI takes it as the likeliest token alone
    if request.top_k is not None:
        found["top_k"] = max(0, request.top_k)
    if request.logit_bias:
        bias = {}
        for token, value in request.logit_bias.items():
            if not re.fullmatch(r"\d{1,9}", token, re.ASCII):
                raise FieldError("logit_bias", f"expected token ids as keys, got {token[:40]!r}.")
            bias[int(token)] = value
        found["logit_bias"] = bias
    if logprobs is not None:
        found["logprobs"] = logprobs
    return found


def stop_of(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings, however they were written.

    Raises:
        FieldError: more than 64.
    """
    if stop is None:
        return ()
    found = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(found) > 64:
        raise FieldError("stop", f"expected at most 64 texts, got {len(found)}.")
    return found


def constraint_of(request: Common, form: ResponseFormat | None = None) -> Constraint | None:
    """What the answer must match, by whichever field says so.

    Raises:
        FieldError: several say so, or a schema is missing.
    """
    found: dict[str, Constraint] = {}
    if form is not None and form.type == "json_object":
        found["response_format"] = Constraint("json_object", "")
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema is None:
            raise FieldError("response_format.json_schema.schema", "is missing.")
        found["response_format"] = Constraint("json_schema", json.dumps(form.json_schema.schema))
    s = request.structured_outputs or StructuredOutputs()
    _add(found, "guided_json", "json_schema", request.guided_json)
    _add(found, "guided_regex", "regex", request.guided_regex)
    _add(found, "guided_choice", "regex", _choice(request.guided_choice, "guided_choice"))
    _add(found, "guided_grammar", "grammar", request.guided_grammar)
    _add(found, "structured_outputs.json", "json_schema", s.json)
    _add(found, "structured_outputs.regex", "regex", s.regex)
    choice = _choice(s.choice, "structured_outputs.choice")
    _add(found, "structured_outputs.choice", "regex", choice)
    _add(found, "structured_outputs.grammar", "grammar", s.grammar)
    if s.json_object:
        found["structured_outputs.json_object"] = Constraint("json_object", "")
    if len(found) > 1:
        raise FieldError(list(found)[1], f"{' and '.join(found)} constrain the answer; use one.")
    return next(iter(found.values()), None)


def _add(
    found: dict[str, Constraint],
    name: str,
    kind: Literal["json_schema", "regex", "grammar"],
    value: Json | str | None,
) -> None:
    if value is not None:
        text = value if isinstance(value, str) else json.dumps(value)
        found[name] = Constraint(kind, text)


def _choice(texts: Sequence[str] | None, path: str) -> str | None:
    """Texts as a regular expression."""
    if texts is None:
        return None
    if not texts or "" in texts:
        raise FieldError(path, "expected a list of texts, none of them empty.")
    return "|".join(_REGEX_SIGNS.sub(r"\\\1", t) for t in texts)
