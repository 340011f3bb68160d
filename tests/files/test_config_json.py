"""JSON reading: what is accepted, and the limits (what is refused is in the attack corpus)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.errors import FileFormatError
from kvant.files.config_json import MAX_DEPTH, parse_json, read_json

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(value=_json, ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
def test_json_is_read(value: Any, ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert parse_json(raw, "x", 1_000_000) == value


def test_depth() -> None:
    inside = b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH
    parse_json(inside, "x", 1_000)
    for beyond in (b"[" + inside + b"]", b'{"a":' + inside + b"}"):
        with pytest.raises(FileFormatError, match="nested deeper than 64"):
            parse_json(beyond, "x", 1_000)


def test_size_counts_as_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps("a" * 98))
    assert read_json(path, 100) == "a" * 98
    for text in ('"é' + "a" * 30 + '"', '"\\u00e9' + "a" * 30 + '"'):
        path.write_text(text)
        with pytest.raises(FileFormatError, match="in memory"):
            read_json(path, 100)
        assert read_json(path, 200) == "é" + "a" * 30


def test_values_are_counted() -> None:
    assert parse_json(b"[1,2,3]", "x", 100, max_values=3) == [1, 2, 3]
    with pytest.raises(FileFormatError, match="at most 2 values"):
        parse_json(b"[1,2,3]", "x", 100, max_values=2)


def test_surrogate_pairs_are_whole_or_refused() -> None:
    assert parse_json(b'"\\ud83d\\ude00"', "x", 100) == "😀"
    for half in (b'"\\ud83d"', b'{"\\ude00":1}', b'[{"a":["\\ude00\\ud83d"]}]'):
        with pytest.raises(FileFormatError, match="half a surrogate pair"):
            parse_json(half, "x", 100)
    # An escaped backslash before the letters is no escape.
    assert parse_json(b'"\\\\ud83d"', "x", 100) == "\\ud83d"
