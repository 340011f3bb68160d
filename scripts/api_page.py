"""Write docs/api.md: what the server takes of each API, field by field.

The tables come from the request classes that also parse the requests; what stands around them is
below. A test fails where the page is not what this writes.

Usage: python scripts/api_page.py [--check]
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kvant.server.fields import Field, Ignored, Refused, Within, fields_of
from kvant.server.ollama import API_LEVEL
from kvant.server.openapi import OPERATIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"

_HEAD = """\
# The APIs, field by field

<!-- Written by scripts/api_page.py from the classes that parse the requests; do not edit. -->

`kvant serve` ([serving.md](serving.md)) speaks three APIs at once, on one port. They are tested
with the `openai`, `ollama` and `anthropic` Python clients. `/openapi.json` has all of this for
machines.

```python
from openai import OpenAI
from ollama import Client
from anthropic import Anthropic

OpenAI(base_url="http://127.0.0.1:11434/v1", api_key="none")
Client(host="http://127.0.0.1:11434")
Anthropic(base_url="http://127.0.0.1:11434", api_key="none")
```

## What holds for all three

- **Fields that nobody knows are ignored**, as these APIs do it themselves. A value of the wrong
  type or out of its bounds is status 400, in the API's own shape, with the field's name.
- **A prompt that does not fit is an error** (400, `context_length_exceeded`) with both lengths.
  Nothing is ever cut off.
- **What is not set is the model's own**: the sampling its publisher recommends, or what its
  Modelfile says.
- **Tools** are offered by the model's chat template, and its calls read as its family writes
  them: Hermes and Qwen (`<tool_call>`, in JSON or XML), Llama 3 (JSON, `<|python_tag|>`), Mistral
  (`[TOOL_CALLS]`), Granite and Phi (`<|tool_call|>`), or plain JSON. A call is streamed while it
  is written. A demanded call (`tool_choice` `required`, `any`, or a named tool) is held to the
  tool's schema, by any model. A model whose template has no place for tools gets status 400
  otherwise.
- **Reasoning** in `<think>` (or `[THINK]`) comes apart from the answer: OpenAI's
  `reasoning_content`, Ollama's `thinking`, Anthropic's `thinking` blocks. An answer that must
  match something has none.
- **Structured output** needs the extra `constrain` (`pip install "kvant[constrain]"`).
- **Images and sound** are refused: models here read and write text.
- **A client that goes away** ends its answer at once.

| status | when |
|---|---|
| 400 | a field is wrong, the prompt does not fit, the model cannot do this |
| 401, 403 | no key, or one that may not |
| 404 | no such model |
| 413 | the request is too large |
| 429 | as much waits as may, or too many requests a minute; `Retry-After` says when to try again |
| 501 | an extra is not installed |
| 502 | a registry failed or was not honest |
| 503 | the model's process ended, or the server is shutting down |
| 504 | the time a request may take was over |

An error in the midst of a stream is an event (OpenAI, Anthropic) or a line (Ollama) of the same
shape.
"""

_ABOUT = {
    "openai": """\
## OpenAI

With `n` above 1 the prompt is read once. `usage.prompt_tokens_details.cached_tokens` counts what
was found in the cache. A chunk of a stream may hold several tokens; with `logprobs`, none is
lost. vLLM's own fields are marked so.
""",
    "ollama": f"""\
## Ollama

Durations are nanoseconds. `context` of `/api/generate` is the conversation itself as numbers, not
token ids: clients only hand it back. A chat template is Jinja. `/api/version` says {API_LEVEL},
the version of Ollama whose API this is, beside kvant's own. `keep_alive: 0` without a prompt
unloads a model. `/api/create` takes names of models that are here, and blobs that were sent; no
path of a request reaches the file system.
""",
    "anthropic": """\
## Anthropic

`usage.input_tokens` is without the tokens that were found in the cache, which are
`cache_read_input_tokens`. A conversation that ends with the assistant's words is refused. Blocks
are `text`, `thinking`, `tool_use` and `tool_result`.
""",
}


def text() -> str:
    """The page."""
    parts = [_HEAD]
    for api, about in _ABOUT.items():
        parts.append(about)
        shown: set[type[Any]] = set()
        for operation in OPERATIONS:
            if _api(operation.request) != api:
                continue
            assert operation.request is not None
            parts.append(f"### `{operation.method} {operation.path}`\n")
            if operation.request in shown:
                parts.append("As above.\n")
                continue
            shown.add(operation.request)
            parts.append(_table(operation.request))
            for inner in _inner(operation.request, shown):
                parts.append(f"{_title(inner)}\n\n{_table(inner)}")
    return "\n".join(parts)


def _api(cls: type[Any] | None) -> str:
    return "" if cls is None else cls.__module__.rpartition(".")[2].partition("_")[0]


def _inner(cls: type[Any], shown: set[type[Any]]) -> Iterator[type[Any]]:
    """Classes that fields of ``cls`` have, once each."""
    for field in fields_of(cls):
        if field.state is not None:
            continue
        for found in _classes(field.type):
            if found not in shown:
                shown.add(found)
                yield found
                yield from _inner(found, shown)


def _classes(hint: Any) -> Iterator[type[Any]]:
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for argument in get_args(hint):
        yield from _classes(argument)


def _title(cls: type[Any]) -> str:
    return " ".join((cls.__doc__ or cls.__name__).split())


def _table(cls: type[Any]) -> str:
    rows = ["| field | type | |", "|---|---|---|"]
    rows += [_row(f) for f in fields_of(cls)]
    return "\n".join(rows) + "\n"


def _row(field: Field) -> str:
    kind = _kind(field.type)
    if isinstance(field.state, Ignored):
        said = f"{field.doc} *Ignored*: {field.state.reason}."
    elif isinstance(field.state, Refused):
        said = f"{field.doc} **Refused**: {field.state.reason}."
    else:
        said = " ".join(filter(None, (field.doc, _bounds(field.within, kind), _default(field))))
    kind = "" if field.state is not None else kind
    return f"| `{field.name}` | {kind} | {said.strip().replace('|', chr(92) + '|')} |"


def _default(field: Field) -> str:
    if field.required:
        return "Required."
    plain = isinstance(field.default, (bool, int, float, str)) and field.default != ""
    return f"Default: {str(field.default).lower()}." if plain else ""


def _bounds(within: Within | None, kind: str) -> str:
    if within is None or within.high is None or within.high > 4096 or within.low is None:
        return ""
    unit = {"text": " characters", "number": "", "integer": ""}.get(kind.split(",")[0], " entries")
    return f"{within.low:g} to {within.high:g}{unit}."


def _kind(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Annotated:
        return _kind(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return ", ".join(dict.fromkeys(_kind(m) for m in get_args(hint) if m is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{v}`" for v in get_args(hint) if v != "")
    if origin in (list, tuple, Sequence):
        return f"list of {_kind(get_args(hint)[0])}"
    if origin in (dict, Mapping) or is_dataclass(hint):
        return "object"
    return {str: "text", int: "integer", float: "number", bool: "boolean"}.get(hint, "any")


def main() -> int:
    """Write the page, or say whether it is up to date."""
    made = text()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text() == made else 1
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
