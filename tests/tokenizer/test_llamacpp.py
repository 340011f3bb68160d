"""The same ids as llama.cpp itself, on texts nobody chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from kvant.files.gguf import GgufFile, Value, ValueType, array, read_gguf, string, strings
from kvant.tokenizer import build, from_folder, from_metadata, to_metadata
from kvant.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer

from .conftest import byte_level_json, sentencepiece_json, write_folder
from .texts import FIXED, texts

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.parity

Make = Callable[[Mapping[str, Value]], GgufFile]
RELAXED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def _compare(file: GgufFile, examples: int, *, add_special: bool = True) -> None:
    from .llamacpp import LlamaCpp

    tokenizer = build(from_metadata(file))

    with LlamaCpp(file.path) as peer:

        def check(text: str) -> None:
            for parse in (False, True):
                ours = tokenizer.encode(text, add_special, parse)
                assert ours == peer.encode(text, add_special, parse), (text, parse)

        @settings(max_examples=examples, deadline=None, suppress_health_check=RELAXED)
        @given(texts)
        def fuzz(text: str) -> None:
            check(text)

        for text in FIXED:
            check(text)
        fuzz()


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "llama-spm"])
def test_published_vocabularies(shared_data: Path, name: str) -> None:
    _compare(read_gguf(shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf"), 300)


EXACT = [p for p in PRE_TOKENIZERS if p.splits not in p.near]


@pytest.mark.parametrize("entry", EXACT, ids=lambda e: e.name)
def test_every_pre_tokenizer_cuts_as_llama_cpp_does(
    shared_data: Path, gguf_of: Make, entry: PreTokenizer
) -> None:
    file = read_gguf(shared_data / "tokenizers" / "ggml-vocab-gpt-2.gguf")
    renamed = {**file.metadata, "tokenizer.ggml.pre": string(entry.name)}
    _compare(gguf_of(renamed), 100)


NAMED = [(p, n) for p in PRE_TOKENIZERS for n in (p.name, *p.aliases)]


@pytest.mark.parametrize(("entry", "name"), NAMED, ids=lambda v: str(getattr(v, "name", v)))
def test_every_name_is_known_to_llama_cpp(
    tmp_path: Path, gguf_of: Make, entry: PreTokenizer, name: str
) -> None:
    from .llamacpp import LlamaCpp

    folder = write_folder(tmp_path / "m", tokenizer=byte_level_json())
    definition = from_folder(folder, 270, pre=name)
    metadata = {"general.architecture": string("llama"), **to_metadata(definition)}
    file = gguf_of({**metadata, **_llama_keys()})
    tokenizer = build(from_metadata(file))
    with LlamaCpp(file.path) as peer:
        # A folder says itself whether there is a bos token, so the name's default is overruled.
        assert not peer.adds_bos
        for text in FIXED if entry in EXACT else ("hello world 12",):
            assert tokenizer.encode(text) == peer.encode(text)
    del metadata["tokenizer.ggml.add_bos_token"]
    with LlamaCpp(gguf_of({**metadata, **_llama_keys()}).path) as peer:
        assert peer.adds_bos == entry.add_bos


def test_a_folder_with_merges_only(tmp_path: Path, gguf_of: Make) -> None:
    """Scores worked out from merges make llama.cpp merge in the same order."""
    folder = write_folder(tmp_path / "m", tokenizer=sentencepiece_json())
    definition = from_folder(folder, 270)
    metadata = {"general.architecture": string("llama"), **to_metadata(definition)}
    _compare(gguf_of({**metadata, **_llama_keys()}), 100)


def test_equal_scores(shared_data: Path, gguf_of: Make) -> None:
    """What some converters write: then the leftmost pair merges first."""
    definition = from_folder(shared_data / "models" / "stories260K-hf", 512)
    metadata = {
        "general.architecture": string("llama"),
        **to_metadata(definition),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, np.full(512, -1000, np.float32)),
    }
    _compare(gguf_of({**metadata, **_llama_keys()}), 200)


def test_tokens_that_end_generation_are_not_read_from_text(gguf_of: Make) -> None:
    from kvant.tokenizer.byte_alphabet import BYTE_CHARACTERS

    tokens = [*BYTE_CHARACTERS, "</s>", "<|im_end|>", "<|fim_prefix|>", "<tool>", "<tool", "a b"]
    types = [1] * 256 + [4, 4, 4, 4, 4, 4]
    metadata = {
        "general.architecture": string("llama"),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, types),
        "tokenizer.ggml.merges": strings([]),
    }
    file = gguf_of({**metadata, **_llama_keys()})
    _compare(file, 20)
    tokenizer = build(from_metadata(file))
    assert tokenizer.encode("</s><tool>a b", parse_special=False)[-2:] == [259, 261]


def _llama_keys() -> dict[str, Value]:
    from kvant.files.gguf import float32, uint32

    return {
        "llama.context_length": uint32(64),
        "llama.embedding_length": uint32(8),
        "llama.block_count": uint32(1),
        "llama.feed_forward_length": uint32(16),
        "llama.attention.head_count": uint32(1),
        "llama.rope.dimension_count": uint32(8),
        "llama.attention.layer_norm_rms_epsilon": float32(1e-5),
    }
