"""Base and variants over one text, side by side: no logits file, no whole matrix of logits.

A batch of chunks goes through every model at once; their logits come in tiles of the same rows,
which are scored and forgotten. The base is run once however many variants there are. Memory is
what the runners hold plus a few megabytes; about 20 bytes a scored token and model are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvant.errors import DataError, UsageError
from kvant.evaluation.corpus import Corpus
from kvant.evaluation.divergence import divergence, same_top
from kvant.evaluation.perplexity import Distribution, Rows
from kvant.evaluation.results import EvalResult
from kvant.evaluation.runner import Logits, Runner, in_step
from kvant.evaluation.statistics import exponential, over_chunks
from kvant.files.source import quote

__all__ = ["Progress", "Subject", "check_vocabularies", "evaluate"]

# llama.cpp's batch: enough rows for matrix products to be efficient, little to hold.
_BATCH_TOKENS = 2048
# Four float64 buffers of this size stay within the second-level cache of current cores.
_WORK_BYTES = 1 << 18

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model to be measured: how to run it, and what the report says about it."""

    name: str
    runner: Runner
    vocabulary: Sequence[str] | None = None
    """The token texts in order of id, to tell that base and variant mean the same by an id."""
    path: str | None = None
    bytes: int | None = None
    bpw: float | None = None


def evaluate(
    base: Subject,
    variants: Sequence[Subject],
    corpus: Corpus,
    *,
    batch_tokens: int = _BATCH_TOKENS,
    work_bytes: int = _WORK_BYTES,
    progress: Progress | None = None,
) -> tuple[EvalResult, ...]:
    """Perplexity of ``base`` and ``variants``; divergence of each variant from the base.

    Args:
        base: what variants are compared with, or the only model, with no variants.
        variants: any number of models with the same vocabulary.
        corpus: the text, as token chunks of the base's tokenizer.
        batch_tokens: how many tokens go through a model at once, in whole chunks, at least one.
        work_bytes: size of each work buffer here; at least one row of float64 logits.
        progress: called as ``progress(done, total)`` at the start and after each batch, in tokens
            read, those of all models together.

    Returns:
        One result a model, the base first, then the variants in their order. The figures do not
        depend on ``batch_tokens``, ``work_bytes`` or the runners' tiles, as long as the runners'
        logits do not.

    Raises:
        UsageError: the vocabularies differ, or the token ids are outside them.
        DataError: a model gives NaN or infinity.
    """
    subjects = [base, *variants]
    check_vocabularies(base, variants, corpus)
    scores = [_Scores.empty(corpus) for _ in subjects]
    scorer = _Scorer(subjects, scores, corpus, work_bytes)
    runners = [subject.runner for subject in subjects]
    each = corpus.context * len(subjects)
    if progress is not None:
        progress(0, corpus.count * each)
    for index, tokens, targets in corpus.batches(max(1, batch_tokens // corpus.context)):
        for sequence, row, tiles in in_step(runners, tokens, corpus.first):
            column = row - corpus.first
            scorer.tile(index + sequence, column, tiles, targets[sequence])
        if progress is not None:
            progress((index + len(tokens)) * each, corpus.count * each)
    return tuple(
        _result(subject, score, corpus, None if subject is base else (base, scores[0]))
        for subject, score in zip(subjects, scores, strict=True)
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """What was found for each scored token of one model, all of shape [chunks, scored]."""

    nll: Rows
    kld: Rows
    same: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, corpus: Corpus) -> _Scores:
        shape = (corpus.count, corpus.scored)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape, np.bool_))


