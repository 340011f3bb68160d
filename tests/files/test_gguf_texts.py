"""Texts in a GGUF header: walked over by the core, decoded when somebody looks."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from file_strategies import texts
from hypothesis import example, given
from hypothesis import strategies as st

from kvant._core import walk_texts
from kvant.errors import FileFormatError
from kvant.files.gguf import header_bytes, metadata_bytes, read_gguf, strings
from kvant.files.gguf_value import Texts, Value, ValueType


def stored(words: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(word)) + word for word in words)


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(word=st.binary(max_size=12) | texts.map(str.encode))
@example(b"\xed\xa0\x80")  # half a surrogate pair
@example(b"\xf4\x90\x80\x80")  # above 10FFFF
@example(b"\xc0\x80")  # overlong, as are the next two
@example(b"\xe0\x9f\xbf")
@example(b"\xf0\x8f\xbf\xbf")
@example(b"eight   \x80")
@example("ab\u00e9\u4e2d\U0001f600".encode())
def test_what_is_utf8_is_what_python_decodes(word: bytes) -> None:
    raw = stored([b"before", word])
    count, end, valid = walk_texts(raw, 0, 9)
    assert (count, valid) == ((2, True) if is_utf8(word) else (1, False))
    assert end == (len(raw) if valid else 14)


@given(raw=st.binary(max_size=40), start=st.integers(0, 40), most=st.integers(0, 4))
def test_no_bytes_lead_outside(raw: bytes, start: int, most: int) -> None:
    start = min(start, len(raw))
    count, end, _ = walk_texts(raw, start, most)
    assert count <= most
    assert start + 8 * count <= end <= len(raw)


@pytest.mark.parametrize("length", [2, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8])
def test_a_length_beyond_the_data_stops_the_walk(length: int) -> None:
    raw = stored([b"a"]) + struct.pack("<Q", length) + b"b"
    assert walk_texts(raw, 0, 5) == (1, 9, True)


def test_a_start_outside_is_refused() -> None:
    for start in (-1, 4):
        with pytest.raises(ValueError, match="outside"):
            walk_texts(b"abc", start, 1)


@given(words=st.lists(texts, max_size=9))
def test_texts_are_the_list_they_hold(words: list[str]) -> None:
    held = Texts(stored([w.encode() for w in words]), len(words))
    assert len(held) == len(words)
    assert held == words
    assert words == held
    assert list(held) == words
    assert held[: len(words)] == words
    assert (held == [*words, "more"]) is False
    as_value = Value(ValueType.ARRAY, held, ValueType.STRING)
    assert as_value == strings(words)
    assert metadata_bytes({"k": as_value}) == metadata_bytes({"k": strings(words)})


@pytest.mark.parametrize("count", [1, 3, 40_000])
def test_bad_utf8_is_named(count: int, tmp_path: Path) -> None:
    header, _ = header_bytes({"t": strings([f"token {i:6}" for i in range(count)])}, [])
    last = f"token {count - 1:6}".encode()
    path = tmp_path / "a.gguf"
    path.write_bytes(header.replace(last, last[:-1] + b"\xff"))
    with pytest.raises(FileFormatError, match=f"item {count - 1} of metadata 't' is not UTF-8"):
        read_gguf(path)
