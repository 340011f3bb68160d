"""Gemma's tokenizer: SentencePiece's as transformers writes it, without a space in front."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvant.tokenizer.build import build
from kvant.tokenizer.hf import from_folder

pytestmark = pytest.mark.parity

TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
TOKENS += [f"<0x{i:02X}>" for i in range(256)]
TOKENS += ["▁", *"abcde", "▁▁", "▁a", "ab", "abc", "de", "▁abc", "\n", "\n\n", "▁▁▁▁"]
MERGES = ["▁ ▁", "▁ a", "a b", "ab c", "d e", "▁ abc", "\n \n", "▁▁ ▁▁"]
TEXTS = ["abc de", "  abc\n\nab", " é ☃ abcde", "a    b", "<start_of_turn>ab<end_of_turn>\n"]


def test_the_same_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocab = {token: i for i, token in enumerate(TOKENS)}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    theirs = transformers.GemmaTokenizer(vocab=vocab, merges=merges)
    turns = ["<start_of_turn>", "<end_of_turn>"]
    theirs.add_special_tokens({"additional_special_tokens": turns})
    theirs.save_pretrained(tmp_path)
    definition = from_folder(tmp_path, len(TOKENS))
    assert (definition.model, definition.add_space_prefix) == ("llama", False)
    ours = build(definition)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special=False, parse_special=True) == expected