class _Scorer:
    """Scores tiles of logits, a few rows at a time, in buffers that stay in cache."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        scores: Sequence[_Scores],
        corpus: Corpus,
        work_bytes: int,
    ) -> None:
        vocab = subjects[0].runner.vocab_size
        self._subjects = subjects
        self._scores = scores
        self._corpus = corpus
        self._rows = max(1, work_bytes // (8 * vocab))
        self._buffers = [np.empty((self._rows, vocab)) for _ in range(4)]

    def tile(
        self, chunk: int, column: int, tiles: Sequence[Logits], targets: npt.NDArray[np.int32]
    ) -> None:
        """Score the same rows of all models, those from ``column`` of the chunk's scored ones."""
        height = tiles[0].shape[0]
        for start in range(0, height, self._rows):
            stop = min(start + self._rows, height)
            at = slice(column + start, column + stop)
            self._block(chunk, at, [tile[start:stop] for tile in tiles], targets[at])

    def _block(
        self, chunk: int, at: slice, tiles: Sequence[Logits], targets: npt.NDArray[np.int32]
    ) -> None:
        for subject, logits in zip(self._subjects, tiles, strict=True):
            self._check_finite(subject, chunk, logits)
        buffers = [buffer[: len(targets)] for buffer in self._buffers]
        base = Distribution.of(tiles[0], buffers[0], buffers[1])
        self._scores[0].nll[chunk, at] = base.surprise(targets)
        for score, logits in zip(self._scores[1:], tiles[1:], strict=True):
            variant = Distribution.of(logits, buffers[2], buffers[3])
            score.nll[chunk, at] = variant.surprise(targets)
            score.kld[chunk, at] = divergence(base, variant)
            score.same[chunk, at] = same_top(tiles[0], logits)

    def _check_finite(self, subject: Subject, chunk: int, logits: Logits) -> None:
        if not np.isfinite(logits).all():
            raise DataError(
                f"{subject.name}: NaN or infinity among its predictions in chunk {chunk + 1} of "
                f"{self._corpus.count}, expected finite logits. Nothing was measured; check the "
                "weights with `kvant verify`."
            )


def _result(
    subject: Subject, score: _Scores, corpus: Corpus, base: tuple[Subject, _Scores] | None
) -> EvalResult:
    chunk_nll = score.nll.mean(axis=1)
    nll = over_chunks(chunk_nll)
    try:
        perplexity = exponential(nll)
    except OverflowError:
        raise DataError(
            f"{subject.name}: its perplexity is too large for a number (exp of {nll.value:.0f}). "
            "The model is broken; check the weights with `kvant verify`."
        ) from None
    result = EvalResult(
        name=subject.name,
        path=subject.path,
        bytes=subject.bytes,
        bpw=subject.bpw,
        corpus=corpus.digest,
        context=corpus.context,
        chunks=corpus.count,
        tokens=corpus.count * corpus.scored,
        perplexity=perplexity.value,
        perplexity_se=perplexity.se,
        chunk_nll=chunk_nll,
    )
    return result if base is None else _compared(result, score, *base)


def _compared(result: EvalResult, score: _Scores, base: Subject, base_score: _Scores) -> EvalResult:
    chunk_kld = score.kld.mean(axis=1)
    kld = over_chunks(chunk_kld)
    same = over_chunks(score.same.mean(axis=1))
    ratio = over_chunks(result.chunk_nll - base_score.nll.mean(axis=1))
    median, p99 = np.quantile(score.kld, (0.5, 0.99))
    return replace(
        result,
        base=base.name,
        kld=kld.value,
        kld_se=kld.se,
        kld_median=float(median),
        kld_p99=float(p99),
        kld_max=float(score.kld.max()),
        same_top=same.value,
        same_top_se=same.se,
        ln_ppl_ratio=ratio.value,
        ln_ppl_ratio_se=ratio.se,
        chunk_kld=chunk_kld,
    )


def check_vocabularies(base: Subject, variants: Sequence[Subject], corpus: Corpus) -> None:
    """Check that a corpus of ``base``'s tokens means the same to all models.

    Raises:
        UsageError: the vocabularies differ, or the token ids are outside them.
    """
    size = base.runner.vocab_size
    low, high = int(corpus.chunks.min()), int(corpus.chunks.max())
    if low < 0 or high >= size:
        raise UsageError(
            f"{base.name}: the text has token id {high if high >= size else low}, the model knows "
            f"ids 0 to {size - 1}. Use the tokenizer this model was trained with."
        )
    for variant in variants:
        if variant.runner.vocab_size != size:
            raise UsageError(
                f"{variant.name} predicts {variant.runner.vocab_size} tokens, the base "
                f"{base.name} {size}. Compare models with the same vocabulary."
            )
        _check_meaning(base, variant)


def _check_meaning(base: Subject, variant: Subject) -> None:
    ours, theirs = base.vocabulary, variant.vocabulary
    if ours is None or theirs is None or ours is theirs:
        return
    pairs = zip(ours, theirs, strict=False)
    differing = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if differing is not None:
        one, other = quote(theirs[differing]), quote(ours[differing])
        found = f"token {differing} is {one} in one, {other} in the other"
    elif len(ours) != len(theirs):
        found = f"one has {len(theirs)} tokens, the other {len(ours)}"
    else:
        return
    raise UsageError(
        f"{variant.name} and the base {base.name} have different tokenizers: {found}. "
        "Compare models with the same tokenizer."
    )
