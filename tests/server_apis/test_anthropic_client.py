"""Anthropic's API through the real anthropic client, over the built-in model."""

from __future__ import annotations

import pytest

anthropic = pytest.importorskip("anthropic")

COLD = {"temperature": 0}  # newer clients have no argument for it
ASK = [{"role": "user", "content": "The river is"}]


@pytest.fixture(scope="module")
def client(demo):
    return anthropic.Anthropic(base_url=demo.url, api_key="none", max_retries=0)


@pytest.fixture
def told(scripted):
    """A client of the scripted model."""
    return anthropic.Anthropic(base_url=scripted.url, api_key="none", max_retries=0)


def said(message):
    return [(b.type, getattr(b, b.type)) for b in message.content]


def test_messages(client, demo):
    found = client.messages.create(
        model="demo", max_tokens=8, messages=ASK, extra_body=COLD, system="Be brief."
    )
    assert found.role == "assistant"
    assert [b.type for b in found.content] == ["text"]
    assert found.stop_reason == "max_tokens"
    assert found.usage.output_tokens == 8
    assert found.usage.input_tokens > 0
    assert demo.backend.jobs[-1].messages[0] == {"role": "system", "content": "Be brief."}
    assert demo.backend.jobs[-1].template == {"enable_thinking": False}


def test_a_stream_says_the_same(client):
    asked = {"model": "demo", "max_tokens": 8, "messages": ASK, "extra_body": COLD}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    kinds = [e.type for e in events]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1


def test_stop_sequences_are_named(client, demo):
    asked = {"model": "demo", "max_tokens": 60, "messages": ASK, "extra_body": COLD}
    text = client.messages.create(**asked).content[0].text
    word = text.split()[3]
    found = client.messages.create(**asked, stop_sequences=["never", word])
    assert found.stop_reason == "stop_sequence"
    assert found.stop_sequence == word
    assert found.content[0].text == text[: text.index(word)]
    with client.messages.stream(**asked, stop_sequences=[word]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", word)
    assert said(final) == said(found)
    assert demo.backend.answers[-1].outcome is not None


def test_count_tokens(client, demo):
    counted = client.messages.count_tokens(model="demo", messages=ASK)
    found = client.messages.create(model="demo", max_tokens=1, messages=ASK)
    assert counted.input_tokens == found.usage.input_tokens
    assert demo.backend.answers[-2].outcome is not None


def test_thinking(told, scripted):
    scripted.backend.script.pieces = ["<thi", "nk>\nLet me", " see.\n</think>", "\n\nYes", "."]
    asked = {"model": "any", "max_tokens": 2000, "messages": ASK}
    thinking = {"type": "enabled", "budget_tokens": 1024}
    found = told.messages.create(**asked, thinking=thinking)
    assert said(found) == [("thinking", "Let me see."), ("text", "Yes.")]
    assert scripted.backend.jobs[-1].template["enable_thinking"] is True
    with told.messages.stream(**asked, thinking=thinking) as stream:
        kinds = [e.type for e in stream if e.type in ("thinking", "text", "signature")]
        assert said(stream.get_final_message()) == said(found)
    assert kinds == ["thinking", "thinking", "signature", "text", "text"]
    unasked = told.messages.create(**asked)
    assert [b.type for b in unasked.content] == ["text"]


TOOL = {
    "name": "get_weather",
    "description": "Weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def test_tools(told, scripted):
    scripted.backend.script.pieces = [
        "I look.\n",
        "<tool_call>\n",
        '{"name": "get_weather", "argu',
        'ments": {"city": "Os',
        'lo"}}\n</tool_call>',
    ]
    asked = {"model": "any", "max_tokens": 200, "messages": ASK, "tools": [TOOL]}
    found = told.messages.create(**asked)
    assert found.stop_reason == "tool_use"
    text, use = found.content
    assert text.text == "I look."
    assert (use.name, use.input) == ("get_weather", {"city": "Oslo"})
    assert use.id.startswith("toolu_")
    assert scripted.backend.jobs[-1].tools[0]["function"]["parameters"] == TOOL["input_schema"]
    with told.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert final.content[1].input == {"city": "Oslo"}
    assert final.stop_reason == "tool_use"
    # The conversation goes on with the result.
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "Rain."}
    told.messages.create(
        **{
            **asked,
            "messages": [
                *ASK,
                {"role": "assistant", "content": found.content},
                {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
            ],
        }
    )
    turns = scripted.backend.jobs[-1].messages
    assert turns[1]["tool_calls"][0]["function"] == {
        "name": "get_weather",
        "arguments": {"city": "Oslo"},
    }
    assert turns[2] == {
        "role": "tool",
        "content": "Rain.",
        "tool_call_id": use.id,
        "name": "get_weather",
    }
    assert turns[3] == {"role": "user", "content": "So?"}


def test_a_demanded_tool_is_a_constraint(told, scripted):
    scripted.backend.script.pieces = ['{"city"', ': "Oslo"}']
    found = told.messages.create(
        model="any",
        max_tokens=50,
        messages=ASK,
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    assert found.content[0].input == {"city": "Oslo"}
    assert scripted.backend.jobs[-1].constraint.kind == "json_schema"


def test_errors_are_anthropics(client, told, scripted):
    with pytest.raises(anthropic.NotFoundError) as absent:
        client.messages.create(model="absent", max_tokens=5, messages=ASK)
    assert absent.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="ends with the assistant"):
        client.messages.create(
            model="demo",
            max_tokens=5,
            messages=[*ASK, {"role": "assistant", "content": "It"}],
        )
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: is missing"):
        client.post("/v1/messages", body={"model": "demo", "messages": ASK}, cast_to=object)
    image = {"type": "image", "source": {"type": "url", "url": "http://x"}}
    with pytest.raises(anthropic.BadRequestError, match="models here read and write text"):
        client.messages.create(
            model="demo", max_tokens=5, messages=[{"role": "user", "content": [image]}]
        )
