"""The library's face: stream, generate, chat, embed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_standin import Recorded

import kvant
from kvant.api.model import Model
from kvant.api.sampling_defaults import FIELD_DEFAULTS, default_sampling
from kvant.builtin import demo_path
from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.engine import load_engine
from kvant.errors import ContextError, FileFormatError, UnsupportedError, UsageError
from kvant.files.gguf import GgufFile, Value, float32, header_bytes, read_gguf, uint32
from kvant.tokenizer.build import Tokenizer
from oracles.models import LLAMA, make_folder

GREEDY = kvant.Sampling(temperature=0)


def test_streaming(model: Model) -> None:
    pieces = list(model.stream("Once upon a time", GREEDY, max_tokens=12))
    assert all(isinstance(piece, str) for piece in pieces)
    assert len(pieces) > 6
    whole = model.generate("Once upon a time", GREEDY, max_tokens=12)
    assert "".join(pieces) == whole.text
    assert pieces[-1].finish_reason == whole.finish_reason == "length"


def test_one_prompt_or_many(model: Model) -> None:
    sampling = kvant.Sampling(temperature=0.7, seed=1, logprobs=3)
    both = model.generate(["Once", "The king"], sampling, max_tokens=6)
    assert [c.tokens for c in both] == [
        model.generate(p, sampling, max_tokens=6).tokens for p in ("Once", "The king")
    ]
    assert both[0].logprobs is not None
    assert [len(p.top) for p in both[0].logprobs] == [3] * 6
    plain = json.loads(json.dumps(both[0].to_json()))
    assert plain["usage"] == {"prompt_tokens": 1, "completion_tokens": 6}
    assert model.generate([], sampling) == []


def test_the_default_is_the_models_own(model: Model) -> None:
    assert model.default_sampling == kvant.Sampling(temperature=0.7, top_k=40)
    with_seed = kvant.Sampling(temperature=0.7, top_k=40, seed=2)
    assert model.generate("Once", with_seed, max_tokens=5) == model.generate(
        "Once", with_seed, max_tokens=5
    )


def test_an_empty_prompt_begins_a_text(model: Model) -> None:
    found = model.generate("", GREEDY, max_tokens=4)
    assert found.usage.prompt_tokens == 1
    assert found.text


def test_stop_strings(model: Model) -> None:
    whole = model.generate("Once upon a time", GREEDY, max_tokens=12).text
    cut = model.generate("Once upon a time", GREEDY, max_tokens=12, stop=whole[3:9])
    assert cut.text == whole[: whole.index(whole[3:9])]
    assert cut.finish_reason == "stop"


def test_chat_goes_by_the_template(model: Model, tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tell me a story."},
    ]
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTell me a story.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    found = model.chat(messages, GREEDY, max_tokens=6)
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    assert found.usage.prompt_tokens == len(ids)
    assert model.tokenizer.definition.tokens[ids[0]] == "<|im_start|>"
    pieces = list(model.chat_stream(messages, GREEDY, max_tokens=6))
    assert "".join(pieces) == found.text


def test_without_a_template(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_folder(tmp_path / "m", LLAMA))
    definition = checkpoint.tokenizer()
    assert definition is not None
    from kvant.tokenizer.build import build

    with (
        Model(checkpoint, load_engine(checkpoint, threads=1), build(definition)) as model,
        pytest.raises(UnsupportedError, match="no chat template"),
    ):
        model.chat([{"role": "user", "content": "Hello"}])


def test_embeddings(model: Model, engine: Recorded, tokenizer: Tokenizer) -> None:
    texts = ["The cat sat.", "A dog ran over the wide green field to its master. " * 30, "x"]
    found = model.embed(texts)
    assert found.dtype == np.float32
    assert found.shape == (3, 256)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    assert max(sum(step) for step in engine.steps) <= 256 + 3  # the long one came in parts
    last = model.embed(texts, pooling="last")
    for text, mean_row, last_row in zip(texts, found, last, strict=True):
        sequence = engine.sequence()
        hidden = engine.step([(sequence, tokenizer.encode(text))], logits="hidden")
        sequence.free()
        for row, pooled in ((mean_row, hidden.mean(0)), (last_row, hidden[-1])):
            assert row == pytest.approx(pooled / np.linalg.norm(pooled), abs=1e-5)
    assert found == pytest.approx(np.vstack([model.embed([t]) for t in texts]), abs=1e-5)
    assert model.embed([]).shape == (0, 256)


def test_requests_that_make_no_sense(model: Model) -> None:
    long = "word " * 2000
    with pytest.raises(
        ContextError, match=r"The prompt has [0-9,]+ tokens and the context holds 1,024"
    ):
        model.stream(long)
    with pytest.raises(ContextError):
        model.embed([long])
    for max_tokens in (0, -1, 1.5, True):
        with pytest.raises(UsageError, match="max_tokens should be a whole number from 1"):
            model.generate("x", max_tokens=max_tokens)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="stop string is empty"):
        model.stream("x", stop=[""])
    with pytest.raises(UsageError, match="pooling should be"):
        model.embed(["x"], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"embed\(\[text\]\)"):
        model.embed("x")
    with pytest.raises(UsageError, match="not plain data"):
        model.chat([{"role": object()}])


def test_a_closed_model(checkpoint: Checkpoint, engine: Recorded, tokenizer: Tokenizer) -> None:
    model = Model(checkpoint, engine, tokenizer)
    model.close()
    model.close()
    with pytest.raises(UsageError, match="has been closed"):
        model.stream("x")


def test_loading() -> None:
    with kvant.load("demo", context=100, threads=1) as model:
        assert model.context == 100
        found = model.generate("Once upon a time", GREEDY)
        assert found.usage.prompt_tokens + found.usage.completion_tokens <= 100
    with pytest.raises(UsageError, match="kv_type should be one of f16, q8_0, got 'q4'"):
        kvant.load("demo", kv_type="q4")  # type: ignore[arg-type]
    for context in (0, 1025):
        with pytest.raises(UsageError, match=f"from 1 to the 1024 tokens .* got {context}"):
            kvant.load("demo", context=context)


# ---- recommended sampling ---------------------------------------------------------------------


def _folder(tmp_path: Path, generation: Any) -> Checkpoint:
    folder = shutil.copytree(demo_path(), tmp_path / "m")
    path = folder / "generation_config.json"
    path.unlink() if generation is None else path.write_text(json.dumps(generation))
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, FIELD_DEFAULTS),
        ({}, FIELD_DEFAULTS),
        ({"eos_token_id": 4093}, FIELD_DEFAULTS),
        ({"do_sample": False, "temperature": 0.1}, FIELD_DEFAULTS),
        ({"temperature": 0.6, "top_p": 0.9}, kvant.Sampling(temperature=0.6, top_p=0.9)),
        (
            {"do_sample": True, "top_k": 20, "repetition_penalty": 1.05, "temperature": None},
            kvant.Sampling(top_k=20, repetition_penalty=1.05),
        ),
    ],
)
def test_recommended_in_a_folder(tmp_path: Path, generation: Any, expected: kvant.Sampling) -> None:
    assert default_sampling(_folder(tmp_path, generation)) == expected


@pytest.mark.parametrize("generation", [{"temperature": "hot"}, {"top_k": -4}, {"top_p": 7}])
def test_recommendations_out_of_range(tmp_path: Path, generation: Any) -> None:
    with pytest.raises(FileFormatError, match=r"recommended sampling: \w+ should be"):
        default_sampling(_folder(tmp_path, generation))


def _gguf(tmp_path: Path, metadata: dict[str, Value]) -> GgufFile:
    path = tmp_path / "m.gguf"
    path.write_bytes(header_bytes(metadata, [])[0])
    return read_gguf(path)


def test_recommended_in_a_gguf_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from dataclasses import replace

    silent = replace(checkpoint, gguf=_gguf(tmp_path, {}), format="gguf")
    assert default_sampling(silent) == FIELD_DEFAULTS
    said = {
        "general.sampling.temp": float32(0.5),
        "general.sampling.top_k": uint32(20),
        "general.sampling.min_p": float32(0.25),
    }
    file = _gguf(tmp_path, said)
    assert default_sampling(replace(silent, gguf=file)) == kvant.Sampling(
        temperature=0.5, top_k=20, min_p=0.25
    )
