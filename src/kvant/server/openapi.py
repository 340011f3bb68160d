"""The OpenAPI document of all routes, from the request classes.

Source: OpenAPI Specification 3.1.0, and JSON Schema 2020-12.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from kvant.server import anthropic_requests, ollama_requests, openai_requests
from kvant.server.failures import api_of
from kvant.server.fields import Field, Ignored, Refused, Within, fields_of
from kvant.version import __version__

__all__ = ["OPERATIONS", "Operation", "document", "routes", "schema_of"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What is said of a route: its ``request`` class, and what it answers with."""

    method: str
    path: str
    request: type[Any] | None
    summary: str
    content: Literal["json", "stream", "none", "text"] = "json"


_O, _L, _A = openai_requests, ollama_requests, anthropic_requests

#: Every operation of the APIs; a test compares it with the routes.
OPERATIONS: tuple[Operation, ...] = (
    Operation("POST", "/v1/chat/completions", _O.ChatRequest, "Answer a conversation", "stream"),
    Operation("POST", "/v1/completions", _O.CompletionRequest, "Continue texts", "stream"),
    Operation("POST", "/v1/embeddings", _O.EmbeddingsRequest, "Vectors of texts"),
    Operation("GET", "/v1/models", None, "Models that are here"),
    Operation("GET", "/v1/models/{model}", None, "One model"),
    Operation("POST", "/api/generate", _L.GenerateRequest, "Answer a prompt", "stream"),
    Operation("POST", "/api/chat", _L.ChatRequest, "Answer a conversation", "stream"),
    Operation("POST", "/api/embed", _L.EmbedRequest, "Vectors of texts"),
    Operation("POST", "/api/embeddings", _L.EmbeddingsRequest, "The vector of a text"),
    Operation("GET", "/api/tags", None, "Models that are here"),
    Operation("GET", "/api/ps", None, "Models in memory"),
    Operation("POST", "/api/show", _L.NameRequest, "All that is known of a model"),
    Operation("POST", "/api/pull", _L.TransferRequest, "Fetch a model", "stream"),
    Operation("POST", "/api/push", _L.TransferRequest, "Send a model to a registry", "stream"),
    Operation("POST", "/api/create", _L.CreateRequest, "Make a model of others", "stream"),
    Operation("POST", "/api/copy", _L.CopyRequest, "Give a model another name", "none"),
    Operation("DELETE", "/api/delete", _L.NameRequest, "Forget a model", "none"),
    Operation("HEAD", "/api/blobs/{digest}", None, "Whether a blob is here", "none"),
    Operation("POST", "/api/blobs/{digest}", None, "Send a blob", "none"),
    Operation("GET", "/api/version", None, "The version"),
    Operation("GET", "/", None, "Whether there is a server", "text"),
    Operation("POST", "/v1/messages", _A.MessagesRequest, "Answer a conversation", "stream"),
    Operation("POST", "/v1/messages/count_tokens", _A.CountRequest, "Tokens of a conversation"),
)

_ERRORS: Mapping[str, Any] = {
    "openai": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "ollama": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
    "anthropic": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def routes(served: Sequence[BaseRoute]) -> list[Route]:
    """``/openapi.json``, of the operations among ``served``."""
    known = {
        (method, route.path.replace(":path}", "}"))
        for route in served
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    made = document([o for o in OPERATIONS if (o.method, o.path) in known])

    async def show(request: Request) -> Response:
        return JSONResponse(made)

    return [Route("/openapi.json", show)]


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document."""
    schemas: dict[str, Any] = {f"{api}_error": shape for api, shape in _ERRORS.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = paths.setdefault(operation.path, {})
        described[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvant",
            "version": __version__,
            "description": "The APIs of OpenAI, Ollama and Anthropic over local models.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    api = api_of(operation.path)
    content = {
        "json": {"application/json": {"schema": {"type": "object"}}},
        "stream": {
            "application/json": {"schema": {"type": "object"}},
            "application/x-ndjson" if api == "ollama" else "text/event-stream": {},
        },
        "text": {"text/plain": {}, "text/html": {}},
        "none": None,
    }[operation.content]
    done = "201" if operation.method == "POST" and "digest" in operation.path else "200"
    wrong = {
        "description": "What is wrong, in the API's own shape.",
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{api}_error"}}},
    }
    succeeded: dict[str, Any] = {"description": "Done."}
    if content is not None:
        succeeded["content"] = content
    failed: dict[str, Any] = {"description": "Not there."} if operation.method == "HEAD" else wrong
    found: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [api],
        "responses": {done: succeeded, "4XX": failed, "5XX": failed},
    }
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    if names:
        found["parameters"] = [
            {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names
        ]
    if operation.request is not None:
        reference = schema_of(operation.request, schemas)
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": reference}},
        }
    elif done == "201":
        found["requestBody"] = {"content": {"application/octet-stream": {}}}
    return found


def schema_of(hint: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a type; classes go into ``schemas`` and are referred to."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        within = next((n for n in notes if isinstance(n, Within)), None)
        return _bounded(schema_of(inner, schemas), within)
    origin = get_origin(hint)
    if hint is Any or hint is object:
        return {}
    if origin in (Union, types.UnionType):
        options = [schema_of(m, schemas) for m in get_args(hint)]
        return {"anyOf": options} if len(options) > 1 else options[0]
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": schema_of(get_args(hint)[1], schemas)}
    if origin in (list, Sequence, tuple):
        return {"type": "array", "items": schema_of(get_args(hint)[0], schemas)}
    if is_dataclass(hint):
        return _class(cast(type[Any], hint), schemas)
    names = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": names[hint]}


def _class(cls: type[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    room = cls.__module__.rpartition(".")[2].removesuffix("_requests")
    name = f"{room}_{cls.__name__}"
    reference = {"$ref": f"#/components/schemas/{name}"}
    if name in schemas:
        return reference
    schemas[name] = {}  # a class may name itself
    members = fields_of(cls)
    schemas[name] = {
        "type": "object",
        "description": " ".join((cls.__doc__ or "").split()),
        "properties": {f.name: _field(f, schemas) for f in members},
        "required": [f.name for f in members if f.required],
    }
    return reference


def _field(field: Field, schemas: dict[str, Any]) -> dict[str, Any]:
    found = _bounded(schema_of(field.type, schemas), field.within)
    said = field.doc
    if isinstance(field.state, Ignored):
        said = f"{said} Ignored: {field.state.reason}.".strip()
    if isinstance(field.state, Refused):
        said = f"{said} Refused: {field.state.reason}.".strip()
        neutral = [v for v in field.state.neutral if v is not None]
        found = {"enum": [None, *neutral]}
    if said:
        found = {**found, "description": said}
    plain = isinstance(field.default, (str, int, float, bool)) and field.default != ""
    if plain and field.state is None:
        found = {**found, "default": field.default}
    return found


def _bounded(schema: dict[str, Any], within: Within | None) -> dict[str, Any]:
    """Bounds where they apply: each member of a union has its own meaning for them."""
    if within is None:
        return schema
    if "anyOf" in schema:
        return {"anyOf": [_bounded(s, within) for s in schema["anyOf"]]}
    names = {
        "string": ("minLength", "maxLength"),
        "array": ("minItems", "maxItems"),
        "integer": ("minimum", "maximum"),
        "number": ("minimum", "maximum"),
        "object": ("minProperties", "maxProperties"),
    }.get(str(schema.get("type")))
    if names is None:
        return schema
    low, high = names
    found = dict(schema)
    if within.low is not None and low not in found:
        found[low] = within.low
    if within.high is not None and high not in found:
        found[high] = within.high
    return found
