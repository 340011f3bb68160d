"""Cutting a text into chunks."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.errors import UsageError
from kvant.evaluation import Corpus


def test_chunks_with_bos():
    corpus = Corpus.from_tokens(range(100, 125), bos=1, context=8)
    assert corpus.chunks.tolist() == [
        [1, 100, 101, 102, 103, 104, 105, 106],
        [1, 108, 109, 110, 111, 112, 113, 114],
        [1, 116, 117, 118, 119, 120, 121, 122],
    ]
    assert (corpus.count, corpus.context, corpus.first, corpus.scored) == (3, 8, 4, 3)
    assert corpus.chunks.dtype == np.int32


def test_chunks_without_bos():
    corpus = Corpus.from_tokens(np.arange(17, dtype=np.uint32), context=8)
    assert corpus.chunks.tolist() == [list(range(8)), list(range(8, 16))]


def test_batches_read_all_but_the_last_and_score_the_second_half():
    corpus = Corpus.from_tokens(range(24), context=8)
    batches = list(corpus.batches(2))
    assert [index for index, _, _ in batches] == [0, 2]
    _, tokens, targets = batches[0]
    assert tokens.tolist() == [list(range(7)), list(range(8, 15))]
    assert targets.tolist() == [[5, 6, 7], [13, 14, 15]]
    # Row i of what is read predicts target i - first.
    assert tokens.shape[1] - corpus.first == targets.shape[1] == corpus.scored


def test_odd_contexts_follow_the_same_rule():
    corpus = Corpus.from_tokens(range(14), context=7)
    assert (corpus.first, corpus.scored) == (3, 3)
    assert next(corpus.batches(1))[2].tolist() == [[4, 5, 6]]


def test_default_context_is_512_or_what_the_model_takes():
    assert Corpus.from_tokens(range(2000)).context == 512
    assert Corpus.from_tokens(range(2000), max_context=4096).context == 512
    assert Corpus.from_tokens(range(2000), max_context=128).context == 128
    assert Corpus.from_tokens(range(2000), context=256, max_context=256).context == 256
    with pytest.raises(UsageError, match="300 tokens is more than the model takes, which is 256"):
        Corpus.from_tokens(range(2000), context=300, max_context=256)
    with pytest.raises(UsageError, match="at least 4 tokens, got 3"):
        Corpus.from_tokens(range(2000), context=3)


def test_too_short_a_text_says_what_is_needed():
    with pytest.raises(UsageError, match=r"gives 1001 tokens, expected at least 1024.* most 500\."):
        Corpus.from_tokens(range(1000), bos=1)
    assert Corpus.from_tokens(range(1023), bos=1).count == 2
    assert Corpus.from_tokens(range(1001), context=500).count == 2
    with pytest.raises(UsageError, match=r"gives 0 tokens.*Give a longer text\.$"):
        Corpus.from_tokens([])


def test_max_chunks():
    assert Corpus.from_tokens(range(100), context=10, max_chunks=3).count == 3
    assert Corpus.from_tokens(range(100), context=10, max_chunks=300).count == 10
    for few in (0, 1, -1):
        with pytest.raises(UsageError, match="at least 2 chunks"):
            Corpus.from_tokens(range(100), context=10, max_chunks=few)


def test_digest_tells_texts_and_contexts_apart():
    a = Corpus.from_tokens(range(32), context=8)
    assert a.digest == Corpus.from_tokens(range(33), context=8).digest
    assert a.digest != Corpus.from_tokens(range(32), context=16).digest
    assert a.digest != Corpus.from_tokens(range(1, 33), context=8).digest
    assert a.digest != Corpus.from_tokens(range(31), bos=0, context=8).digest
