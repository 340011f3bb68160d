"""Ollama's API through the real ollama client, over the built-in model."""

from __future__ import annotations

import json
import time

import httpx
import pytest

ollama = pytest.importorskip("ollama")

ASK = [{"role": "user", "content": "The river is"}]
COLD = {"temperature": 0, "num_predict": 8}


@pytest.fixture(scope="module")
def client(demo):
    return ollama.Client(host=demo.url)


@pytest.fixture
def shelf(scripted):
    """A client of the store alone."""
    return ollama.Client(host=scripted.url)


def test_generate(client):
    found = client.generate("demo", "The river is", options=COLD)
    assert found.model == "demo"
    assert found.response
    assert found.done
    assert found.done_reason == "length"
    assert found.eval_count == 8
    assert found.prompt_eval_count > 0
    assert found.total_duration >= found.eval_duration > 1000
    assert found.prompt_eval_duration > 1000
    streamed = list(client.generate("demo", "The river is", options=COLD, stream=True))
    assert "".join(p.response for p in streamed) == found.response
    assert [p.done for p in streamed] == [False] * (len(streamed) - 1) + [True]
    assert streamed[0].total_duration is None


def test_raw_continues_the_text(client, demo):
    raw = client.generate("demo", "Once upon a time", raw=True, options=COLD)
    assert raw.context is None
    assert demo.backend.jobs[-1].prompt == "Once upon a time"
    assert raw.response != client.generate("demo", "Once upon a time", options=COLD).response
    with pytest.raises(ollama.ResponseError, match="leave out template, system"):
        client.generate("demo", "x", raw=True, system="y")


def test_context_goes_on(client, demo):
    first = client.generate("demo", "The river is", system="Be brief: ö", options=COLD)
    client.generate("demo", "And the sea?", context=first.context, options=COLD)
    turns = [(t["role"], t["content"]) for t in demo.backend.jobs[-1].messages]
    assert turns == [
        ("system", "Be brief: ö"),
        ("user", "The river is"),
        ("assistant", first.response),
        ("user", "And the sea?"),
    ]
    with pytest.raises(ollama.ResponseError, match="not what an answer of this server gave"):
        client.generate("demo", "x", context=[1, 2, 3])


def test_chat(client, demo):
    found = client.chat("demo", ASK, options={**COLD, "seed": 3})
    assert found.message.role == "assistant"
    assert found.message.content
    assert found.done_reason == "length"
    streamed = list(client.chat("demo", ASK, options=COLD, stream=True))
    assert "".join(p.message.content for p in streamed) == found.message.content
    assert streamed[-1].eval_count == 8


def test_options_reach_the_sampler(client, demo):
    options = {"repeat_penalty": 1.2, "top_k": 5, "num_ctx": 512, "stop": ["x", "y"], "mirostat": 0}
    client.chat("demo", ASK, options={**COLD, **options}, keep_alive="1h30m")
    job = demo.backend.jobs[-1]
    assert job.sampling == {"temperature": 0, "repetition_penalty": 1.2, "top_k": 5}
    assert job.stop == ("x", "y")
    assert (job.context, job.max_tokens, job.keep_alive) == (512, 8, 5400)
    client.chat("demo", ASK, options={"num_predict": 3}, keep_alive=-1)
    assert demo.backend.jobs[-1].keep_alive == -1


def test_format_is_a_constraint(scripted):
    client = ollama.Client(host=scripted.url)
    client.chat("any", ASK, format="json")
    client.generate("any", "x", format={"type": "object"})
    kinds = [(j.constraint.kind, j.constraint.text) for j in scripted.backend.jobs]
    assert kinds == [("json_object", ""), ("json_schema", '{"type": "object"}')]


def test_logprobs(client):
    found = client.generate("demo", "The river is", options=COLD, logprobs=True, top_logprobs=2)
    assert len(found.logprobs) == 8
    assert "".join(p.token for p in found.logprobs) == found.response
    assert len(found.logprobs[0].top_logprobs) == 2
    streamed = list(
        client.chat("demo", ASK, options=COLD, logprobs=True, top_logprobs=2, stream=True)
    )
    assert sum(len(p.logprobs or ()) for p in streamed) == 8


def test_loading_and_unloading(client, demo):
    assert client.generate("demo", keep_alive=0).done_reason == "unload"
    assert client.ps().models == []
    assert client.chat("demo", keep_alive="5m").done_reason == "load"
    [model] = client.ps().models
    assert model.model == "demo"
    assert model.context_length == 1024
    assert 290 < model.expires_at.timestamp() - time.time() < 310
    client.generate("demo", keep_alive=-1)
    assert client.ps().models[0].expires_at.year == 9999


def test_what_does_not_fit_is_an_error(client):
    with pytest.raises(ollama.ResponseError) as error:
        client.generate("demo", "word " * 2000)
    assert error.value.status_code == 400
    assert "1,024" in error.value.error


