"""Malformed requests: every one gets the API's own error, and a status that is not 5xx."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx
import pytest

from kvant.server.fields import FieldError, Ignored, Refused, Within, parse
from kvant.server.ollama_requests import GenerateRequest
from kvant.server.openai_requests import CompletionRequest
from kvant.server.openapi import OPERATIONS

POSTS = [o.path for o in OPERATIONS if o.request is not None and o.method == "POST"]
ASK = [{"role": "user", "content": "x"}]
CHAT = {"model": "any", "messages": ASK}


def check_shape(path: str, found: httpx.Response) -> str:
    """The message of an error that has its API's shape."""
    body = found.json()
    if path.startswith("/api/"):
        assert set(body) == {"error"}
        return str(body["error"])
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
    return str(body["error"]["message"])


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no body"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"model": NaN}', "NaN"),
        (b"[]", "expected an object"),
        (b"[" * 100_000, "nests too deep"),
        (b'{"model": ' + b"[" * 150 + b"]" * 150 + b"}", "deeper than 100"),
        (b'{"model": "\\ud800", "messages": [], "x": 1}', "surrogate"),
        (b'{"model": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"model": 5, "source": 5}', "expected a text, got 5"),
    ],
)
def test_bodies_that_are_none(scripted, path, body, words):
    found = scripted.http.post(path, content=body)
    assert found.status_code == 400
    assert words in check_shape(path, found)


def test_a_body_that_is_too_large(scripted):
    place = urlsplit(scripted.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    piece = b" " * (1 << 20)
    for _ in range(40):
        try:
            connection.send(piece)
        except OSError:
            break  # it does not listen any more
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e999}, None),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1000}}, "logit_bias.5"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"now": 1}}, "chat_template_kwargs.now"),
        ({"guided_choice": []}, "guided_choice"),
    ],
)
def test_fields_that_are_wrong(scripted, change, param):
    body = json.dumps({**CHAT, **change})
    found = scripted.http.post("/v1/chat/completions", content=body)
    assert found.status_code == 400
    check_shape("/v1/chat/completions", found)
    if param is not None:
        assert found.json()["error"]["param"] == param


def test_what_asks_for_nothing_is_taken(scripted):
    nothing = {
        "temperature": None,
        "audio": None,
        "functions": [],
        "modalities": ["text"],
        "unknown_to_us": {"a": [1]},
        "user": "me",
        "max_tokens": 5.0,
        "stop": None,
        "tools": [],
    }
    found = scripted.http.post("/v1/chat/completions", json={**CHAT, **nothing})
    assert found.status_code == 200
    job = scripted.backend.jobs[-1]
    assert (job.max_tokens, job.sampling, job.stop) == (5, {}, ())


def test_other_fields_that_are_wrong(scripted):
    for path, body, words in [
        ("/v1/completions", {"model": "a", "prompt": []}, "prompt"),
        ("/v1/completions", {"model": "a", "prompt": ["x", 5]}, "mixture"),
        ("/v1/completions", {"model": "a", "prompt": [-1]}, "from 0"),
        ("/v1/completions", {"model": "a", "prompt": [[]]}, "empty"),
        ("/v1/completions", {"model": "a", "prompt": ["x"] * 40, "n": 2}, "at most 64"),
        ("/v1/completions", {"model": "a", "prompt": "x", "best_of": 3}, "best_of"),
        ("/v1/embeddings", {"model": "a", "input": ""}, "input"),
        ("/v1/embeddings", {"model": "a", "input": ["x"] * 3000}, "2048"),
        ("/api/generate", {"model": "a", "prompt": "x", "keep_alive": "1 week"}, "keep_alive"),
        ("/api/generate", {"model": "a", "prompt": "x", "context": [2**40]}, "context"),
        ("/api/chat", {"model": "a", "messages": ASK, "options": {"seed": "x"}}, "options.seed"),
        ("/api/chat", {"model": "a", "messages": ASK, "format": "xml"}, "format"),
        ("/api/pull", {}, "model"),
        ("/api/create", {"model": "x"}, "made of something"),
        ("/api/create", {"model": "x", "from": "demo", "path": "/etc"}, "file system"),
        ("/v1/messages", {"model": "a", "messages": ASK}, "max_tokens"),
        ("/v1/messages", {"model": "a", "max_tokens": 5, "messages": ASK, "top_k": -1}, "top_k"),
    ]:
        found = scripted.http.post(path, json=body)
        assert found.status_code == 400, (path, body)
        assert words in check_shape(path, found)
    found = scripted.http.post("/api/blobs/sha256:zz", content=b"x")
    assert found.status_code == 400


