"""Scores as merges and merges as scores, judged by merging one step at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvant.errors import UnsupportedError
from kvant.tokenizer.spm import (
    MAX_PIECE_CHARS,
    ScoreMerger,
    merges_from_scores,
    scores_from_merges,
)

words = st.text("ab", min_size=2, max_size=6)
inputs = st.text("ab", max_size=30)


def _slowly(vocab: dict[str, int], scores: np.ndarray, text: str) -> list[str]:
    """SentencePiece's rule as it is written: look at all pairs, merge the best, again."""
    parts = list(text)
    while True:
        pairs = [
            (-scores[vocab[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in vocab
        ]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _library(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    return Tokenizer(BPE(vocab, merges))


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {t: i for i, t in enumerate(dict.fromkeys(["a", "b", *tokens]))}


@settings(max_examples=400, deadline=None)
@given(st.lists(words, max_size=12), st.lists(st.integers(0, 6), min_size=14, max_size=14), inputs)
def test_the_heap_does_what_the_rule_says(tokens: list[str], values: list[int], text: str) -> None:
    vocab = _numbered(tokens)
    scores = np.array(values[: len(vocab)], np.float32)
    merger = ScoreMerger(vocab, scores, {}, None)
    assert merger.encode(text) == [vocab[p] for p in _slowly(vocab, scores, text)]


@settings(max_examples=1500, deadline=None)
@given(st.lists(words, max_size=14), st.randoms(use_true_random=False), st.booleans(), inputs)
def test_an_exact_list_of_merges_does_the_same(
    tokens: list[str], random: Any, ties: bool, text: str
) -> None:
    vocab = _numbered(tokens)
    values = list(range(len(vocab)))
    random.shuffle(values)
    # Runs of one character may have equal scores.
    scores = np.array(
        [-99 if ties and set(t) == {"a"} else v for t, v in zip(vocab, values, strict=True)],
        np.float32,
    )
    found = merges_from_scores(vocab, scores, "x")
    assume(found.exact)
    expected = [vocab[p] for p in _slowly(vocab, scores, text)]
    assert _library(vocab, found.merges).encode(text).ids == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(words, max_size=14), st.randoms(use_true_random=False), inputs)
def test_scores_of_merges_are_the_scores_again(tokens: list[str], random: Any, text: str) -> None:
    vocab = _numbered(tokens)
    values = list(range(len(vocab)))
    random.shuffle(values)
    first = merges_from_scores(vocab, np.array(values, np.float32), "x")
    scores, differences = scores_from_merges(vocab, first.merges, "x")
    assert differences == []
    assert merges_from_scores(vocab, scores, "x").merges == first.merges


def test_runs_that_interleave_have_one_score() -> None:
    vocab = _numbered(["aa", "aaa", "aaaa", "ab"])
    scores = np.array([0, 0, -9, -9, -9, -1], np.float32)
    found = merges_from_scores(vocab, scores, "x")
    assert found.exact
    assert found.merges[0] == ("a", "b")
    again, differences = scores_from_merges(vocab, found.merges, "x")
    assert differences == []
    assert again[2] < again[3] == again[4] < again[5]
    assert merges_from_scores(vocab, again, "x").merges == found.merges


@pytest.mark.parametrize(
    "tokens",
    [
        ["ab", "ba"],  # equal scores of different tokens
        ["cab", "ab"],  # c is no token
        ["ab", "ba", "aba", "ababa"],  # ab + aba and aba + ba overlap
    ],
)
def test_what_merges_cannot_say(tokens: list[str]) -> None:
    vocab = _numbered(tokens)
    equal = tokens[0] == "ab" and len(tokens) == 2
    scores = np.zeros(len(vocab), "f4") if equal else -np.arange(len(vocab), dtype="f4")
    assert not merges_from_scores(vocab, scores, "x").exact


def test_an_order_that_no_scores_give() -> None:
    vocab = _numbered(["ab", "aba", "ba"])
    merges = [("a", "b"), ("ab", "a"), ("b", "a"), ("a", "ba")]
    with pytest.raises(UnsupportedError, match="an order that no scores give"):
        scores_from_merges(vocab, merges, "tokenizer.json")


def test_merges_that_are_not_listed_are_reported() -> None:
    vocab = _numbered(["ab", "ba"])
    _, differences = scores_from_merges(vocab, [("a", "b")], "x")
    assert len(differences) == 1
    assert "1 pairs" in differences[0]


def test_tokens_too_long_for_a_vocabulary() -> None:
    vocab = _numbered(["a" * (MAX_PIECE_CHARS + 1)])
    with pytest.raises(UnsupportedError, match="tokens of up to 257 characters"):
        merges_from_scores(vocab, np.zeros(3, np.float32), "x")


def test_bytes_and_the_unknown() -> None:
    vocab = {"a": 0, "<0xC3>": 1, "<0xA9>": 2, "<unk>": 3}
    scores = np.zeros(4, np.float32)
    merger = ScoreMerger(vocab, scores, {0xC3: 1, 0xA9: 2}, 3)
    assert merger.encode("aéaö") == [0, 1, 2, 0, 3]
    assert ScoreMerger(vocab, scores, {}, None).encode("aé") == [0]
