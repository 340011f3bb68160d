"""What a folder's files say, as llama.cpp's converter reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvant.errors import InputError, UnsupportedError, UsageError
from kvant.tokenizer import TokenizerDefinition, TokenType, build, from_folder, has_tokenizer

from .conftest import added_token, byte_level_json, sentencepiece_json, write_folder

END = 265


def _template(*names: str, pair: tuple[str, ...] = ()) -> dict[str, Any]:
    def pieces(parts: tuple[str, ...]) -> list[dict[str, Any]]:
        return [
            {"Sequence" if n in "AB" else "SpecialToken": {"id": n, "type_id": 0}} for n in parts
        ]

    return {
        "type": "TemplateProcessing",
        "single": pieces(names),
        "pair": pieces(pair),
        "special_tokens": {},
    }


def _read(tmp_path: Path, size: int = 300, **files: Any) -> TokenizerDefinition:
    files.setdefault("tokenizer", byte_level_json())
    return from_folder(write_folder(tmp_path / "hf", **files), size)


def test_types_of_added_tokens(tmp_path: Path) -> None:
    added = [
        added_token(265, "<|end|>"),
        added_token(266, "<|looks_special|>", special=False),
        added_token(267, "▁tool▁", special=False),
        added_token(268, "<unused7>", special=False),
    ]
    d = _read(tmp_path, tokenizer=byte_level_json(added_tokens=added))
    assert d.tokens[265:269] == ["<|end|>", "<|looks_special|>", " tool ", "<unused7>"]
    assert d.token_types[265:270].tolist() == [
        TokenType.CONTROL,
        TokenType.CONTROL,
        TokenType.USER_DEFINED,
        TokenType.CONTROL,
        TokenType.UNUSED,
    ]


def test_tokenizer_config_changes_and_adds_tokens(tmp_path: Path) -> None:
    decoder = {
        "265": {**added_token(0, "<|end|>"), "special": False},
        "266": {**added_token(0, "new"), "special": True},
    }
    d = _read(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    assert d.tokens[266] == "new"
    assert d.token_types[265:267].tolist() == [TokenType.CONTROL, TokenType.CONTROL]


def test_added_tokens_beyond_the_model_are_left_out(tmp_path: Path) -> None:
    d = _read(tmp_path, size=265)
    assert len(d.tokens) == 265
    assert "1 added tokens are left out" in d.notes[0]


def test_tokens_that_take_spaces_are_reported(tmp_path: Path) -> None:
    added = [{**added_token(265, "<mask>"), "lstrip": True}]
    d = _read(tmp_path, tokenizer=byte_level_json(added_tokens=added))
    assert "take the spaces beside them" in d.notes[0]


@pytest.mark.parametrize(
    ("processor", "config", "expected"),
    [
        ({"type": "ByteLevel"}, {}, (False, False, None)),
        ({"type": "ByteLevel"}, {"add_bos_token": True}, (False, False, None)),
        (None, {"add_bos_token": True, "add_eos_token": False}, (True, False, None)),
        (None, {}, (None, None, None)),
        (_template("<|end|>", "A"), {"bos_token": "<|end|>"}, (True, None, None)),
        (_template("<|end|>", "A"), {}, (True, None, None)),
        (_template("<|end|>", "A"), {"bos_token": "hello"}, (False, None, None)),
        (_template("A", "<|end|>"), {"eos_token": "<|end|>"}, (None, True, None)),
        (_template("A"), {}, (None, None, None)),
        (
            _template("<|end|>", "A", pair=("<|end|>", "A", "<|end|>", "B")),
            {"bos_token": "<|end|>"},
            (True, None, False),
        ),
        (
            _template("A", pair=("A", "<|end|>", "B")),
            {"eos_token": "<|end|>"},
            (None, None, True),
        ),
    ],
)
def test_what_goes_around_a_text(
    tmp_path: Path, processor: Any, config: dict[str, Any], expected: tuple[bool | None, ...]
) -> None:
    d = _read(
        tmp_path, tokenizer=byte_level_json(post_processor=processor), tokenizer_config=config
    )
    assert (d.add_bos, d.add_eos, d.add_sep) == expected


def test_a_sequence_of_processors(tmp_path: Path) -> None:
    steps = [{"type": "ByteLevel"}, _template("<|end|>", "A")]
    content = byte_level_json(post_processor={"type": "Sequence", "processors": steps})
    d = _read(tmp_path, tokenizer=content, tokenizer_config={"bos_token": "<|end|>"})
    assert (d.add_bos, d.add_eos, d.special_ids) == (True, False, {"bos": END})


def test_a_last_token_other_than_eos_takes_its_place(tmp_path: Path) -> None:
    added = [added_token(265, "<|end|>"), added_token(266, "<|stop|>")]
    content = byte_level_json(added_tokens=added, post_processor=_template("A", "<|stop|>"))
    d = _read(tmp_path, tokenizer=content, tokenizer_config={"eos_token": "<|end|>"})
    assert d.special_ids == {"eos": 266, "eot": 265}
    assert d.add_eos is True


def test_two_tokens_before_a_text_are_reported(tmp_path: Path) -> None:
    content = byte_level_json(post_processor=_template("<|end|>", "<|end|>", "A"))
    assert "one at most" in _read(tmp_path, tokenizer=content).notes[0]


def test_llama3_names_do_not_add_bos_unasked(tmp_path: Path) -> None:
    from kvant.tokenizer import regexes as r

    split = {"type": "Split", "pattern": {"Regex": r.LLAMA3}, "behavior": "Isolated"}
    end = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    content = byte_level_json(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, end]}, post_processor=None
    )
    content["model"]["ignore_merges"] = True
    d = _read(tmp_path, tokenizer=content)
    assert (d.pre, d.add_bos) == ("llama-bpe", False)


def test_ids_come_from_text_then_config_then_generation(tmp_path: Path) -> None:
    d = _read(
        tmp_path,
        tokenizer_config={"eos_token": "<|end|>"},
        config={"eos_token_id": 3, "bos_token_id": 4, "pad_token_id": -1, "unk_token_id": 999},
        special_tokens_map={"mask_token": {"content": "hello"}},
        generation_config={"bos_token_id": 5, "pad_token_id": 6, "eos_token_id": [265, 7, 8]},
    )
    assert d.special_ids == {"eos": END, "bos": 4, "mask": 259, "eot": 7}
    assert d.end_ids == (END, 7, 8, 3)
    assert any("unk token is 999" in n for n in d.notes)


def test_an_end_that_llama_cpp_knows_needs_no_key(tmp_path: Path) -> None:
    added = [added_token(265, "<|end|>"), added_token(266, "<|im_end|>")]
    d = _read(
        tmp_path,
        tokenizer=byte_level_json(added_tokens=added),
        generation_config={"eos_token_id": [265, 266]},
    )
    assert d.special_ids == {"eos": 265}
    assert d.end_ids == (265, 266)


def test_prefix_spaces(tmp_path: Path) -> None:
    content = sentencepiece_json()
    d = _read(tmp_path, tokenizer=content, tokenizer_config={"add_prefix_space": True})
    assert d.add_space_prefix is True
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    (tmp_path / "hf" / "tokenizer_config.json").unlink()
    d = _read(tmp_path, tokenizer=content)
    assert d.add_space_prefix is None
    assert "begins with one, and none after special tokens" in d.notes[0]
    content["pre_tokenizer"]["prepend_scheme"] = "never"
    d = _read(tmp_path, tokenizer=content)
    assert d.add_space_prefix is False
    assert build(d).encode("ab", add_special=False) == [260]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": None},
        {"normalizer": {"type": "Prepend", "prepend": "_"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}},
        # Words are cut at spaces, but a merge makes a token of two.
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}},
        {"post_processor": {"type": "BertProcessing"}},
    ],
)
def test_steps_of_sentencepiece_style_that_gguf_cannot_say(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError):
        _read(tmp_path, tokenizer=sentencepiece_json(**change))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "Unigram"),
        ("dropout", 0.1),
        ("continuing_subword_prefix", "##"),
        ("end_of_word_suffix", "</w>"),
        ("byte_fallback", True),
        ("ignore_merges", "yes"),
    ],
)
def test_model_options_that_gguf_cannot_say(tmp_path: Path, key: str, value: object) -> None:
    content = byte_level_json()
    content["model"][key] = value
    with pytest.raises(UnsupportedError, match=key):
        _read(tmp_path, tokenizer=content)


def test_normalizers_of_byte_level(tmp_path: Path) -> None:
    d = _read(tmp_path, tokenizer=byte_level_json(normalizer={"type": "NFC"}))
    assert "NFC" in d.notes[0]
    nothing = {"type": "Sequence", "normalizers": []}
    assert not _read(tmp_path, tokenizer=byte_level_json(normalizer=nothing)).notes
    with pytest.raises(UnsupportedError, match="changes text first"):
        _read(tmp_path, tokenizer=byte_level_json(normalizer={"type": "Lowercase"}))


def test_no_tokenizer(tmp_path: Path) -> None:
    assert not has_tokenizer(tmp_path)
    with pytest.raises(InputError, match="neither"):
        from_folder(tmp_path, 10)


def test_a_name_makes_no_sense_for_sentencepiece(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", tokenizer=sentencepiece_json())
    with pytest.raises(UsageError, match="leave --pre-tokenizer out"):
        from_folder(folder, 270, pre="qwen2")


def test_templates_beside(tmp_path: Path) -> None:
    files = {"chat_template.jinja": "fil é\n".encode(), "chat_template": {"chat_template": "old"}}
    folder = write_folder(tmp_path / "hf", tokenizer=byte_level_json(), **files)
    write_folder(folder / "additional_chat_templates", **{"tool-use.jinja": b"tools"})
    d = from_folder(folder, 300)
    assert d.chat_template == "fil é\n"
    assert d.chat_templates == {"tool_use": "tools"}
    write_folder(folder, tokenizer_config={"chat_template": "inside"})
    assert "different chat templates" in from_folder(folder, 300).notes[0]
    (folder / "chat_template.jinja").unlink()
    assert from_folder(folder, 300).chat_template == "inside"
    (folder / "tokenizer_config.json").unlink()
    assert from_folder(folder, 300).chat_template == "old"


def test_a_model_file_with_added_tokens(shared_data: Path, tmp_path: Path) -> None:
    model = (shared_data / "models" / "stories260K-hf" / "tokenizer.model").read_bytes()
    decoder = {
        "0": added_token(0, "<unk>"),
        "512": added_token(512, "▁<t>", special=False),
        "700": added_token(700, "<far>"),
    }
    d = _read(
        tmp_path,
        size=516,
        tokenizer={},
        **{"tokenizer.model": model},
        tokenizer_config={"added_tokens_decoder": decoder},
        added_tokens={"<legacy>": 513},
    )
    assert d.tokens[511:516] == [d.tokens[511], " <t>", "<legacy>", "[PAD514]", "[PAD515]"]
    assert d.token_types[[0, 1, 512, 513, 514]].tolist() == [3, 3, 4, 4, 5]
    assert d.scores is not None
    assert d.scores[[0, 1, 512, 514]].tolist() == [-1000.0, 0.0, -1000.0, -10000.0]
    assert "1 added tokens are left out" in d.notes[0]
    small = from_folder(tmp_path / "hf", 400)
    assert len(small.tokens) == 400
    assert "tokens of tokenizer.model are left out" in small.notes[0]


def test_pieces_that_the_user_defined_are_merged_like_others(tmp_path: Path) -> None:
    def piece(text: str, kind: int) -> bytes:
        body = b"\x0a" + bytes([len(text)]) + text.encode() + b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(body)]) + body

    model = piece("<unk>", 2) + piece("a", 1) + piece("aa", 4) + b"\x12\x02\x18\x02"
    d = from_folder(write_folder(tmp_path / "hf", **{"tokenizer.model": model}), 3)
    assert d.token_types.tolist() == [TokenType.UNKNOWN, TokenType.NORMAL, TokenType.NORMAL]
