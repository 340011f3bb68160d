"""The streaming evaluation against the protocol written out plainly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from eval_textbook import RandomRunner, mean, scores, standard_error
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.errors import DataError, UsageError
from kvant.evaluation import Corpus, Subject, evaluate, kld_difference, ln_ppl_difference


def tokens_of(count: int, vocab: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def subjects(vocab: int, tiles=(7, 5, 3)) -> list[Subject]:
    base = RandomRunner(vocab, 1, tile=tiles[0])
    return [
        Subject("base", base),
        Subject("close", RandomRunner(vocab, 2, tile=tiles[1], near=base, noise=0.01)),
        Subject("far", RandomRunner(vocab, 3, tile=tiles[2], near=base, noise=0.5)),
    ]


@settings(max_examples=40, deadline=None)
@given(
    vocab=st.integers(2, 40),
    context=st.integers(4, 33),
    chunks=st.integers(2, 5),
    rest=st.integers(0, 3),
    use_bos=st.booleans(),
    tiles=st.tuples(*[st.integers(1, 40)] * 3),
    batch=st.integers(1, 200),
    threads=st.integers(1, 4),
)
def test_equals_the_textbook(vocab, context, chunks, rest, use_bos, tiles, batch, threads):
    bos = vocab - 1 if use_bos else None
    text = tokens_of(chunks * context + rest - use_bos, vocab)
    corpus = Corpus.from_tokens(text, bos=bos, context=context)
    models = subjects(vocab, tiles)
    results = evaluate(models[0], models[1:], corpus, batch_tokens=batch, threads=threads)
    base_nll, _, _ = scores(text, context, bos, models[0].runner)
    for subject, result in zip(models, results, strict=True):
        nll, kld, same = scores(text, context, bos, models[0].runner, subject.runner)
        assert result.chunks == len(nll) == chunks
        assert result.tokens == sum(map(len, nll))
        assert result.perplexity == pytest.approx(math.exp(mean(nll)), rel=1e-12)
        assert result.perplexity_se == pytest.approx(
            math.exp(mean(nll)) * standard_error(nll), rel=1e-9, abs=1e-12
        )
        if subject is models[0]:
            assert result.base is result.kld is result.same_top is result.ln_ppl_ratio is None
            continue
        assert result.base == "base"
        assert result.kld == pytest.approx(mean(kld), rel=1e-9, abs=1e-14)
        assert result.kld_se == pytest.approx(standard_error(kld), rel=1e-7, abs=1e-14)
        assert result.kld_max == pytest.approx(max(map(max, kld)), rel=1e-9, abs=1e-14)
        assert result.kld_median == pytest.approx(np.median(kld), rel=1e-9, abs=1e-14)
        assert result.same_top == pytest.approx(mean(same), abs=1e-12)
        assert result.same_top_se == pytest.approx(standard_error(same), abs=1e-12)
        ratio = [
            [a - b for a, b in zip(*pair, strict=True)] for pair in zip(nll, base_nll, strict=True)
        ]
        assert result.ln_ppl_ratio == pytest.approx(mean(ratio), abs=1e-12)
        assert result.ln_ppl_ratio_se == pytest.approx(standard_error(ratio), abs=1e-12)


def test_figures_do_not_depend_on_tiles_or_batches_to_the_last_bit():
    corpus = Corpus.from_tokens(tokens_of(350, 5003), bos=0, context=64)
    runs = []
    for tiles, batch, threads in [
        ((7, 5, 3), 2048, 1),
        ((1, 64, 2), 1, 2),
        ((64, 64, 64), 130, 3),  # tiles large enough that threads are started
        ((31, 31, 31), 10**9, 64),
    ]:
        models = subjects(5003, tiles)
        runs.append(evaluate(models[0], models[1:], corpus, batch_tokens=batch, threads=threads))
    assert all(run == runs[0] for run in runs[1:])
    for result, first in zip(runs[1], runs[0], strict=True):
        assert np.array_equal(result.chunk_nll, first.chunk_nll)


def test_one_pass_with_several_variants_equals_passes_with_one_each():
    corpus = Corpus.from_tokens(tokens_of(300, 50), context=32)
    base, *variants = subjects(50)
    together = evaluate(base, variants, corpus)
    apart = [evaluate(base, [variant], corpus)[1] for variant in variants]
    assert list(together[1:]) == apart
    assert evaluate(base, [], corpus) == together[:1]


def test_base_is_run_once_for_all_variants():
    class Counting(RandomRunner):
        calls = 0

        def logits(self, tokens, *, first_row):
            Counting.calls += len(tokens)
            return super().logits(tokens, first_row=first_row)

    base = Subject("base", Counting(20, 1))
    others = [Subject(f"v{i}", RandomRunner(20, i)) for i in range(2, 6)]
    corpus = Corpus.from_tokens(tokens_of(320, 20), context=32)
    evaluate(base, others, corpus)
    assert Counting.calls == corpus.count


def test_identical_models_diverge_by_exactly_nothing():
    runner = RandomRunner(1000, 1)
    corpus = Corpus.from_tokens(tokens_of(300, 1000), context=64)
    _, same = evaluate(Subject("a", runner), [Subject("b", runner)], corpus)
    assert (same.kld, same.kld_se, same.kld_max) == (0.0, 0.0, 0.0)
    assert (same.same_top, same.ln_ppl_ratio, same.ln_ppl_ratio_se) == (1.0, 0.0, 0.0)


def test_shifting_all_logits_changes_nothing():
    class Shifted(RandomRunner):
        def matrix(self, tokens):
            return super().matrix(tokens) + np.float32(64)

    corpus = Corpus.from_tokens(tokens_of(300, 1000), context=64)
    base = RandomRunner(1000, 1)
    _, moved = evaluate(Subject("a", base), [Subject("b", Shifted(1000, 1))], corpus)
    # The float32 logits themselves lose some bits at that height; nothing else does.
    assert 0 <= moved.kld < 1e-11
    assert abs(moved.ln_ppl_ratio) < 1e-6


@settings(max_examples=25, deadline=None)
@given(exponent=st.integers(-7, 0), seed=st.integers(0, 99))
def test_tiny_divergences_are_told_and_never_negative(exponent, seed):
    """KL of a small change d of the logits is half the variance of d under the base."""
    base = RandomRunner(2000, seed)
    step = 10.0**exponent
    variant = RandomRunner(2000, seed + 1000, near=base, noise=step / 3)
    corpus = Corpus.from_tokens(tokens_of(16, 2000), context=8)
    _, result = evaluate(Subject("a", base), [Subject("b", variant)], corpus)
    _, kld, _ = scores(tokens_of(16, 2000), 8, None, base, variant)
    assert result.kld >= 0
    assert result.kld_median >= 0
    # The logits are float32, so a step below 1e-6 is lost in part; what is left is still told.
    assert result.kld == pytest.approx(mean(kld), rel=1e-6, abs=2e-15)
    if exponent in (-4, -3):
        by_hand = []
        for chunk in corpus.chunks:
            p, q = base.matrix(chunk[:-1]), variant.matrix(chunk[:-1])
            for i in range(4, 7):
                weights = np.exp(log := np.array(p[i], float)) / np.exp(log).sum()
                d = q[i].astype(float) - p[i]
                by_hand.append((weights @ d**2 - (weights @ d) ** 2) / 2)
        assert result.kld == pytest.approx(np.mean(by_hand), rel=20 * step)


def test_extreme_but_finite_logits():
    class Sharp(RandomRunner):
        height = 600.0

        def matrix(self, tokens):
            logits = super().matrix(tokens)
            logits[:, self.seed] = self.height
            return logits

    corpus = Corpus.from_tokens([5, 6] * 16, context=16)
    a, b = Sharp(10, 5), Sharp(10, 6)
    _, second = evaluate(Subject("a", a), [Subject("b", b)], corpus)
    # All of a's weight is on token 5, which b has some 600 nats below its token 6.
    assert 590 < second.kld < 610
    assert second.same_top == 0
    a.height = 5000.0
    with pytest.raises(DataError, match=r"a: its perplexity is too large for a number"):
        evaluate(Subject("a", a), [], corpus)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_not_finite_logits_are_an_error_that_names_model_and_chunk(value, which):
    class Broken(RandomRunner):
        def matrix(self, tokens):
            logits = super().matrix(tokens)
            if tokens[1] == 9:
                logits[20, 3] = value
            return logits

    text = [9 if i == 2 * 32 + 1 else i % 8 for i in range(5 * 32)]
    corpus = Corpus.from_tokens(text, context=32)
    runners = [RandomRunner(10, 1), RandomRunner(10, 2)]
    runners[which] = Broken(10, 3)
    models = [Subject("base", runners[0]), Subject("variant", runners[1])]
    with pytest.raises(DataError, match=rf"{models[which].name}: NaN .* in chunk 3 of 5"):
        evaluate(models[0], models[1:], corpus)


def test_rows_that_are_not_scored_may_hold_anything():
    class Broken(RandomRunner):
        def matrix(self, tokens):
            logits = super().matrix(tokens)
            logits[:16] = np.nan
            return logits

    corpus = Corpus.from_tokens(tokens_of(64, 10), context=32)
    (result,) = evaluate(Subject("a", Broken(10, 1)), [], corpus)
    assert math.isfinite(result.perplexity)


def test_different_vocabularies_are_refused():
    corpus = Corpus.from_tokens(tokens_of(64, 10), context=16)
    base = Subject("base", RandomRunner(10, 1), vocabulary=list("abcdefghij"))
    with pytest.raises(UsageError, match="wide predicts 12 tokens, the base base 10"):
        evaluate(base, [Subject("wide", RandomRunner(12, 1))], corpus)
    other = Subject("v", RandomRunner(10, 1), vocabulary=list("abcdeFghij"))
    with pytest.raises(UsageError, match="token 5 is 'F' in one, 'f' in the other"):
        evaluate(base, [other], corpus)
    short = Subject("v", RandomRunner(10, 1), vocabulary=list("abcdefghi"))
    with pytest.raises(UsageError, match="one has 9 tokens, the other 10"):
        evaluate(base, [short], corpus)
    unknown = Subject("v", RandomRunner(10, 1))
    assert len(evaluate(base, [unknown], corpus)) == 2


def test_token_ids_outside_the_vocabulary_are_refused():
    corpus = Corpus.from_tokens([1, 2, 3, 12] * 8, context=16)
    with pytest.raises(UsageError, match="token id 12, the model knows ids 0 to 9"):
        evaluate(Subject("a", RandomRunner(10, 1)), [], corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, r, t: (s, r + 1, t), "expected sequence 0 from row 16"),
        (lambda s, r, t: (s + 1, r, t), "expected sequence 0"),
        (lambda s, r, t: (s, r, t.astype(np.float64)), "float64"),
        (lambda s, r, t: (s, r, t[:, 1:]), "expected float32"),
        (lambda s, r, t: (s, r, t[:0]), "0 rows"),
        (lambda s, r, t: (s, r, np.zeros((99, 10), np.float32)), "99 rows"),
    ],
)
def test_runners_that_break_the_rules_are_told(change, message):
    class Bad(RandomRunner):
        def logits(self, tokens, *, first_row):
            return (change(*tile) for tile in super().logits(tokens, first_row=first_row))

    corpus = Corpus.from_tokens(tokens_of(64, 10), context=32)
    with pytest.raises(RuntimeError, match=message):
        evaluate(Subject("a", Bad(10, 1)), [], corpus)


@pytest.mark.parametrize("extra", [-1, 1])
def test_runners_with_too_few_or_too_many_tiles_are_told(extra):
    class Bad(RandomRunner):
        def logits(self, tokens, *, first_row):
            tiles = [
                (s, r, tile.copy()) for s, r, tile in super().logits(tokens, first_row=first_row)
            ]
            return iter(tiles[:-1] if extra < 0 else [*tiles, tiles[-1]])

    corpus = Corpus.from_tokens(tokens_of(64, 10), context=32)
    with pytest.raises(RuntimeError, match=r"expected sequence 1 from row|more tiles"):
        evaluate(Subject("a", Bad(10, 1)), [], corpus)


def test_progress_counts_the_tokens_of_all_models():
    calls = []
    models = subjects(20)
    corpus = Corpus.from_tokens(tokens_of(7 * 32, 20), context=32)
    evaluate(
        models[0],
        models[1:],
        corpus,
        batch_tokens=64,
        progress=lambda *counts: calls.append(counts),
    )
    total = 7 * 32 * 3
    assert calls == [(done * 96, total) for done in (0, 2, 4, 6, 7)]


def test_paired_differences_between_variants():
    models = subjects(50)
    corpus = Corpus.from_tokens(tokens_of(640, 50), context=32)
    base, close, far = evaluate(models[0], models[1:], corpus)
    difference = kld_difference(far, close)
    assert difference.value == pytest.approx(far.kld - close.kld)
    means = far.chunk_kld - close.chunk_kld
    assert difference.se == pytest.approx(means.std(ddof=1) / math.sqrt(20))
    ratio = ln_ppl_difference(far, close)
    assert ratio.value == pytest.approx(math.log(far.perplexity / close.perplexity))
    with pytest.raises(UsageError, match="not measured against one base"):
        kld_difference(base, close)
    other = evaluate(models[0], [], Corpus.from_tokens(tokens_of(640, 50, 1), context=32))[0]
    with pytest.raises(UsageError, match="different token chunks"):
        ln_ppl_difference(base, other)


def test_large_vocabulary_is_scored_in_little_memory():
    """No buffer is as large as a matrix of logits, nor as one tile."""
    import tracemalloc

    vocab = 50_000

    class Flat:
        vocab_size = vocab

        def logits(self, tokens, *, first_row):
            tile = np.zeros((4, vocab), np.float32)
            for sequence in range(len(tokens)):
                for row in range(first_row, tokens.shape[1], 4):
                    yield sequence, row, tile[: tokens.shape[1] - row]

    corpus = Corpus.from_tokens([1] * 1024, context=256)
    tracemalloc.start()
    try:
        first, second = evaluate(Subject("a", Flat()), [Subject("b", Flat())], corpus)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert first.perplexity == pytest.approx(vocab)
    assert second.kld == 0
    assert peak < 2e6  # two tiles of 0.8 MB, and next to nothing
