"""Names are found from definitions, and only where the computation is the same."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from kvant.errors import UnsupportedError, UsageError
from kvant.tokenizer import build, from_folder
from kvant.tokenizer import regexes as r
from kvant.tokenizer.pretokenizers import (
    PRE_TOKENIZERS,
    PreTokenizer,
    describe,
    find,
    known_names,
    recognise,
)

from .conftest import BYTE_LEVEL, byte_level_json, write_folder
from .texts import FIXED, texts

NO_REGEX = {**BYTE_LEVEL, "use_regex": False}


def _never() -> bool:
    return False


def _split(regex: str, **changes: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {**step, **changes}


def _sequence(*steps: object) -> dict[str, object]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _cutter(definition: object) -> Any:
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({"pre_tokenizer": definition, "model": model}))


PUBLISHED = {
    "gpt-2": ({**BYTE_LEVEL, "use_regex": True}, False),
    "llama-bpe": (_sequence(_split(r.LLAMA3), NO_REGEX), True),
    "dbrx": (_sequence(_split(r.LLAMA3), NO_REGEX), False),
    "qwen2": (_sequence(_split(r.QWEN2), NO_REGEX), False),
    "smollm": (
        _sequence({"type": "Digits", "individual_digits": True}, {**BYTE_LEVEL, "use_regex": True}),
        False,
    ),
    "deepseek-v3": (
        _sequence(
            _split(r"\p{N}{1,3}"),
            _split(r.CJK),
            _split(r.DEEPSEEK3.replace(r"\r\n", "\r\n")),
            NO_REGEX,
        ),
        False,
    ),
    "deepseek-coder": (
        _sequence(
            _split("[\r\n]"),
            _split(r"\s?\p{L}+"),
            _split(r"\s?\p{P}+"),
            _split(r.CJK_DEEPSEEK),
            {"type": "Digits", "individual_digits": True},
            NO_REGEX,
        ),
        False,
    ),
    "falcon": (
        _sequence(
            {"type": "Punctuation", "behavior": "Contiguous"},
            {**BYTE_LEVEL, "use_regex": True},
            {"type": "Digits", "individual_digits": False},
            _split("[0-9][0-9][0-9]"),
        ),
        False,
    ),
    "tekken": (_sequence(_split(r.TEKKEN), NO_REGEX), True),
    "gpt-4o": (_sequence(_split(r.GPT4O), NO_REGEX), False),
    "bloom": (_sequence(_split(r.BLOOM), NO_REGEX), False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_definitions(name: str) -> None:
    definition, ignore_merges = PUBLISHED[name]
    entry, differs = recognise(definition, ignore_merges, _never, "x")
    assert entry.name == name
    assert bool(differs) == (name in ("falcon", "tekken", "gpt-4o"))


@pytest.mark.parametrize("entry", PRE_TOKENIZERS, ids=lambda e: e.name)
def test_a_description_is_recognised_again(entry: PreTokenizer) -> None:
    found, _ = recognise(describe(entry), entry.ignore_merges, _never, "x")
    assert (found.splits, found.ignore_merges) == (entry.splits, entry.ignore_merges)


def test_spellings_mean_the_same() -> None:
    forms = [(e.splits, s) for e in PRE_TOKENIZERS for s in e.spellings]
    cutters = [
        tuple(_cutter(_sequence(*map(_split, form), NO_REGEX)).pre_tokenizer for form in pair)
        for pair in forms
    ]
    assert len(forms) > 8

    @settings(max_examples=150, deadline=None)
    @given(texts)
    def fuzz(text: str) -> None:
        # Only (?i:s) takes U+017F for an s; see regexes.py.
        text = text.replace("\u017f", "s")
        for first, second in cutters:
            assert first.pre_tokenize_str(text) == second.pre_tokenize_str(text)

    fuzz()


@pytest.mark.parametrize("regex", sorted(r.COVER_EVERYTHING))
def test_removing_all_but_the_matches_is_isolating_them(regex: str) -> None:
    isolated = _cutter(_sequence(_split(regex), NO_REGEX)).pre_tokenizer
    removed_step = _split(regex, behavior="Removed", invert=True)
    removed = _cutter(_sequence(removed_step, NO_REGEX)).pre_tokenizer

    @settings(max_examples=60, deadline=None)
    @given(texts)
    def fuzz(text: str) -> None:
        assert isolated.pre_tokenize_str(text) == removed.pre_tokenize_str(text)

    fuzz()
    flag = regex in (r.LLAMA3, r.spelt(r.LLAMA3), r.TEKKEN)
    if regex in (r.LLAMA3, r.QWEN2, r.GPT4O, r.TEKKEN):
        recognise(_sequence(removed_step, NO_REGEX), flag, _never, "x")


@pytest.mark.parametrize(
    "definition",
    [
        None,
        "ByteLevel",
        [],
        {},
        {"type": "Whitespace"},
        {"type": "Sequence", "pretokenizers": None},
        {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 65},
        {"type": "ByteLevel"},  # the library's default adds a prefix space
        {**BYTE_LEVEL, "add_prefix_space": True},
        _sequence(_split(r.QWEN2)),
        _sequence(_split(r.QWEN2), {**BYTE_LEVEL, "use_regex": True}),
        _sequence(_split(r.QWEN2, behavior="MergedWithNext"), NO_REGEX),
        _sequence(_split(r.QWEN2, invert=True), NO_REGEX),
        _sequence(_split(r"\p{N}{1,3}", behavior="Removed", invert=True), NO_REGEX),
        _sequence(_split(r.QWEN2 + "|x"), NO_REGEX),
        _sequence({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}, NO_REGEX),
        _sequence({"type": "Punctuation", "behavior": "Isolated"}, NO_REGEX),
        _sequence(NO_REGEX, _split(r.QWEN2)),
    ],
)
def test_anything_else_is_not_guessed(definition: object) -> None:
    with pytest.raises(UnsupportedError, match="--pre-tokenizer NAME"):
        recognise(definition, False, _never, "tokenizer.json")


def test_the_flag_matters_unless_it_does_not() -> None:
    definition = _sequence(_split(r.QWEN2), NO_REGEX)
    with pytest.raises(UnsupportedError, match="ignore_merges true"):
        recognise(definition, True, _never, "x")
    assert recognise(definition, True, lambda: True, "x")[0].name == "qwen2"


def test_ignore_merges_is_checked_against_the_vocabulary(tmp_path: Path) -> None:
    content = byte_level_json(pre_tokenizer=_sequence(_split(r.QWEN2), NO_REGEX))
    content["model"]["ignore_merges"] = True
    folder = write_folder(tmp_path / "a", tokenizer=content)
    assert from_folder(folder, 300).pre == "qwen2"
    content["model"]["vocab"]["unreachable"] = 290
    folder = write_folder(tmp_path / "b", tokenizer=content)
    with pytest.raises(UnsupportedError, match="ignore_merges true"):
        from_folder(folder, 300)


def test_a_name_can_be_passed(tmp_path: Path) -> None:
    content = byte_level_json(pre_tokenizer=_sequence({"type": "Whitespace"}, NO_REGEX))
    folder = write_folder(tmp_path / "a", tokenizer=content)
    with pytest.raises(UnsupportedError, match=r"Whitespace.*--pre-tokenizer NAME"):
        from_folder(folder, 300)
    given = from_folder(folder, 300, pre="qwen2")
    assert given.pre == "qwen2"
    assert "taken as given" in given.notes[0]
    assert from_folder(folder, 300, pre="megrez").pre == "megrez"
    with pytest.raises(UsageError, match="no pre-tokenizer called 'nonsense'"):
        from_folder(folder, 300, pre="nonsense")


def test_names_are_unique_and_found() -> None:
    names = known_names()
    assert len(set(names)) == len(names) > 60
    assert all(find(n, "x") for n in names)
    with pytest.raises(UnsupportedError, match="'kimi-k2' is not known"):
        find("kimi-k2", "model.gguf")


def test_words_of_a_tokenizer(tmp_path: Path) -> None:
    """No token reaches over the border of a word."""
    folder = write_folder(tmp_path / "a", tokenizer=byte_level_json())
    tokenizer = build(from_folder(folder, 300))
    cutter = _cutter(describe(find("gpt-2", "x"))).pre_tokenizer
    for text in FIXED:
        borders = {len(text[:e].encode()) for _, (_, e) in cutter.pre_tokenize_str(text)}
        ends = [0]
        for i in tokenizer.encode(text):
            ends.append(ends[-1] + len(tokenizer.token_bytes(i)))
        assert all(not any(a < b < c for b in borders) for a, c in pairwise(ends))
