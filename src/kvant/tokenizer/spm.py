"""SentencePiece-style BPE: what scores mean as merges, and merges as scores.

A SentencePiece model has a score for each token and merges, among all neighbours whose union is a
token, the pair with the highest-scoring union, the leftmost where several are equal. The
``tokenizers`` library has a list of merges in order of rank instead. ``merges_from_scores`` and
``scores_from_merges`` translate, and say when the translation is not exact; ``ScoreMerger`` is the
algorithm itself, for vocabularies that no list of merges can describe, and the judge in tests.

Sources: Kudo and Richardson 2018, "SentencePiece"; ``llm_tokenizer_spm_session`` in llama.cpp's
``src/llama-vocab.cpp``; the ``BPE`` model of the ``tokenizers`` library.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
import numpy.typing as npt

from kvant.errors import UnsupportedError
from kvant.files.source import quote

__all__ = ["MergeList", "ScoreMerger", "merges_from_scores", "scores_from_merges"]

#: Finding the splits of a token takes time by the square of its length. Published
#: SentencePiece vocabularies have no token above 64 characters and 2 million characters in all.
MAX_PIECE_CHARS = 256
MAX_PIECE_CHARS_TOTAL = 4_000_000


@dataclass(frozen=True, slots=True)
class MergeList:
    """Merges in order of rank. ``exact``: running them is the same as merging by score."""

    merges: list[tuple[str, str]]
    exact: bool


def _splits(token: str, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The ways to make ``token`` of two tokens, longest left side first."""
    found: list[tuple[str, str]] = []
    for at in range(len(token) - 1, 0, -1):
        left = token[:at]
        if left in vocab:
            right = token[at:]
            if right in vocab:
                found.append((left, right))
    return found


def _check_lengths(tokens: Sequence[str], where: str) -> None:
    longest = max(map(len, tokens))
    total = sum(map(len, tokens))
    if longest > MAX_PIECE_CHARS or total > MAX_PIECE_CHARS_TOTAL:
        raise UnsupportedError(
            f"{where}: tokens of up to {longest} characters, {total} in all; kvant handles "
            f"SentencePiece tokens of up to {MAX_PIECE_CHARS}, {MAX_PIECE_CHARS_TOTAL} in all. "
            "Check that the file is a tokenizer of a language model."
        )


def merges_from_scores(
    vocab: Mapping[str, int], scores: npt.NDArray[np.float32], where: str
) -> MergeList:
    """The merges that ``scores`` [vocab] imply, best first.

    ``vocab`` maps each token to its id, in the order of ids. The list is not exact where merges
    cannot say what scores do: different tokens with equal scores (except runs of one character,
    see ``_in_rank``), a token with a character that is no token itself, or one that two pairs
    can make which overlap in the text (see ``_overlaps``).

    Raises:
        UnsupportedError: tokens too long for a tokenizer of this kind.
    """
    tokens = list(vocab)
    _check_lengths(tokens, where)
    merges: list[tuple[str, str]] = []
    exact = True
    values = scores.tolist()
    order = np.argsort(-scores, kind="stable").tolist()
    for _, group in groupby(order, values.__getitem__):
        ties = {t: found for i in group if (found := _splits(t := tokens[i], vocab))}
        exact = exact and not any(_overlaps(t, found) for t, found in ties.items())
        if len(ties) > 1:
            exact = exact and _is_run("".join(ties))
            merges += sorted(chain.from_iterable(ties.values()), key=_in_rank)
        else:
            merges += chain.from_iterable(ties.values())
    return MergeList(merges, exact and not _joins_strangers(tokens, vocab))


def _overlaps(token: str, splits: list[tuple[str, str]]) -> bool:
    """Whether three tokens a, b, d may lie in a row with ab = bd = ``token`` and b the longest.

    SentencePiece then merges ab, which is further left, and the library bd, whose left side is
    longer and so comes first in the list; for a b that is shorter than a both merge ab. Runs of
    one character grow from the left, so this does not come up in them.
    """
    return any(
        len(right) > len(left)
        and token.startswith(right)
        and (right, token[len(right) :]) in splits
        for left, right in splits
    ) and not _is_run(token)


def _is_run(token: str) -> bool:
    """Whether ``token`` is one character again and again."""
    return token.count(token[0]) == len(token)


def _in_rank(merge: tuple[str, str]) -> tuple[int, int]:
    """The order of merges whose tokens have equal scores: longest left side first.

    Published vocabularies have such ties between runs of spaces. SentencePiece takes the leftmost
    pair, so a run grows from its left end. Longest left side first does the same in a list of
    merges: wherever a run has begun to grow, that is where it goes on.
    """
    return -len(merge[0]), -len(merge[1])


