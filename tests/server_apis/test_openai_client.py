"""OpenAI's API through the real openai client, over the built-in model."""

from __future__ import annotations

import asyncio
import time

import pytest

from kvant.api.source import open_source, tokenizer_of

openai = pytest.importorskip("openai")

ASK = [{"role": "user", "content": "The river is"}]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(open_source("demo"))


@pytest.fixture(scope="module")
def client(demo):
    return openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0)


def test_chat(client):
    found = client.chat.completions.create(
        model="demo", messages=ASK, max_completion_tokens=8, temperature=0
    )
    assert found.id.startswith("chatcmpl-")
    assert found.model == "demo"
    assert abs(found.created - time.time()) < 60
    [choice] = found.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert found.usage.completion_tokens == 8
    assert found.usage.total_tokens == 8 + found.usage.prompt_tokens
    assert found.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_says_the_same(client):
    asked = {"model": "demo", "messages": ASK, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_seed_and_n(client):
    asked = {"model": "demo", "messages": ASK, "max_tokens": 10, "temperature": 1, "seed": 7}
    first = client.chat.completions.create(**asked, n=3)
    again = client.chat.completions.create(**asked, n=3)
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in again.choices]
    assert len(set(texts)) == 3
    assert [c.index for c in first.choices] == [0, 1, 2]
    alone = client.chat.completions.create(**asked)
    assert alone.choices[0].message.content == texts[0]
    assert first.usage.prompt_tokens == alone.usage.prompt_tokens
    assert first.usage.completion_tokens == 30


def test_n_in_a_stream(client):
    asked = {"model": "demo", "messages": ASK, "max_tokens": 6, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**asked)
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == [c.message.content for c in whole.choices]


def test_stop(client):
    asked = {"model": "demo", "messages": ASK, "max_tokens": 30, "temperature": 0}
    text = client.chat.completions.create(**asked).choices[0].message.content
    word = text.split()[3]
    found = client.chat.completions.create(**asked, stop=[word, "never"])
    assert found.choices[0].message.content == text[: text.index(word)]
    assert found.choices[0].finish_reason == "stop"


def test_logprobs(client, demo):
    asked = {"model": "demo", "messages": ASK, "max_tokens": 5, "temperature": 0}
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    entries = found.choices[0].logprobs.content
    assert len(entries) == 5
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy takes the likeliest
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token
    joined = b"".join(bytes(e.bytes) for e in entries).decode("utf-8", "replace")
    assert joined == found.choices[0].message.content
    streamed = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3, stream=True)
    parts = [c.choices[0].logprobs for c in streamed]
    assert [e for p in parts if p for e in p.content] == entries
    without = client.chat.completions.create(**asked, logprobs=True)
    assert without.choices[0].logprobs.content[0].top_logprobs == []


def test_logit_bias_and_penalties(client, demo, tokenizer):
    asked = {"model": "demo", "messages": ASK, "max_tokens": 12, "temperature": 0}
    plain = client.chat.completions.create(**asked, logprobs=True).choices[0]
    first = tokenizer.encode(plain.logprobs.content[0].token)[-1]
    found = client.chat.completions.create(**asked, logit_bias={str(first): -100})
    assert found.choices[0].message.content[:6] != plain.message.content[:6]
    client.chat.completions.create(
        **asked, presence_penalty=1.5, frequency_penalty=0.5, extra_body={"top_k": -1, "min_p": 0.1}
    )
    sampling = demo.backend.jobs[-1].sampling
    assert sampling["presence_penalty"] == 1.5
    assert sampling["top_k"] == 0
    assert sampling["min_p"] == 0.1


def test_completions(client):
    asked = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    found = client.completions.create(**asked, logprobs=2)
    choice = found.choices[0]
    assert found.object == "text_completion"
    assert choice.finish_reason == "length"
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset[0] == 0
    assert len(choice.logprobs.top_logprobs[0]) == 2
    streamed = list(client.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == choice.text
    assert streamed[-1].choices[0].finish_reason == "length"
    default = client.completions.create(model="demo", prompt="Once", temperature=0)
    assert default.usage.completion_tokens == 16


def test_completions_of_many_prompts(client, tokenizer):
    tokens = tokenizer.encode("Once upon a time")
    asked = {"model": "demo", "max_tokens": 4, "temperature": 0}
    texts = client.completions.create(**asked, prompt=["Once upon a time", "The sea"], n=2)
    assert [c.index for c in texts.choices] == [0, 1, 2, 3]
    assert texts.choices[0].text == texts.choices[1].text  # greedy
    assert texts.choices[0].text != texts.choices[2].text
    ids = client.completions.create(**asked, prompt=tokens)
    assert ids.choices[0].text == texts.choices[0].text
    lists = client.completions.create(**asked, prompt=[tokens, tokens])
    assert [c.text for c in lists.choices] == [ids.choices[0].text] * 2


def test_echo(client):
    asked = {"model": "demo", "prompt": "Once upon", "temperature": 0, "echo": True}
    found = client.completions.create(**asked, max_tokens=3)
    assert found.choices[0].text.startswith("Once upon")
    assert len(found.choices[0].text) > len("Once upon")
    assert client.completions.create(**asked, max_tokens=0).choices[0].text == "Once upon"
    streamed = client.completions.create(**asked, max_tokens=3, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == found.choices[0].text
    with pytest.raises(openai.BadRequestError, match="not supported with logprobs"):
        client.completions.create(**asked, max_tokens=3, logprobs=1)


def test_embeddings(client):
    # The client asks for base64 unless told otherwise.
    found = client.embeddings.create(model="demo", input=["A river", "A sea", "A river"])
    vectors = [d.embedding for d in found.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-5)
    plain = client.embeddings.create(model="demo", input="A river", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(vectors[0], abs=1e-6)
    assert plain.usage.prompt_tokens > 0
    short = client.embeddings.create(model="demo", input="A river", dimensions=8)
    assert len(short.data[0].embedding) == 8
    assert sum(x * x for x in short.data[0].embedding) == pytest.approx(1, abs=1e-5)


def test_models(client):
    assert [m.id for m in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "kvant"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")


def test_errors_are_openais(client):
    with pytest.raises(openai.NotFoundError) as absent:
        client.chat.completions.create(model="absent", messages=ASK)
    assert absent.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model="demo", messages=ASK, temperature=9)
    assert hot.value.param == "temperature"
    assert hot.value.type == "invalid_request_error"
    assert "0 to 2" in hot.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "word " * 2000}]
        )
    assert long.value.code == "context_length_exceeded"
    assert "1,024" in long.value.message
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    with pytest.raises(openai.BadRequestError, match="models here read text"):
        client.chat.completions.create(model="demo", messages=image)


def ended(answer, seconds=5):
    """Why an answer ended."""
    ends = time.monotonic() + seconds
    while answer.outcome is None and time.monotonic() < ends:
        time.sleep(0.01)
    return answer.outcome


def test_a_client_that_goes_away_ends_its_answer(demo):
    async def leave() -> None:
        client = openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0)
        stream = await client.chat.completions.create(
            model="demo", messages=ASK, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()
        await client.close()

    asyncio.run(leave())
    assert ended(demo.backend.answers[-1]) == "cancelled"


def test_leaving_without_a_stream_ends_the_answer_too(demo):
    client = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(
            model="demo", messages=ASK, max_tokens=900, n=16, extra_body={"ignore_eos": True}
        )
    assert {ended(a) for a in demo.backend.answers[-16:]} == {"cancelled"}
