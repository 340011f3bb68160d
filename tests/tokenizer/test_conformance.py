"""llama.cpp's conformance files: every text, every id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvant.files.gguf import GgufFile, read_gguf, string
from kvant.tokenizer import build, from_metadata, to_metadata

SEPARATOR = "\n__ggml_vocab_test__\n"
NAMES = ("gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3")


@pytest.mark.parametrize("name", [*NAMES, "bert-bge"])
def test_all_ids_are_llama_cpps(shared_data: Path, name: str) -> None:
    path = shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf"
    with path.with_name(path.name + ".inp").open(encoding="utf-8", newline="") as file:
        texts = file.read().split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    expected = [[int(i) for i in line.split()] for line in lines]
    assert len(texts) == len(expected) > 40
    tokenizer = build(from_metadata(read_gguf(path)))
    assert [tokenizer.encode(t, add_special=False) for t in texts] == expected


@pytest.mark.parametrize("name", NAMES)
def test_decoding_gives_the_text_back(shared_data: Path, name: str) -> None:
    path = shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf"
    tokenizer = build(from_metadata(read_gguf(path)))
    with path.with_name(path.name + ".inp").open(encoding="utf-8", newline="") as file:
        texts = file.read().split(SEPARATOR)
    assert [tokenizer.decode(tokenizer.encode(t)) for t in texts] == texts


@pytest.mark.parametrize("name", NAMES)
def test_metadata_survives(shared_data: Path, name: str) -> None:
    file = read_gguf(shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf")
    original = {k: v for k, v in file.metadata.items() if k.startswith("tokenizer.")}
    assert to_metadata(from_metadata(file)) == original


def test_the_tiny_foreign_file(shared_data: Path) -> None:
    file = read_gguf(shared_data / "models" / "llama-2-tiny-random.gguf")
    tokenizer = build(from_metadata(file))
    assert tokenizer.encode("Hello world") == [1, 15043, 3186]


def test_a_kind_that_is_not_read(gguf_of: Callable[..., GgufFile]) -> None:
    from kvant.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match="kind 't5'"):
        from_metadata(gguf_of({"tokenizer.ggml.model": string("t5")}))