def _joins_strangers(tokens: Sequence[str], vocab: Mapping[str, int]) -> bool:
    """Whether some token can form from a character that is not a token."""
    strangers = {c for c in set("".join(tokens)) if c not in vocab}
    if not strangers:
        return False

    def formable(part: str) -> bool:
        return len(part) == 1 or part in vocab

    return any(
        formable(t[:at]) and formable(t[at:])
        for t in tokens
        if not strangers.isdisjoint(t)
        for at in range(1, len(t))
    )


def scores_from_merges(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], where: str
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Scores [vocab] under which merging by score does what ``merges`` in order do.

    Returns the scores and the differences that remain, as sentences: pairs that scores would
    merge and the list does not have.

    Raises:
        UnsupportedError: the order of the merges is not the order of any scores, because two
            ways to make one token have merges of other tokens between them.
    """
    tokens = list(vocab)
    _check_lengths(tokens, where)
    rank = _ranks(merges, where)
    scores = np.zeros(len(tokens), np.float32)
    listed = set(merges)
    extra: list[tuple[str, str]] = []
    rest = len(merges)
    for i, token in enumerate(tokens):
        if token in rank:
            scores[i] = -rank[token]
        elif len(token) == 1:  # as SentencePiece orders them; no merge makes them
            scores[i] = -rest
            rest += 1
        if len(token) > 1:
            extra += (s for s in _splits(token, vocab) if s not in listed)
    if not extra:
        return scores, []
    (left, right), count = extra[0], len(extra)
    return scores, [
        f"llama.cpp will merge {count} pairs of tokens that the file does not list, such as "
        f"{quote(left)} and {quote(right)}, so some ids may differ."
    ]


def _ranks(merges: Sequence[tuple[str, str]], where: str) -> dict[str, int]:
    """Token -> a number that orders tokens as the merges do; equal for runs that interleave."""
    last = {left + right: i for i, (left, right) in enumerate(merges)}
    rank: dict[str, int] = {}
    start = 0
    while start < len(merges):
        # The shortest stretch whose tokens have no merges beyond it: mostly one token's.
        at, end = start, start + 1
        while at < end:
            end = max(end, last["".join(merges[at])] + 1)
            at += 1
        stretch = list(merges[start:end])
        tokens = dict.fromkeys("".join(m) for m in stretch)
        if len(tokens) > 1 and not (
            _is_run("".join(tokens)) and stretch == sorted(stretch, key=_in_rank)
        ):
            first, second = list(tokens)[:2]
            raise UnsupportedError(
                f"{where}: the merges that make {quote(first)} and {quote(second)} are in an order "
                "that no scores give, and GGUF holds scores for this kind of tokenizer. Convert "
                "from the tokenizer.model the file was made from."
            )
        rank.update(dict.fromkeys(tokens, start))
        start = end
    return rank


class ScoreMerger:
    """Merging by score, one step at a time, with a heap: about a microsecond a character.

    ``fallback`` maps each byte to its token, where the vocabulary has byte tokens; ``unknown`` is
    the token for what has none.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        scores: npt.NDArray[np.float32],
        fallback: Mapping[int, int],
        unknown: int | None,
    ) -> None:
        self._vocab = vocab
        self._scores = scores.tolist()
        self._fallback = fallback
        self._unknown = unknown

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, in which spaces are ``▁`` already."""
        vocab, scores = self._vocab, self._scores
        parts = list(text)
        right = [*range(1, len(parts)), -1]
        left = list(range(-1, len(parts) - 1))
        heap: list[tuple[float, int, int, str]] = []

        def offer(a: int, b: int) -> None:
            if a >= 0 and b >= 0:
                union = parts[a] + parts[b]
                found = vocab.get(union)
                if found is not None:
                    heapq.heappush(heap, (-scores[found], a, b, union))

        for at in range(len(parts) - 1):
            offer(at, at + 1)
        while heap:
            _, a, b, union = heapq.heappop(heap)
            # Stale once either side has merged with another: empty, or longer than it was.
            if not parts[a] or not parts[b] or len(parts[a]) + len(parts[b]) != len(union):
                continue
            parts[a], parts[b] = union, ""
            right[a] = right[b]
            if right[b] >= 0:
                left[right[b]] = a
            offer(left[a], a)
            offer(a, right[a])
        return [i for part in parts if part for i in self._ids(part)]

    def _ids(self, part: str) -> list[int]:
        found = self._vocab.get(part)
        if found is not None:
            return [found]
        ids = [self._fallback.get(b) for b in part.encode()]
        known = [i for i in ids if i is not None]
        if len(known) == len(ids):
            return known
        return [] if self._unknown is None else [self._unknown]
