"""What Ollama's API takes, field by field.

Source: docs/api.md of ollama/ollama, and ``api/types.go`` there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from kvant.server.fields import FieldError, Ignored, Refused, Within
from kvant.server.jobs import Constraint

__all__ = [
    "ChatRequest",
    "CopyRequest",
    "CreateRequest",
    "EmbedRequest",
    "EmbeddingsRequest",
    "GenerateRequest",
    "NameRequest",
    "Options",
    "TransferRequest",
    "constraint_of",
    "name_of",
    "sampling_of",
    "seconds_of",
    "stop_of",
    "template_values",
]

Json: TypeAlias = Mapping[str, Any]
KeepAlive: TypeAlias = Annotated[
    str | float | None,
    'How long the model stays loaded: "5m", seconds, negative for ever, 0 to unload it.',
]
Think: TypeAlias = Annotated[
    bool | Literal["low", "medium", "high"] | None,
    "Whether to reason first, for models that do; reasoning always comes apart from the answer.",
]
_HARDWARE = Ignored("the server decides it for all requests")
_IMAGES = Refused("models here read and write text")
_NO_CUT = Ignored("nothing is ever cut off")
_NOT_A_SAMPLER = "there is no such sampler; use temperature, top_k, top_p and min_p"
_DURATION = re.compile(r"-?(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+\Z", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_FOR_EVER = 100 * 365 * 86400.0
"""Seconds from which on a duration means for ever: no calendar has a date for all of them."""
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``options``."""

    num_predict: Annotated[
        int | None,
        "Most tokens to write; 0 or less until the model stops or the context is full.",
        Within(-2, 2**31 - 1),
    ] = None
    num_ctx: Annotated[
        int | None, "Tokens the model is loaded for, where it is not loaded yet.", Within(1, 2**31)
    ] = None
    temperature: Annotated[float | None, Within(0, 100)] = None
    top_k: Annotated[int | None, "0 or less for all.", Within(-1, 2**31 - 1)] = None
    top_p: Annotated[float | None, Within(0, 1)] = None
    min_p: Annotated[float | None, Within(0, 1)] = None
    repeat_penalty: Annotated[float | None, Within(0.01, 100)] = None
    presence_penalty: Annotated[float | None, Within(-100, 100)] = None
    frequency_penalty: Annotated[float | None, Within(-100, 100)] = None
    seed: Annotated[int | None, Within(-(2**63), 2**63 - 1)] = None
    stop: Annotated[str | Sequence[Annotated[str, Within(1, 4096)]] | None, Within(1, 4096)] = None
    repeat_last_n: Annotated[
        int | None, Ignored("repeat_penalty sees the whole prompt and answer")
    ] = None
    mirostat: Annotated[Any, Refused(_NOT_A_SAMPLER, (0,))] = None
    tfs_z: Annotated[Any, Refused(_NOT_A_SAMPLER, (1, 0))] = None
    typical_p: Annotated[Any, Refused(_NOT_A_SAMPLER, (1, 0))] = None
    mirostat_tau: Annotated[Any, Ignored("without mirostat it means nothing")] = None
    mirostat_eta: Annotated[Any, Ignored("without mirostat it means nothing")] = None
    penalize_newline: Annotated[Any, Ignored("it means nothing since 2024")] = None
    num_keep: Annotated[Any, _NO_CUT] = None
    num_batch: Annotated[Any, _HARDWARE] = None
    num_thread: Annotated[Any, _HARDWARE] = None
    num_gpu: Annotated[Any, _HARDWARE] = None
    main_gpu: Annotated[Any, _HARDWARE] = None
    numa: Annotated[Any, _HARDWARE] = None
    low_vram: Annotated[Any, _HARDWARE] = None
    f16_kv: Annotated[Any, _HARDWARE] = None
    use_mmap: Annotated[Any, _HARDWARE] = None
    use_mlock: Annotated[Any, _HARDWARE] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What generate and chat share."""

    model: Annotated[str, "A model's name.", Within(1, 512)]
    stream: Annotated[bool, "Lines of JSON as they come."] = True
    options: Options = field(default_factory=Options)
    format: Annotated[
        Literal["", "json"] | Json | None, '"json", or a JSON schema the answer has to match.'
    ] = None
    keep_alive: KeepAlive = None
    think: Think = None
    logprobs: Annotated[bool, "Logarithms of the tokens' probabilities."] = False
    top_logprobs: Annotated[int | None, "And of the likeliest others.", Within(0, 20)] = None
    truncate: Annotated[bool | None, Ignored("what does not fit is an error")] = None
    shift: Annotated[bool | None, Ignored("the context never shifts: the answer ends there")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(Common):
    """``POST /api/generate``."""

    prompt: Annotated[str, "Without one, the model is only loaded."] = ""
    suffix: Annotated[str, "What comes after, for models that fill in."] = ""
    system: Annotated[str | None, "In place of the model's own system message."] = None
    template: Annotated[str | None, "Jinja, in place of the model's own."] = None
    context: Annotated[
        Sequence[int] | None, "What an answer before gave: its conversation goes on."
    ] = None
    raw: Annotated[bool, "The prompt as it is, without a template."] = False
    images: Annotated[Any, _IMAGES] = None
    width: Annotated[Any, _IMAGES] = None
    height: Annotated[Any, _IMAGES] = None
    steps: Annotated[Any, _IMAGES] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledFunction:
    """The function of a tool call, in a message."""

    name: str
    arguments: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageToolCall:
    """A tool call, in an assistant's message."""

    function: CalledFunction
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """A turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: Annotated[str | None, "With role assistant; for the template."] = None
    tool_calls: Annotated[Sequence[MessageToolCall] | None, "With role assistant."] = None
    tool_name: Annotated[str | None, "With role tool."] = None
    tool_call_id: Annotated[str | None, "With role tool."] = None
    images: Annotated[Any, _IMAGES] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: Annotated[Json | None, "A JSON schema."] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """An entry of ``tools``."""

    function: FunctionSpec
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(Common):
    """``POST /api/chat``."""

    messages: Annotated[
        Sequence[ChatMessage], "Without any, the model is only loaded.", Within(0, 100_000)
    ] = ()
    tools: Annotated[Sequence[ToolSpec] | None, Within(0, 1024)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """``POST /api/embed``."""

    model: Annotated[str, "A model's name.", Within(1, 512)]
    input: Annotated[str | Sequence[str], "A text, or several.", Within(0, 1 << 22)] = ()
    truncate: Annotated[
        bool, "Whether to cut off what does not fit. Unlike Ollama's, false by default."
    ] = False
    dimensions: Annotated[
        int | None, "So many of the first numbers, made length one again.", Within(1, 1 << 20)
    ] = None
    options: Annotated[Options | None, Ignored("they mean nothing to vectors")] = None
    keep_alive: KeepAlive = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """``POST /api/embeddings``, the older form."""

    model: Annotated[str, "A model's name.", Within(1, 512)]
    prompt: str = ""
    options: Annotated[Options | None, Ignored("they mean nothing to vectors")] = None
    keep_alive: KeepAlive = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRequest:
    """``POST /api/show``, ``DELETE /api/delete``."""

    model: Annotated[str, "A model's name.", Within(0, 512)] = ""
    name: Annotated[str, "The older name of it.", Within(0, 512)] = ""
    verbose: Annotated[bool, "Lists in ``model_info`` are shown whole."] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRequest:
    """``POST /api/pull``, ``POST /api/push``."""

    model: Annotated[str, "A model's name.", Within(0, 512)] = ""
    name: Annotated[str, "The older name of it.", Within(0, 512)] = ""
    insecure: Annotated[bool, "Refused where true: a registry on this machine needs no TLS."] = (
        False
    )
    stream: Annotated[bool, "Lines of JSON as they come."] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRequest:
    """``POST /api/copy``."""

    source: Annotated[str, "A model's name.", Within(1, 512)]
    destination: Annotated[str, "Another name for it.", Within(1, 512)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """``POST /api/create``."""

    model: Annotated[str, "The new model's name.", Within(0, 512)] = ""
    name: Annotated[str, "The older name of it.", Within(0, 512)] = ""
    from_: Annotated[str | None, "A model that is here.", Within(1, 512)] = None
    files: Annotated[Mapping[str, str] | None, "File name to the digest of a blob."] = None
    adapters: Annotated[Mapping[str, str] | None, "The same, of adapters."] = None
    template: str | None = None
    system: str | None = None
    parameters: Json | None = None
    license: str | Sequence[str] | None = None
    messages: Sequence[ChatMessage] | None = None
    quantize: Annotated[str | None, "A level, such as Q4_K_M."] = None
    stream: Annotated[bool, "Lines of JSON as they come."] = True
    modelfile: Annotated[Any, Refused("write its parts as fields; `kvant create -f` reads it")] = (
        None
    )
    path: Annotated[Any, Refused("no path from a request reaches the file system")] = None


_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
}


def sampling_of(asked: Common) -> dict[str, Any]:
    """Fields of `kvant.Sampling` that the client set.

    Raises:
        FieldError: ``top_logprobs`` without ``logprobs``.
    """
    options = asked.options
    found = {
        ours: v for theirs, ours in _SAMPLING.items() if (v := getattr(options, theirs)) is not None
    }
    if found.get("top_p") == 0:
        found["top_p"] = 1e-9
    if options.top_k is not None:
        found["top_k"] = max(0, options.top_k)
    if asked.logprobs:
        found["logprobs"] = asked.top_logprobs or 0
    elif asked.top_logprobs:
        raise FieldError("top_logprobs", "is only allowed with logprobs: true.")
    return found


def stop_of(options: Options) -> tuple[str, ...]:
    """Stop strings, however they were written.

    Raises:
        FieldError: more than 64.
    """
    stop = options.stop
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > 64:
        raise FieldError("options.stop", f"expected at most 64 texts, got {len(found)}.")
    return found


def constraint_of(form: str | Json | None) -> Constraint | None:
    """What ``format`` asks for."""
    if not form and form != {}:
        return None
    if isinstance(form, str):
        return Constraint("json_object", "")
    return Constraint("json_schema", json.dumps(form))


def template_values(asked: Common) -> dict[str, Any]:
    """What the template is told of ``think``; what has a format leaves no place for it."""
    if asked.think is None:
        return {"enable_thinking": False} if constraint_of(asked.format) else {}
    if isinstance(asked.think, bool):
        return {"enable_thinking": asked.think}
    return {"enable_thinking": True, "reasoning_effort": asked.think}


def seconds_of(keep_alive: str | float | None) -> float | None:
    """A duration as Go writes it, or seconds; negative for ever, None where nothing is said.

    Raises:
        FieldError: it is none.
    """
    if keep_alive is None:
        return None
    seconds = _seconds(keep_alive)
    return seconds if 0 <= seconds < _FOR_EVER else -1.0


def _seconds(keep_alive: str | float) -> float:
    if not isinstance(keep_alive, str):
        return float(keep_alive)
    text = keep_alive.strip()
    if re.fullmatch(r"-?\d{1,15}", text, re.ASCII):
        return float(text)
    if len(text) > 60 or not _DURATION.match(text):
        raise FieldError(
            "keep_alive", f'expected a duration such as "5m", or seconds, got {text[:60]!r}.'
        )
    if text.startswith("-"):
        return -1.0
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def name_of(asked: NameRequest | TransferRequest | CreateRequest) -> str:
    """The model's name, under either key.

    Raises:
        FieldError: under none.
    """
    found = asked.model or asked.name
    if not found:
        raise FieldError("model", "is missing; it has no default.")
    return found
