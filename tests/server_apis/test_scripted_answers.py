"""What clients see of tools, reasoning and errors: a model that writes given texts."""

from __future__ import annotations

import json

import pytest

from kvant.errors import ContextError, MissingExtraError, UnsupportedError
from kvant.server.jobs import BusyError, DeadlineError, EngineLostError

anthropic = pytest.importorskip("anthropic")
ollama = pytest.importorskip("ollama")
openai = pytest.importorskip("openai")

ASK = [{"role": "user", "content": "How is the weather?"}]
HERMES = "{% if tools %}<tool_call>{% endif %}{% if enable_thinking %}<think>{% endif %}"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = ["<tool", '_call>{"name": "get_weather", "argu', 'ments": {"city": "O', 'slo"}}</tool_call>']


@pytest.fixture
def client(scripted):
    return openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0)


def said(client, **asked):
    """The message, after checking that a stream says the same."""
    whole = client.chat.completions.create(model="any", messages=ASK, **asked).choices[0]
    message = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for chunk in client.chat.completions.create(model="any", messages=ASK, stream=True, **asked):
        delta = chunk.choices[0].delta
        message["content"] += delta.content or ""
        message["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
        for call in delta.tool_calls or ():
            if call.id:
                assert call.index == len(message["tool_calls"])
                message["tool_calls"].append([call.function.name, ""])
            message["tool_calls"][call.index][1] += call.function.arguments
        reason = chunk.choices[0].finish_reason or reason
    assert reason == whole.finish_reason
    calls = [[c.function.name, c.function.arguments] for c in whole.message.tool_calls or ()]
    assert message["content"] == (whole.message.content or "")
    assert message["reasoning_content"] == getattr(whole.message, "reasoning_content", "")
    assert message["tool_calls"] == calls
    return whole


def test_a_tool_call(client, scripted):
    scripted.backend.script.pieces, scripted.backend.script.template = CALL, HERMES
    found = said(client, tools=TOOLS)
    assert found.finish_reason == "tool_calls"
    assert found.message.content is None
    [call] = found.message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    assert list(scripted.backend.jobs[0].tools) == TOOLS
    # The conversation goes on with its result; templates read arguments as an object.
    history = [
        *ASK,
        found.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Rain."},
    ]
    client.chat.completions.create(model="any", messages=history, tools=TOOLS)
    turns = scripted.backend.jobs[-1].messages
    assert turns[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert turns[2] == {"role": "tool", "tool_call_id": call.id, "content": "Rain."}


def test_tool_choice(client, scripted):
    scripted.backend.script.pieces, scripted.backend.script.template = CALL, HERMES
    none = said(client, tools=TOOLS, tool_choice="none")
    assert none.message.content == "".join(CALL)
    assert scripted.backend.jobs[-1].tools == ()
    scripted.backend.script.pieces = ['[{"name": "get_weather", "arg', 'uments": {"city": "A"}}, ']
    scripted.backend.script.pieces += ['{"name": "get_weather", "arguments": {"city": "B"}}]']
    required = said(client, tools=TOOLS, tool_choice="required")
    assert [c.function.arguments for c in required.message.tool_calls] == [
        '{"city": "A"}',
        '{"city": "B"}',
    ]
    schema = json.loads(scripted.backend.jobs[-1].constraint.text)
    assert schema["items"]["anyOf"][0]["properties"]["arguments"] == PARAMETERS
    assert scripted.backend.jobs[-1].template == {"enable_thinking": False}
    one = said(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert len(one.message.tool_calls) == 1
    scripted.backend.script.pieces = ['{"city": ', '"C"}']
    named = said(
        client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}}
    )
    assert named.message.tool_calls[0].function.arguments == '{"city": "C"}'


def test_reasoning(client, scripted):
    scripted.backend.script.pieces = ["<think>\nHm", "m.\n</th", "ink>\n\nYes", "."]
    found = said(client)
    assert found.message.reasoning_content == "Hmm."
    assert found.message.content == "Yes."
    hidden = client.chat.completions.create(
        model="any", messages=ASK, extra_body={"include_reasoning": False}
    )
    assert hidden.choices[0].message.content == "Yes."
    assert not hasattr(hidden.choices[0].message, "reasoning_content")
    client.chat.completions.create(model="any", messages=ASK, reasoning_effort="none")
    assert scripted.backend.jobs[-1].template["enable_thinking"] is False


def test_reasoning_then_a_call(client, scripted):
    scripted.backend.script.template = HERMES
    scripted.backend.script.pieces = ["<think>I look.</think>", *CALL]
    found = said(client, tools=TOOLS)
    assert found.message.reasoning_content == "I look."
    assert found.message.tool_calls[0].function.name == "get_weather"


def test_logprobs_are_complete_though_text_is_held_back(client, scripted):
    scripted.backend.script.pieces = ["a", "<think", "b"]  # held: it may become a tag
    chunks = list(
        client.chat.completions.create(model="any", messages=ASK, logprobs=True, stream=True)
    )
    entries = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [e.token for e in entries] == ["a", "<think", "b"]


def test_usage_has_cached_tokens(client):
    found = client.chat.completions.create(model="any", messages=ASK, n=2)
    assert found.usage.prompt_tokens == 20
    assert found.usage.prompt_tokens_details.cached_tokens == 16
    assert found.usage.completion_tokens == 4
    *_, last = client.chat.completions.create(
        model="any", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage.prompt_tokens_details.cached_tokens == 16


def test_structured_output_is_a_constraint(client, scripted):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    client.chat.completions.create(model="any", messages=ASK, response_format=form)
    assert json.loads(scripted.backend.jobs[-1].constraint.text) == schema
    for extra, kind, text in [
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a.b", "c"]}, "regex", r"a\.b|c"),
        ({"guided_grammar": "start: /a/"}, "grammar", "start: /a/"),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", '{"type": "null"}'),
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
    ]:
        client.chat.completions.create(model="any", messages=ASK, extra_body=extra)
        constraint = scripted.backend.jobs[-1].constraint
        assert (constraint.kind, constraint.text) == (kind, text)
    with pytest.raises(openai.BadRequestError, match="use one"):
        client.chat.completions.create(
            model="any", messages=ASK, response_format=form, extra_body={"guided_regex": "a"}
        )


def test_ollama_tools_and_thinking(scripted):
    client = ollama.Client(host=scripted.url)
    scripted.backend.script.template = HERMES
    scripted.backend.script.pieces = ["<think>Hm.</think>", *CALL]
    found = client.chat("any", ASK, tools=TOOLS, think=True)
    assert found.message.thinking == "Hm."
    [call] = found.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Oslo"})
    assert scripted.backend.jobs[-1].template == {"enable_thinking": True}
    parts = list(client.chat("any", ASK, tools=TOOLS, think=True, stream=True))
    assert [c for p in parts for c in p.message.tool_calls or ()] == [call]
    assert "".join(p.message.thinking or "" for p in parts) == "Hm."
    assert found.load_duration == 1_000_000
    assert found.prompt_eval_duration == 3_000_000
    assert found.eval_duration == 4_000_000
    generated = client.generate("any", "x", think=True)
    assert generated.thinking == "Hm."


def test_models_that_cannot(scripted, client):
    scripted.backend.script.template = "{{ messages }}"
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        client.chat.completions.create(model="any", messages=ASK, tools=TOOLS)
    assert scripted.backend.answers[-1].closed
    with pytest.raises(ollama.ResponseError, match="does not support thinking"):
        ollama.Client(host=scripted.url).chat("any", ASK, think=True)
    assert scripted.backend.answers[-1].closed


FAILURES = [
    (BusyError("Full.", 2.5), 429, "rate_limit_exceeded", "rate_limit_error"),
    (ContextError(9, 5), 400, "context_length_exceeded", "invalid_request_error"),
    (DeadlineError("Late."), 504, "timeout", "timeout_error"),
    (EngineLostError("Gone."), 503, "engine_lost", "overloaded_error"),
    (UnsupportedError("No."), 400, "invalid_value", "invalid_request_error"),
    (MissingExtraError("Install it."), 501, "missing_extra", "api_error"),
    (ZeroDivisionError("secret"), 500, "internal_error", "api_error"),
]


@pytest.mark.parametrize(("error", "status", "code", "kind"), FAILURES)
def test_errors_have_statuses(scripted, error, status, code, kind, caplog):
    scripted.backend.script.refuse = error
    told = "An internal error; the server's log says more." if status == 500 else str(error)
    asked = {"model": "any", "messages": ASK, "max_tokens": 5, "stream": True}
    found = scripted.http.post("/v1/chat/completions", json=asked)
    assert found.status_code == status
    assert found.json()["error"]["code"] == code
    assert found.json()["error"]["message"] == told
    assert found.headers.get("retry-after") == {429: "3", 503: "1"}.get(status)
    found = scripted.http.post("/api/chat", json=asked)
    assert (found.status_code, found.json()) == (status, {"error": told})
    found = scripted.http.post("/v1/messages", json=asked)
    assert found.status_code == status
    assert found.json() == {"type": "error", "error": {"type": kind, "message": told}}


def test_errors_in_the_midst_of_streams(scripted, client):
    scripted.backend.script.error = DeadlineError("The time is over.")
    with pytest.raises(openai.APIError, match="time is over"):
        list(client.chat.completions.create(model="any", messages=ASK, stream=True))
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="any", messages=ASK)
    with pytest.raises(openai.APIError, match="time is over"):
        list(client.completions.create(model="any", prompt="x", stream=True))
    with pytest.raises(ollama.ResponseError, match="time is over"):
        list(ollama.Client(host=scripted.url).chat("any", ASK, stream=True))
    told = anthropic.Anthropic(base_url=scripted.url, api_key="none", max_retries=0)
    with (
        told.messages.stream(model="any", max_tokens=5, messages=ASK) as stream,
        pytest.raises(anthropic.APIError, match="time is over"),
    ):
        list(stream)
    assert all(a.closed for a in scripted.backend.answers)