@dataclass(frozen=True, kw_only=True)
class Inner:
    type: Literal["inner"] = "inner"
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Other:
    type: Literal["other"]


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: Annotated[str, "A name.", Within(1, 5)]
    from_: float = 1.0
    either: str | list[int] | Inner | Other | None = None
    inners: Annotated[list[Inner], Within(0, 2)] = field(default_factory=list)
    gone: Annotated[Any, Refused("it is gone", ("no",))] = None
    idle: Annotated[int, Ignored("it does nothing")] = 7


def test_parsing_takes_no_longer_than_reading():
    """A million numbers are taken at once, and the messages of a large body in a thread."""
    started = time.process_time()
    ids = [12] * (1 << 20)
    assert parse(CompletionRequest, {"model": "a", "prompt": ids}).prompt == tuple(ids)
    lists = [[1] * 100] * 20_000
    assert len(parse(CompletionRequest, {"model": "a", "prompt": lists}).prompt) == 20_000
    assert parse(GenerateRequest, {"model": "a", "context": ids * 3}).context[-1] == 12
    assert time.process_time() - started < 4  # it was over a minute
    for wrong in ([1, 2.5], [1, True], [1, "x"]):
        with pytest.raises(FieldError):
            parse(GenerateRequest, {"model": "a", "context": wrong})
    many = {str(i): 1 for i in range(20_000)}
    with pytest.raises(FieldError, match="16384 entries"):
        parse(CompletionRequest, {"model": "a", "prompt": "x", "logit_bias": many})


def test_parsing():
    found = parse(Outer, {"name": "a", "from": 3, "inners": [{"number": 2.0}], "more": 1})
    assert found == Outer(name="a", from_=3, inners=(Inner(number=2),))
    assert type(found.from_) is float
    assert parse(Outer, {"name": "a", "either": {"type": "other"}}).either == Other(type="other")
    assert parse(Outer, {"name": "a", "either": {}}).either == Inner()
    assert parse(Outer, {"name": "a", "either": [1, 2]}).either == (1, 2)
    assert parse(Outer, {"name": "a", "gone": "no", "idle": "whatever"}).idle == 7


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (5, "expected an object, got 5."),
        ({}, "name: is missing; it has no default."),
        ({"name": "abcdef"}, "name: expected 1 to 5 characters, got 6 characters."),
        ({"name": "a", "from": "x"}, 'from: expected a number, got "x".'),
        ({"name": "a", "either": [1, "x"]}, 'either[1]: expected a whole number, got "x".'),
        ({"name": "a", "either": 5}, "either: expected a text or a list of whole numbers or an"),
        ({"name": "a", "inners": [{}, {}, {}]}, "inners: expected 0 to 2 items, got 3 items."),
        ({"name": "a", "inners": [{"number": True}]}, "inners[0].number: expected a whole number"),
        ({"name": "a", "gone": 1}, "gone: is not supported: it is gone"),
        ({"name": "a", "from": 10**400}, "from: expected a smaller number."),
    ],
)
def test_parsing_says_what_is_wrong(data, words):
    with pytest.raises(FieldError) as error:
        parse(Outer, data)
    assert str(error.value).startswith(words)
