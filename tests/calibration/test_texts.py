"""Texts become chunks: shares, evenness, what is too short."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.calibration import Encoded, Text, choose_chunks
from kvant.errors import UsageError


def text(name: str, chunks: int, weight: float = 1.0, first: int = 0) -> Encoded:
    """Token i of the text is i of ``first`` on."""
    return Encoded(name, weight, np.arange(first, first + chunks * 512 + 100, dtype=np.int32))


def test_one_text_as_a_whole() -> None:
    found = choose_chunks([text("a", 30)])
    assert found.ids.shape == (30, 512)
    assert np.array_equal(found.ids.reshape(-1), np.arange(30 * 512))
    assert found.texts == (Text("a", 1.0, 30 * 512),)
    assert choose_chunks([text("a", 400)]).ids.size == 65_536


def test_a_budget_is_taken_evenly_from_the_whole_text() -> None:
    found = choose_chunks([text("a", 30)], tokens=10 * 512 + 300)
    assert (found.ids[:, 0] // 512).tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    again = choose_chunks([text("a", 30)], tokens=10 * 512)
    assert found.digest == again.digest
    assert found.digest != choose_chunks([text("a", 30)], tokens=11 * 512).digest
    assert found.digest != choose_chunks([text("a", 30)], tokens=10 * 512, chunk=256).digest


def test_shares_are_kept() -> None:
    texts = [text("a", 100, 2.0), text("b", 40, 1.0), text("c", 90, 0.5)]
    found = choose_chunks(texts, tokens=70 * 512)
    assert [t.tokens // 512 for t in found.texts] == [40, 20, 10]
    # Without a budget, as many as the shortest allows: b has 40 of its 2/7.
    found = choose_chunks(texts)
    assert [t.tokens // 512 for t in found.texts] == [73, 37, 18]
    assert sum(t.tokens for t in found.texts) == 65_536
    texts[1] = text("b", 20, 1.0)
    assert [t.tokens // 512 for t in choose_chunks(texts).texts] == [40, 20, 10]


def test_bos_begins_every_chunk() -> None:
    found = choose_chunks([text("a", 8)], bos=7)
    assert (found.ids[:, 0] == 7).all()
    assert found.ids[0, 1:4].tolist() == [0, 1, 2]  # one before the text, as llama.cpp has it
    assert found.ids[1, 1] == 512


def test_chunks_of_other_lengths() -> None:
    assert choose_chunks([text("a", 8)], chunk=1024).ids.shape == (4, 1024)
    assert choose_chunks([text("a", 8)], max_context=128).ids.shape == (32, 128)
    with pytest.raises(UsageError, match="more than the model takes, which is 256"):
        choose_chunks([text("a", 8)], chunk=512, max_context=256)
    with pytest.raises(UsageError, match="at least 16 tokens, got 4"):
        choose_chunks([text("a", 8)], chunk=4)


def test_too_short() -> None:
    with pytest.raises(UsageError, match=r"a: .* too short.*gives 1,636 tokens, 4 .*\(2,048 tok"):
        choose_chunks([text("a", 3)])
    with pytest.raises(UsageError, match=r"10 chunks of 512 .* or ask for at most 4,608 tokens"):
        choose_chunks([text("a", 9)], tokens=5120)
    with pytest.raises(UsageError, match=r"b: .*2 chunks .*Give a longer text\."):
        choose_chunks([text("a", 9), text("b", 1)])
    with pytest.raises(UsageError, match="at least 2,048 tokens, got --tokens 100"):
        choose_chunks([text("a", 9)], tokens=100)
    with pytest.raises(UsageError, match="at least 4,096 tokens, got --tokens 2,048"):
        choose_chunks([text("a", 9)], tokens=2048, chunk=4096)