def test_embeddings(client):
    found = client.embed("demo", ["A river", "A sea"])
    assert len(found.embeddings) == 2
    assert found.prompt_eval_count > 0
    assert found.total_duration > 0
    old = client.embeddings("demo", "A river")
    assert old.embedding == pytest.approx(found.embeddings[0], abs=1e-6)
    short = client.embed("demo", "A river", dimensions=4)
    assert len(short.embeddings[0]) == 4


def test_errors_are_ollamas(client):
    with pytest.raises(ollama.ResponseError) as error:
        client.chat("absent", ASK)
    assert error.value.status_code == 404
    assert client.generate("demo", "x", images=None, options=COLD).response is not None
    with pytest.raises(ollama.ResponseError, match="models here read and write text"):
        client.generate("demo", "x", images=[b"1234"])
    with pytest.raises(ollama.ResponseError, match=r"options\.mirostat"):
        client.generate("demo", "x", options={"mirostat": 2})
    with pytest.raises(ollama.ResponseError, match="keep_alive"):
        client.generate("demo", "x", keep_alive="5 parsecs")


def test_list_show_copy_delete(shelf):
    assert [m.model for m in shelf.list().models] == ["demo", "other"]
    assert shelf.list().models[0].details.quantization_level == "Q8_0"
    shown = shelf.show("demo")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.parameters.splitlines() == [
        "temperature                    0.5",
        'stop                           "a"',
        'stop                           "b"',
    ]
    assert "tokenizer.ggml.tokens" not in shown.modelinfo
    assert shelf.copy("demo", "mine").status == "success"
    assert shelf.delete("demo").status == "success"
    assert [m.model for m in shelf.list().models] == ["other", "mine"]
    with pytest.raises(ollama.ResponseError, match="There is no model") as absent:
        shelf.delete("demo")
    assert absent.value.status_code == 404


def test_pull_and_push_show_progress(shelf, scripted):
    assert shelf.pull("new").status == "success"
    lines = list(shelf.pull("newer", stream=True))
    assert [p.status for p in lines][:2] == ["pulling manifest", "pulling 0123"]
    assert lines[-2].total == lines[-2].completed == 100
    assert lines[-1].status == "success"
    assert shelf.push("new").status == "success"
    with pytest.raises(ollama.ResponseError, match="not in that registry") as absent:
        list(shelf.pull("absent", stream=True))
    assert absent.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="digest is wrong"):
        list(shelf.pull("broken", stream=True))
    with pytest.raises(ollama.ResponseError, match="digest is wrong"):
        shelf.pull("broken")


@pytest.mark.parametrize("stream", [True, False])
def test_a_pull_nobody_waits_for_ends(shelf, scripted, stream):
    scripted.shelf.stopped = None
    if stream:
        lines = shelf.pull("endless", stream=True)
        next(lines)
        lines.close()
    else:
        ask = {"model": "endless", "stream": False}
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{scripted.url}/api/pull", json=ask, timeout=0.3)
    ends = time.monotonic() + 5
    while scripted.shelf.stopped is None and time.monotonic() < ends:
        time.sleep(0.01)
    assert scripted.shelf.stopped is not None


def test_create(shelf, scripted, tmp_path):
    made = shelf.create("mine", from_="demo", system="Be kind.", parameters={"temperature": 0.1})
    assert made.status == "success"
    assert scripted.shelf.made[-1].base == "demo"
    assert scripted.shelf.made[-1].parameters == {"temperature": 0.1}
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF and more")
    digest = shelf.create_blob(file)
    assert scripted.shelf.blobs == {digest: b"GGUF and more"}
    shelf.create("mine", files={"model.gguf": digest}, quantize="Q4_K_M")
    assert scripted.shelf.made[-1].files == {"model.gguf": digest}
    assert scripted.shelf.made[-1].quantize == "Q4_K_M"
    assert scripted.http.head(f"/api/blobs/{digest}").status_code == 200
    absent = "sha256:" + "1" * 64
    assert scripted.http.head(f"/api/blobs/{absent}").status_code == 404
    for name in ("../x", "/etc/passwd", "a/../../b", ""):
        with pytest.raises(ollama.ResponseError, match="names of files"):
            shelf.create("mine", files={name: digest})


def test_version_and_life(scripted):
    assert scripted.http.head("/").status_code == 200
    assert scripted.http.get("/").text == "Ollama is running"
    found = scripted.http.get("/api/version").json()
    assert found["version"].count(".") == 2


def test_curl_needs_no_content_type(demo):
    body = json.dumps({"model": "demo", "prompt": "x", "stream": False, "options": COLD})
    found = demo.http.post("/api/generate", content=body)
    assert found.json()["done"] is True
