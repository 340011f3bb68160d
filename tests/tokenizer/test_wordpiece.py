"""WordPiece both ways: ids as transformers', and llama.cpp's where its tables agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from kvant.errors import FileFormatError, UnsupportedError, UsageError
from kvant.files.gguf import GgufFile, Value, read_gguf, string
from kvant.tokenizer import build, from_folder, from_metadata, to_metadata
from kvant.tokenizer.definition import TokenType
from kvant.tokenizer.hf_write import to_hf_config, to_hf_json
from oracles.models import BERT, make_folder, wordpiece_tokens

from .texts import FIXED, texts

RELAXED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
SIZE = BERT["vocab_size"]


def folder_of(path: Path, **changes: Any) -> Path:
    """A folder with the tokenizer of a small BERT; ``model__x`` changes x of its model."""
    make_folder(path, {**BERT, "hidden_size": 8, "intermediate_size": 8})
    file = path / "tokenizer.json"
    content = json.loads(file.read_text())
    for key, value in changes.items():
        part, _, inner = key.rpartition("__")
        (content[part] if part else content)[inner] = value
    file.write_text(json.dumps(content))
    return path


def with_vocabulary_only(path: Path, lines: list[str] | None = None, **config: Any) -> Path:
    """The files of 2018: vocab.txt and what tokenizer_config.json says."""
    folder = folder_of(path)
    (folder / "tokenizer.json").unlink()
    tokens = wordpiece_tokens(SIZE) if lines is None else lines
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_pieces_that_begin_a_word_are_marked(tmp_path: Path) -> None:
    d = from_folder(folder_of(tmp_path / "m"), SIZE)
    assert (d.model, d.pre, d.lowercase, d.strip_accents) == ("bert", "default", True, True)
    assert d.tokens[:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁a"]
    assert "##b" not in d.tokens
    assert "b" in d.tokens
    assert d.token_types.tolist() == [TokenType.CONTROL] * 5 + [TokenType.NORMAL] * (SIZE - 5)
    assert d.special_ids == {
        **{"bos": 2, "eos": 3, "cls": 2, "sep": 3},
        **{"unk": 1, "pad": 0, "mask": 4},
    }
    t = build(d)
    ids = t.encode("Aaab, zz éÉ天天 [CLS]")
    pieces = [d.tokens[i] for i in ids]
    assert pieces[0] == "[CLS]"
    assert pieces[-1] == "[SEP]"
    assert pieces[1:4] == ["▁aa", "ab", "▁,"]
    assert pieces.count("▁天") == 2
    assert t.encode("[SEP]", add_special=False) != [3]
    assert t.encode("[SEP]", add_special=False, parse_special=True) == [3]
    assert t.decode(t.encode("aaab, zz")) == "aaab , zz"
    assert t.decode(t.encode("aaab"), special=True).startswith("[CLS]")


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"strip_accents": False}])
def test_vocabulary_files_say_the_same(tmp_path: Path, config: dict[str, bool]) -> None:
    d = from_folder(with_vocabulary_only(tmp_path / "v", **config), SIZE)
    lower = config.get("do_lower_case", True)
    assert d.lowercase is lower
    assert d.strip_accents is (config.get("strip_accents", lower))
    expected = from_folder(folder_of(tmp_path / "m"), SIZE)
    assert d.tokens == expected.tokens
    assert np.array_equal(d.token_types, expected.token_types)
    assert d.special_ids == expected.special_ids


def test_through_gguf_and_back(tmp_path: Path, gguf_of: Callable[..., GgufFile]) -> None:
    d = from_folder(folder_of(tmp_path / "m", normalizer__strip_accents=False), SIZE)
    metadata: Mapping[str, Value] = {"general.architecture": string("bert"), **to_metadata(d)}
    assert metadata["tokenizer.ggml.normalizer.strip_accents"].value is False
    back = from_metadata(gguf_of(metadata))
    assert back.tokens == d.tokens
    assert (back.lowercase, back.strip_accents) == (True, False)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(to_hf_json(back)))
    (other / "tokenizer_config.json").write_text(json.dumps(to_hf_config(back)))
    again = from_folder(other, SIZE)
    assert again.tokens == d.tokens
    assert again.special_ids == d.special_ids
    tokenizers = [build(x) for x in (d, back, again)]
    for text in FIXED:
        first, *rest = (t.encode(text) for t in tokenizers)
        assert rest == [first, first]


def test_long_words_are_unknown_and_no_trouble(tmp_path: Path) -> None:
    t = build(from_folder(folder_of(tmp_path / "m"), SIZE))
    assert len(t.encode("a" * 100)) > 50
    assert t.encode("a" * 101) == [2, 1, 3]
    assert t.encode("a" * 1_000_000) == [2, 1, 3]
    with pytest.raises(UsageError, match="surrogate"):
        t.encode("\ud800")


@pytest.mark.parity
@pytest.mark.parametrize("accents", [None, False])
def test_as_transformers(tmp_path: Path, accents: bool | None) -> None:
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path / "m", normalizer__strip_accents=accents)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = build(from_folder(folder, SIZE))

    @settings(max_examples=300, deadline=None, suppress_health_check=RELAXED)
    @given(texts)
    def fuzz(text: str) -> None:
        if not any(f"[{name}]" in text for name in ("PAD", "UNK", "CLS", "SEP", "MASK")):
            assert tokenizer.encode(text) == peer(text).input_ids

    for text in (*FIXED, "0\u25810"):
        assert tokenizer.encode(text) == peer(text).input_ids
    fuzz()


@pytest.mark.parity
def test_as_llama_cpp_where_its_tables_agree(shared_data: Path) -> None:
    """All of Latin, Greek and Cyrillic, Chinese and Japanese; accents on letters; signs."""
    pytest.importorskip("xllamacpp")
    from .llamacpp import LlamaCpp

    file = read_gguf(shared_data / "tokenizers" / "ggml-vocab-bert-bge.gguf")
    tokenizer = build(from_metadata(file))
    ranges = ((0x20, 0x7F), (0xA0, 0x488), (0x2010, 0x2028), (0x3041, 0x3097), (0x4E00, 0x9FA6))
    with LlamaCpp(file.path) as peer:
        for low, high in ranges:
            for code in range(low, high):
                text = f"a{chr(code)}b"
                assert tokenizer.encode(text) == peer.encode(text), hex(code)
        for text in FIXED:
            if not any("\uac00" <= c <= "\ud7a3" for c in text):
                assert tokenizer.encode(text) == peer.encode(text), text


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"normalizer": None}, UnsupportedError, "BertNormalizer and BertPreTokenizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, UnsupportedError, "BertPreTokenizer"),
        ({"normalizer__clean_text": False}, UnsupportedError, "clean_text"),
        ({"normalizer__handle_chinese_chars": False}, UnsupportedError, "handle_chinese_chars"),
        ({"normalizer__lowercase": "yes"}, FileFormatError, "truth values"),
        ({"normalizer__strip_accents": 1}, FileFormatError, "truth values"),
        ({"post_processor": None}, UnsupportedError, "around a text"),
        ({"post_processor__single": []}, UnsupportedError, "around a text"),
        ({"post_processor__single": [3, {"a": 1}]}, UnsupportedError, "around a text"),
        ({"post_processor": {"type": "BertProcessing"}}, UnsupportedError, "around a text"),
        ({"model__continuing_subword_prefix": "@@"}, UnsupportedError, "begin with '@@'"),
        ({"model__max_input_chars_per_word": 9}, UnsupportedError, "up to '9'"),
        ({"model__vocab": {"a": 0}}, FileFormatError, "not in its vocabulary"),
        ({"model__vocab": []}, FileFormatError, "model.vocab"),
        ({"model__unk_token": "[NO]"}, FileFormatError, "unk token"),
    ],
)
def test_tokenizers_that_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        from_folder(folder_of(tmp_path / "m", **change), SIZE)


def test_older_post_processors(tmp_path: Path) -> None:
    step = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    d = from_folder(folder_of(tmp_path / "m", post_processor=step), SIZE)
    assert build(d).encode("a")[::2] == [2, 3]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a", "b"], "cls token '.CLS.' is not in its vocabulary"),
        (["[CLS]", "[SEP]", "[UNK]", "a", "a"], "lines 4 and 5 are both 'a'"),
        ([str(i) for i in range(SIZE + 1)], "at most the 384 tokens"),
    ],
)
def test_vocabularies_that_are_refused(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(FileFormatError, match=words):
        from_folder(with_vocabulary_only(tmp_path / "m", lines), SIZE)


def test_a_pre_tokenizer_has_no_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --pre-tokenizer out"):
        from_folder(folder_of(tmp_path / "m"), SIZE, pre="gpt-2")
