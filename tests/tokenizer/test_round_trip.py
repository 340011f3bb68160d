"""Hugging Face -> GGUF -> Hugging Face, and the tokenizer that runs: the same ids throughout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import kvant
from kvant.files.gguf import GgufFile, Value
from kvant.tokenizer import (
    TokenizerDefinition,
    build,
    from_folder,
    from_metadata,
    to_hf_config,
    to_hf_json,
    to_metadata,
)

from .conftest import BYTE_LEVEL, added_token, byte_level_json, sentencepiece_json, write_folder
from .texts import FIXED, composed, texts

Make = Callable[[Mapping[str, Value]], GgufFile]
RELAXED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def _library(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _same_ids(
    encode: Callable[[str], list[int]],
    expected: Callable[[str], list[int]],
    change: Callable[[str], str] = str,
    examples: int = 200,
) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=RELAXED)
    @given(texts)
    def fuzz(text: str) -> None:
        text = change(text)
        assert encode(text) == expected(text)

    for text in FIXED:
        text = change(text)
        assert encode(text) == expected(text)
    fuzz()


def _check_both_ways(
    folder: Path,
    vocab_size: int,
    gguf_of: Make,
    tmp_path: Path,
    change: Callable[[str], str] = str,
) -> TokenizerDefinition:
    """From ``folder`` to GGUF, to a tokenizer that runs, and back to a tokenizer.json."""
    original = _library(folder / "tokenizer.json")
    first = from_folder(folder, vocab_size)
    through = from_metadata(gguf_of(to_metadata(first)))
    tokenizer = build(through)
    back = write_folder(
        tmp_path / "back", tokenizer=to_hf_json(through), tokenizer_config=to_hf_config(through)
    )
    written = _library(back / "tokenizer.json")

    def expected(text: str) -> list[int]:
        # All special tokens in the text are read, which is how the library always does it.
        return original.encode(text).ids  # type: ignore[no-any-return]

    _same_ids(lambda t: tokenizer.encode(t, parse_special=True), expected, change)
    _same_ids(lambda t: written.encode(t).ids, expected, change)
    for text in map(change, FIXED):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert written.decode(written.encode(text).ids) == text
    assert to_metadata(from_folder(back, vocab_size)).keys() >= _needed(first)
    return first


def _needed(definition: TokenizerDefinition) -> set[str]:
    """The keys of metadata that must survive; a flag that says nothing new need not."""
    return {k for k in to_metadata(definition) if not k.startswith("tokenizer.ggml.add_")}


def _gpt2_folder(shared_data: Path, folder: Path) -> Path:
    source = shared_data / "tokenizers" / "gpt2-hf"
    vocab = json.loads((source / "gpt2_vocab.json").read_text(encoding="utf-8"))
    lines = (source / "gpt2_merges.txt").read_text(encoding="utf-8").split("\n")
    model = {"type": "BPE", "vocab": vocab, "merges": [m for m in lines[1:] if m]}
    content = byte_level_json(model=model, added_tokens=[added_token(50256, "<|endoftext|>")])
    config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return write_folder(folder, tokenizer=content, tokenizer_config=config)


def test_gpt2(shared_data: Path, gguf_of: Make, tmp_path: Path) -> None:
    folder = _gpt2_folder(shared_data, tmp_path / "hf")
    first = _check_both_ways(folder, 50257, gguf_of, tmp_path)
    assert (first.model, first.pre, first.notes) == ("gpt2", "gpt-2", ())
    assert (first.special_ids["bos"], first.add_bos) == (50256, False)


def test_padding_up_to_the_models_size(shared_data: Path, tmp_path: Path) -> None:
    folder = _gpt2_folder(shared_data, tmp_path / "hf")
    first = from_folder(folder, 50304)
    assert first.tokens[50257:50259] == ["[PAD50257]", "[PAD50258]"]
    assert set(first.token_types[50257:].tolist()) == {5}
    assert len(to_hf_json(first)["model"]["vocab"]) == 50257


def test_builtin_model(gguf_of: Make, tmp_path: Path) -> None:
    folder = Path(kvant.__file__).parent / "builtin" / "demo"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the built-in model is not here yet")
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    normalizer = json.loads((folder / "tokenizer.json").read_text())["normalizer"]
    change = composed if normalizer == {"type": "NFC"} else str
    _check_both_ways(folder, size, gguf_of, tmp_path, change)


def test_stories_from_the_model_file(shared_data: Path, gguf_of: Make, tmp_path: Path) -> None:
    folder = shared_data / "models" / "stories260K-hf"
    first = _check_both_ways(folder, 512, gguf_of, tmp_path)
    assert (first.model, first.pre, first.add_bos) == ("llama", "default", True)


def test_stories_from_tokenizer_json_alone(
    shared_data: Path, gguf_of: Make, tmp_path: Path
) -> None:
    source = shared_data / "models" / "stories260K-hf"
    alone = write_folder(
        tmp_path / "alone", **{"tokenizer.json": (source / "tokenizer.json").read_bytes()}
    )
    _check_both_ways(alone, 512, gguf_of, tmp_path)


def test_small_byte_level(gguf_of: Make, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", tokenizer=byte_level_json())
    _check_both_ways(folder, 300, gguf_of, tmp_path)


@pytest.mark.parametrize("prefix", [True, False])
def test_small_sentencepiece(gguf_of: Make, tmp_path: Path, prefix: bool) -> None:
    content = sentencepiece_json()
    if not prefix:
        del content["normalizer"]["normalizers"][0]
        content["post_processor"] = None
    folder = write_folder(
        tmp_path / "hf", tokenizer=content, tokenizer_config={"add_bos_token": False}
    )
    first = from_folder(folder, 270)
    assert first.add_space_prefix is (None if prefix else False)
    original = _library(folder / "tokenizer.json")
    tokenizer = build(from_metadata(gguf_of(to_metadata(first))))
    _same_ids(tokenizer.encode, lambda t: original.encode(t).ids, lambda t: t.replace("<", "("))


@pytest.mark.parity
def test_llama2_against_sentencepiece(shared_data: Path, gguf_of: Make, tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    source = shared_data / "tokenizers" / "llama2-tokenizer.model"
    peer = library.SentencePieceProcessor(model_file=str(source))
    folder = write_folder(tmp_path / "hf", **{"tokenizer.model": source.read_bytes()})
    first = from_folder(folder, 32000)
    assert first.tokens == [peer.id_to_piece(i) for i in range(32000)]
    assert first.scores is not None
    assert first.scores.tolist() == [peer.get_score(i) for i in range(32000)]
    tokenizer = build(from_metadata(gguf_of(to_metadata(first))))

    # SentencePiece takes NUL for the end of a text, and knows nothing between special tokens.
    def change(text: str) -> str:
        return text.replace("\x00", "0")

    _same_ids(lambda t: tokenizer.encode(t, False), lambda t: peer.encode(t), change)
    written = write_folder(tmp_path / "back", tokenizer=to_hf_json(first))
    back = _library(written / "tokenizer.json")
    for text in FIXED:
        assert back.encode(text).ids == tokenizer.encode(text)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["qwen2", "llama-bpe"])
def test_written_files_load_in_transformers(shared_data: Path, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    from kvant.files.gguf import read_gguf

    definition = from_metadata(read_gguf(shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf"))
    folder = write_folder(
        tmp_path / "hf",
        tokenizer=to_hf_json(definition),
        tokenizer_config=to_hf_config(definition),
    )
    loaded = transformers.AutoTokenizer.from_pretrained(str(folder))
    tokenizer = build(definition)
    for text in FIXED:
        assert loaded(text)["input_ids"] == tokenizer.encode(text)


def test_named_templates_and_flags_survive(gguf_of: Make, tmp_path: Path) -> None:
    config = {
        "bos_token": {"content": "<|end|>"},
        "add_bos_token": True,
        "chat_template": [
            {"name": "default", "template": "{{ 'a' }}\n"},
            {"name": "tool use", "template": "{{ 'b' }}"},
        ],
    }
    content = byte_level_json(post_processor=None)
    folder = write_folder(tmp_path / "hf", tokenizer=content, tokenizer_config=config)
    first = from_folder(folder, 266)
    assert first.chat_template == "{{ 'a' }}\n"
    assert first.chat_templates == {"tool_use": "{{ 'b' }}"}
    assert first.add_bos is True
    metadata = to_metadata(first)
    assert metadata["tokenizer.chat_templates"].value == ["tool_use"]
    again = from_metadata(gguf_of(metadata))
    assert to_metadata(again) == metadata
    assert to_hf_config(again)["chat_template"][0] == {"name": "default", "template": "{{ 'a' }}\n"}
    assert BYTE_LEVEL["add_prefix_space"] is False
