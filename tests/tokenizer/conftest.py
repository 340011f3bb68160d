"""What several tests of tokenizers use."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvant.files.gguf import GgufFile, Value, header_bytes, read_gguf
from kvant.tokenizer.byte_alphabet import BYTE_CHARACTERS

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@pytest.fixture
def gguf_of(tmp_path: Path) -> Callable[[Mapping[str, Value]], GgufFile]:
    """Write metadata as a GGUF file without tensors, and read it back."""

    def make(metadata: Mapping[str, Value]) -> GgufFile:
        path = tmp_path / "tokenizer.gguf"
        path.write_bytes(header_bytes(dict(metadata), [])[0])
        return read_gguf(path)

    return make


def added_token(token: int, content: str, special: bool = True) -> dict[str, Any]:
    """An entry of ``added_tokens`` with all the keys the library wants."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, **flags, "special": special}


def byte_level_json(**changes: Any) -> dict[str, Any]:
    """A small byte-level tokenizer.json: 256 bytes, a few merges, one special token."""
    tokens = [*BYTE_CHARACTERS, "he", "ll", "hell", "hello", "Ġw", "or", "Ġwor", "12", "ĠĠ"]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "1 2", "Ġ Ġ"]
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [added_token(len(tokens), "<|end|>")],
        "normalizer": None,
        "pre_tokenizer": {**BYTE_LEVEL, "use_regex": True},
        "post_processor": {**BYTE_LEVEL, "use_regex": True},
        "decoder": {**BYTE_LEVEL, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens)},
            "merges": merges,
        },
    }
    return {**content, **changes}


def sentencepiece_json(**changes: Any) -> dict[str, Any]:
    """A small SentencePiece-style tokenizer.json with byte fallback."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["▁a", "ab", "▁ab", "▁▁", "▁", "a", "b"]
    merges = [["▁", "a"], ["a", "b"], ["▁a", "b"], ["▁", "ab"], ["▁", "▁"]]
    added = [added_token(i, pieces[i]) for i in range(3)]
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {t: i for i, t in enumerate(pieces)},
            "merges": merges,
        },
    }
    return {**content, **changes}


def write_folder(folder: Path, **files: Any) -> Path:
    """Write JSON files (``tokenizer``, ``config``, ...) into ``folder``; bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = json.dumps(content, ensure_ascii=False)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder
