"""Base and variants over one text, side by side: no logits file, no whole matrix of logits.

A batch of chunks goes through every model at once; their logits come in tiles of the same rows,
which are scored and forgotten. The base is run once however many variants there are. Memory is
what the runners hold and one tile of each; about 20 bytes a scored token and model are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvant.errors import DataError, UsageError
from kvant.evaluation.corpus import Corpus
from kvant.evaluation.results import EvalResult
from kvant.evaluation.runner import Logits, Runner, in_step
from kvant.evaluation.scoring import NotFinite, Rows, score_rows
from kvant.evaluation.statistics import exponential, over_chunks
from kvant.files.source import quote

__all__ = ["Progress", "Subject", "check_vocabularies", "evaluate"]

# llama.cpp's batch: enough rows for matrix products to be efficient, little to hold.
_BATCH_TOKENS = 2048

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
    format: str | None = None
    runtime: str | None = None
    """What runs it, as the table says it."""


def evaluate(
    base: Subject,
    variants: Sequence[Subject],
    corpus: Corpus,
    *,
    batch_tokens: int = _BATCH_TOKENS,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[EvalResult, ...]:
    """Perplexity of ``base`` and ``variants``; divergence of each variant from the base.

    Args:
        base: what variants are compared with, or the only model, with no variants.
        variants: any number of models with the same vocabulary.
        corpus: the text, as token chunks of the base's tokenizer.
        batch_tokens: how many tokens go through a model at once, in whole chunks, at least one.
        threads: processors for scoring; runners have their own.
        progress: called as ``progress(done, total)`` at the start and after each batch, in tokens
            read, those of all models together.

    Returns:
        One result a model, the base first, then the variants in their order. The figures do not
        depend on ``batch_tokens``, ``threads`` or the runners' tiles, as long as the runners'
        logits do not.

    Raises:
        UsageError: the vocabularies differ, or the token ids are outside them.
        DataError: a model gives NaN or infinity.
    """
    subjects = [base, *variants]
    check_vocabularies(base, variants, corpus)
    scorer = _Scorer(subjects, corpus, threads)
    runners = [subject.runner for subject in subjects]
    each = corpus.context * len(subjects)
    if progress is not None:
        progress(0, corpus.count * each)
    clock = _Clock(len(subjects))
    for index, tokens, targets in corpus.batches(max(1, batch_tokens // corpus.context)):
        seconds = clock.batch(tokens.size)
        for sequence, row, tiles in in_step(runners, tokens, corpus.first, seconds=seconds):
            scorer.tile(index + sequence, row - corpus.first, tiles, targets[sequence])
            del tiles  # or they would stay in memory while the next ones are computed
        if progress is not None:
            progress((index + len(tokens)) * each, corpus.count * each)
    results = [
        replace(_result(subject, nll, corpus), read_rate=rate)
        for subject, nll, rate in zip(subjects, scorer.nll, clock.rates(), strict=True)
    ]
    compared = zip(results[1:], scorer.kld, scorer.same, strict=True)
    return (results[0], *(_compared(r, kld, same, results[0]) for r, kld, same in compared))


class _Clock:
    """How long each runner took, without the first batch, in which models are loaded."""

    def __init__(self, runners: int) -> None:
        self._batches: list[tuple[int, list[float]]] = []
        self._runners = runners

    def batch(self, tokens: int) -> list[float]:
        """The seconds of each runner for a batch of so many tokens, to be added to."""
        self._batches.append((tokens, [0.0] * self._runners))
        return self._batches[-1][1]

    def rates(self) -> list[float | None]:
        """Tokens a second of each runner; None where one batch was all."""
        later = self._batches[1:]
        if not later:
            return [None] * self._runners
        tokens = sum(count for count, _ in later)
        return [tokens / sum(each) for each in zip(*(s for _, s in later), strict=True)]


class _Scorer:
    """Scores tiles of logits and keeps what was found for each scored token."""

    def __init__(self, subjects: Sequence[Subject], corpus: Corpus, threads: int) -> None:
        shape = (corpus.count, corpus.scored)
        self.nll: Rows = np.zeros((len(subjects), *shape))
        self.kld: Rows = np.zeros((len(subjects) - 1, *shape))
        self.same = np.zeros((len(subjects) - 1, *shape), np.bool_)
        self._subjects = subjects
        self._corpus = corpus
        self._threads = threads

    def tile(
        self, chunk: int, column: int, tiles: Sequence[Logits], targets: npt.NDArray[np.int32]
    ) -> None:
        """Score the same rows of all models, those from ``column`` of the chunk's scored ones."""
        at = slice(column, column + len(tiles[0]))
        try:
            found = score_rows(tiles, targets[at], threads=self._threads)
        except NotFinite as bad:
            raise DataError(
                f"{self._subjects[bad.model].name}: NaN or infinity among its predictions in chunk "
                f"{chunk + 1} of {self._corpus.count}, expected finite logits. Nothing was "
                "measured; check the weights with `kvant verify`."
            ) from None
        self.nll[:, chunk, at] = found.nll
        self.kld[:, chunk, at] = found.kld
        self.same[:, chunk, at] = found.same


def _result(subject: Subject, token_nll: Rows, corpus: Corpus) -> EvalResult:
    chunk_nll = token_nll.mean(axis=1)
    nll = over_chunks(chunk_nll)
    try:
        perplexity = exponential(nll)
    except OverflowError:
        raise DataError(
            f"{subject.name}: its perplexity is too large for a number (exp of {nll.value:.0f}). "
            "The model is broken; check the weights with `kvant verify`."
        ) from None
    return EvalResult(
        name=subject.name,
        path=subject.path,
        bytes=subject.bytes,
        bpw=subject.bpw,
        format=subject.format,
        runtime=subject.runtime,
        corpus=corpus.digest,
        context=corpus.context,
        chunks=corpus.count,
        tokens=corpus.count * corpus.scored,
        perplexity=perplexity.value,
        perplexity_se=perplexity.se,
        chunk_nll=chunk_nll,
    )


def _compared(
    result: EvalResult, token_kld: Rows, token_same: npt.NDArray[np.bool_], base: EvalResult
) -> EvalResult:
    chunk_kld = token_kld.mean(axis=1)
    kld = over_chunks(chunk_kld)
    same = over_chunks(token_same.mean(axis=1))
    ratio = over_chunks(result.chunk_nll - base.chunk_nll)
    median, p99 = np.quantile(token_kld, (0.5, 0.99))
    return replace(
        result,
        base=base.name,
        kld=kld.value,
        kld_se=kld.se,
        kld_median=float(median),
        kld_p99=float(p99),
        kld_max=float(token_kld.max()),
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
