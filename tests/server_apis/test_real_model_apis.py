"""Demanded calls, schemas, the prefix cache and the store: the built-in model, nothing scripted."""

from __future__ import annotations

import json

import pytest

ollama = pytest.importorskip("ollama")
openai = pytest.importorskip("openai")

ASK = [{"role": "user", "content": "How is the weather?"}]
CITY = {"type": "string", "maxLength": 12}
WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": CITY},
}
COUNT = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "count", "parameters": COUNT}},
]


@pytest.fixture(scope="module")
def client(demo):
    return openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0)


def check(name, arguments):
    values = json.loads(arguments)
    if name == "get_weather":
        assert set(values) == {"city"}
        assert len(values["city"]) <= 12
    else:
        assert name == "count"
        assert 0 <= values["n"] <= 99


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_demanded_call_matches_a_tool(client, seed):
    pytest.importorskip("llguidance")
    asked = {
        "model": "demo",
        "messages": ASK,
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 100,
        "seed": seed,
    }
    found = client.chat.completions.create(**asked).choices[0]
    assert found.finish_reason == "tool_calls"
    [call] = found.message.tool_calls
    check(call.function.name, call.function.arguments)
    name, arguments = "", ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments) == (call.function.name, call.function.arguments)


def test_a_named_call(client):
    pytest.importorskip("llguidance")
    found = client.chat.completions.create(
        model="demo",
        messages=ASK,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "count"}},
        max_tokens=60,
    ).choices[0]
    check("count", found.message.tool_calls[0].function.arguments)


def test_a_schema_is_kept_to_by_every_api(client, demo):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": COUNT}}
    found = client.chat.completions.create(
        model="demo", messages=ASK, response_format=form, max_tokens=300
    )
    check("count", found.choices[0].message.content)
    told = ollama.Client(host=demo.url).chat(
        "demo", ASK, format=COUNT, options={"num_predict": 300}
    )
    check("count", told.message.content)
    said = demo.http.post(
        "/v1/messages",
        json={
            "model": "demo",
            "max_tokens": 300,
            "messages": ASK,
            "output_config": {"format": {"type": "json_schema", "schema": COUNT}},
        },
    ).json()
    check("count", said["content"][0]["text"])
    choice = client.chat.completions.create(
        model="demo", messages=ASK, extra_body={"guided_choice": ["red (1)", "blue."]}, max_tokens=9
    )
    assert choice.choices[0].message.content in ("red (1)", "blue.")


def test_a_schema_that_is_none_is_a_bad_request(client):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError, match="cannot be used"):
        client.chat.completions.create(model="demo", messages=ASK, response_format=form)


def test_cached_tokens_are_counted(client):
    long = [{"role": "user", "content": "The quick brown fox jumps. " * 30}]
    asked = {"model": "demo", "messages": long, "max_tokens": 2}
    client.chat.completions.create(**asked)
    again = client.chat.completions.create(**asked)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert again.usage.prompt_tokens // 2 < cached < again.usage.prompt_tokens


def test_models_are_made_shown_and_forgotten(demo):
    client = ollama.Client(host=demo.url)
    made = client.create(
        "mine", from_="demo", system="Be kind.", parameters={"temperature": 0.5, "stop": ["zz"]}
    )
    assert made.status == "success"
    listed = {m.model: m for m in client.list().models}
    assert set(listed) == {"demo", "mine:latest"}
    assert listed["mine:latest"].details.family == "llama"
    shown = client.show("mine")
    assert 'SYSTEM """Be kind."""' in shown.modelfile
    assert set(shown.parameters.split()) == {"temperature", "0.5", "stop", '"zz"'}
    assert shown.template.startswith("{% for message")
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo["general.architecture"] == "llama"
    told = client.chat("mine", ASK, options={"num_predict": 3}, keep_alive=0)
    plain = client.chat("demo", ASK, options={"num_predict": 3})
    assert told.prompt_eval_count > plain.prompt_eval_count  # its system message
    client.copy("mine", "ours")
    client.delete("mine")
    assert {m.model for m in client.list().models} == {"demo", "ours:latest"}
    client.delete("ours")
    for path in ("/etc/passwd", "../demo", "~/x"):
        with pytest.raises(ollama.ResponseError) as error:
            client.create("mine", from_=path)
        assert error.value.status_code == 400
        with pytest.raises(ollama.ResponseError) as error:
            client.pull(path)
        assert error.value.status_code == 400


def test_blobs_are_what_their_digest_says(demo, tmp_path):
    file = tmp_path / "some.bin"
    file.write_bytes(b"x" * 3_000_000)
    digest = ollama.Client(host=demo.url).create_blob(file)
    assert demo.http.head(f"/api/blobs/{digest}").status_code == 200
    wrong = demo.http.post("/api/blobs/sha256:" + "0" * 64, content=b"xx")
    assert wrong.status_code == 400
    assert "Nothing was kept" in wrong.json()["error"]
