"""Stop strings, wherever tokens end, and tokens that end a text."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.engine.stopping import StopStrings, end_tokens
from kvant.errors import UsageError
from kvant.tokenizer.build import Tokenizer

_texts = st.text("ab\n", max_size=30)
_stops = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def _textbook(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What stands before the string that is complete first."""
    for end in range(1, len(text) + 1):
        done = [s for s in stops if text[:end].endswith(s)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(text=_texts, stops=_stops, cuts=st.lists(st.integers(0, 30)))
def test_wherever_the_pieces_are_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    watch = StopStrings(stops)
    shown = ""
    for start, end in pairwise(places):
        shown += watch.add(text[start:end])
        if watch.matched:
            break
        seen = text[:end]
        waiting = seen[len(shown) :]
        assert seen == shown + waiting
        possible = [seen[-n:] for n in range(1, len(seen) + 1)]
        starts = [p for p in possible if any(s.startswith(p) and s != p for s in stops)]
        assert waiting == max(starts, key=len, default="")  # held back no longer than needed
    else:
        shown += watch.finish()
    assert (shown, watch.matched) == _textbook(text, stops)


def test_strings_that_repeat_themselves_cost_no_more() -> None:
    """The strings are a client's, and everybody's text waits while they are looked for."""
    watch = StopStrings(["a" * (i + 1) * 2 + "b" * 3000 for i in range(64)])
    started = time.process_time()
    for _ in range(500):
        watch.add("aaaa")
    assert time.process_time() - started < 2  # it was two minutes
    assert watch.finish() == "a" * 128


def test_one_string_or_several() -> None:
    watch = StopStrings("###")
    assert [watch.add(p) for p in ("a#", "#b", "##", "#c")] == ["a", "##b", "", ""]
    assert watch.matched == "###"
    assert StopStrings().add("anything") == "anything"


@pytest.mark.parametrize(
    ("strings", "words"),
    [([""], "empty"), (["a"] * 65, "at most 64"), (["a" * 5000], "up to 5000")],
)
def test_strings_that_do_not_do(strings: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        StopStrings(strings)


def test_tokens_that_end_a_text(tokenizer: Tokenizer) -> None:
    texts = {tokenizer.definition.tokens[i] for i in end_tokens(tokenizer.definition)}
    assert texts == {"<|endoftext|>", "<|im_end|>"}
