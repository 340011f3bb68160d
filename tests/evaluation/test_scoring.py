"""The core's scoring of logits against NumPy with longer floats, on every instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from eval_textbook import long_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant import _core
from kvant.evaluation.scoring import NotFinite, RowScores, score_rows
from oracles.kernels import using

every_isa = pytest.mark.parametrize("isa", _core.isas())
WRONG = (TypeError, ValueError)


def logits_of(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * scale).astype(np.float32)


def near(base: np.ndarray, step: float, seed: int = 1) -> np.ndarray:
    return base + (np.random.default_rng(seed).standard_normal(base.shape) * step).astype("f4")


def targets_of(rows: int, vocab: int) -> np.ndarray:
    return np.random.default_rng(9).integers(0, vocab, rows).astype(np.int32)


def assert_equal(one: RowScores, other: RowScores) -> None:
    assert np.array_equal(one.nll, other.nll)
    assert np.array_equal(one.kld, other.kld)
    assert np.array_equal(one.same, other.same)


@every_isa
@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 1200),
    rows=st.integers(0, 5),
    variants=st.integers(0, 3),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 200.0]),
    step=st.sampled_from([0.0, 1e-4, 0.1, 5.0]),
    seed=st.integers(0, 999),
)
def test_equals_long_floats(
    isa: str, vocab: int, rows: int, variants: int, scale: float, step: float, seed: int
) -> None:
    base = logits_of(rows, vocab, seed, scale)
    logits = [base, *(near(base, step, seed + i) for i in range(variants))]
    targets = targets_of(rows, vocab)
    with using(isa):
        found = score_rows(logits, targets)
    nll, kld, same = long_scores(logits, targets)
    np.testing.assert_allclose(found.nll, nll.astype(float), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(found.kld, kld.astype(float), rtol=1e-11, atol=1e-14)
    assert np.array_equal(found.same, same.reshape(found.same.shape))
    assert (found.kld >= 0).all()


@pytest.mark.parametrize("step", [1e-4, 1e-3, 1e-2, 1.0])
def test_a_real_vocabulary_and_models_that_are_all_but_equal(step: float) -> None:
    """The claim is 1 % of a divergence of 1e-6 and 1e-6 of a perplexity; it is kept by far."""
    base = logits_of(6, 128_256)
    base[:, 77] += 15  # one likely token, as real models have
    logits, targets = [base, near(base, step)], targets_of(6, 128_256)
    found = score_rows(logits, targets)
    nll, kld, _ = long_scores(logits, targets)
    np.testing.assert_allclose(found.nll, nll.astype(float), rtol=1e-14)
    np.testing.assert_allclose(found.kld, kld.astype(float), rtol=1e-5, atol=1e-15)
    assert found.kld.mean() == pytest.approx(float(kld.mean()), rel=1e-6)
    if step == 1e-3:
        assert 1e-8 < found.kld.mean() < 1e-6


def test_every_instruction_set_gives_the_same_bits() -> None:
    base = logits_of(9, 4099)
    logits, targets = [base, near(base, 0.1), near(base, 2.0, 5)], targets_of(9, 4099)
    results = []
    for isa in _core.isas():
        with using(isa):
            results.append(score_rows(logits, targets))
    for result in results[1:]:
        assert_equal(result, results[0])


@pytest.mark.parametrize("threads", [2, 3, 7, 64, 1000])
def test_threads_change_nothing(threads: int) -> None:
    base = logits_of(61, 20_011)
    logits, targets = [base, near(base, 0.1)], targets_of(61, 20_011)
    one = score_rows(logits, targets, threads=1)
    assert_equal(score_rows(logits, targets, threads=threads), one)
    for count in (0, -5):
        assert_equal(score_rows(logits, targets, threads=count), one)


def test_several_variants_in_one_pass_equal_passes_with_one_each() -> None:
    base = logits_of(5, 3000)
    variants = [near(base, 0.1, i) for i in range(4)]
    targets = targets_of(5, 3000)
    together = score_rows([base, *variants], targets)
    alone = score_rows([base], targets)
    assert alone.kld.shape == alone.same.shape == (0, 5)
    assert np.array_equal(alone.nll[0], together.nll[0])
    for i, variant in enumerate(variants):
        apart = score_rows([base, variant], targets)
        assert np.array_equal(apart.nll[1], together.nll[i + 1])
        assert np.array_equal(apart.kld[0], together.kld[i])


@every_isa
@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 511, 512, 513, 1025])
def test_identical_logits_diverge_by_exactly_nothing(isa: str, vocab: int) -> None:
    base = logits_of(4, vocab)
    with using(isa):
        found = score_rows([base, base.copy()], targets_of(4, vocab))
    assert (found.kld == 0).all()
    assert found.same.all()
    assert np.array_equal(found.nll[0], found.nll[1])


@every_isa
def test_the_first_of_equal_tops_counts(isa: str) -> None:
    base, variant = np.zeros((3, 40), np.float32), np.zeros((3, 40), np.float32)
    base[0, [5, 30]] = variant[0, 5] = 1
    base[1, [5, 30]] = variant[1, 30] = 1
    variant[2, 0] = -0.0  # equal to 0, as NumPy has it
    with using(isa):
        found = score_rows([base, variant], np.zeros(3, np.int32))
    assert found.same.tolist() == [[True, False, True]]


@every_isa
def test_extreme_but_finite_logits(isa: str) -> None:
    largest = np.finfo(np.float32).max
    rows = [[largest, -largest, 0.0], [-largest] * 3, [708.0, 0.0, -45.0], [0.0, -1e-45, 1e-45]]
    base = np.array(rows, np.float32)
    variant = base[:, ::-1].copy()
    targets = np.array([1, 2, 1, 0], np.int32)
    with using(isa):
        found = score_rows([base, variant], targets)
    assert np.isfinite(found.nll).all()
    assert np.isfinite(found.kld).all()
    assert found.nll[0, 0] == pytest.approx(2 * float(largest))
    assert found.kld[0, 0] == pytest.approx(float(largest))
    assert found.nll[0, 1] == pytest.approx(math.log(3))
    assert found.nll[0, 2] == pytest.approx(708)
    assert found.kld[0, 3] == pytest.approx(0, abs=1e-15)


@every_isa
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 15, 16, 40, 41, 42])
def test_every_value_that_is_not_finite_is_found(isa: str, value: float, column: int) -> None:
    for model in (0, 1, 2):
        logits = [logits_of(50, 43, seed) for seed in range(3)]
        logits[model][20, column] = value
        logits[2][31, 3] = value
        for threads in (1, 4):
            with using(isa), pytest.raises(NotFinite) as caught:
                score_rows(logits, targets_of(50, 43), threads=threads)
            assert (caught.value.row, caught.value.model) == (20, model)


def test_the_first_bad_row_is_told_whichever_thread_found_one() -> None:
    base = logits_of(64, 20_000)
    base[[17, 40, 63], 5] = np.nan
    for threads in (1, 2, 5, 64):
        with pytest.raises(NotFinite) as caught:
            score_rows([base, base], targets_of(64, 20_000), threads=threads)
        assert (caught.value.row, caught.value.model) == (17, 0)


def test_tiles_of_any_layout() -> None:
    base = logits_of(6, 100)
    targets = targets_of(12, 100)[::2]
    expected = score_rows([base, base * 2], targets.copy())
    for layout in (np.asfortranarray(base), np.repeat(base, 2, 0)[::2]):
        assert_equal(score_rows([layout, base * 2], targets), expected)


def arguments() -> dict[str, Any]:
    return {
        "logits": [logits_of(4, 30), logits_of(4, 30, 1)],
        "targets": targets_of(4, 30),
        "nll": np.zeros((2, 4)),
        "kld": np.zeros((1, 4)),
        "same": np.zeros((1, 4), np.uint8),
        "threads": 1,
    }


def frozen(a: np.ndarray) -> np.ndarray:
    a.setflags(write=False)
    return a


SPOILT: list[tuple[str, Callable[[Any], Any]]] = [
    ("logits", lambda a: []),
    ("logits", lambda a: a[0]),
    ("logits", lambda a: [a[0]]),
    ("logits", lambda a: [a[0], a[1][:-1]]),
    ("logits", lambda a: [a[0], a[1][:, :-1].copy()]),
    ("logits", lambda a: [a[0], a[1][:, :-1]]),
    ("logits", lambda a: [a[0], a[1].astype(np.float64)]),
    ("logits", lambda a: [a[0], np.asfortranarray(a[1])]),
    ("logits", lambda a: [a[0], None]),
    ("logits", lambda a: [a[0][:, :0].copy(), a[1][:, :0].copy()]),
    ("targets", lambda a: a[:-1]),
    ("targets", lambda a: a.astype(np.int64)),
    ("targets", lambda a: np.array([0, 30, 0, 0], np.int32)),
    ("targets", lambda a: np.array([0, -1, 0, 0], np.int32)),
    ("targets", lambda a: np.repeat(a, 2)[::2]),
    ("nll", lambda a: a[:1]),
    ("nll", lambda a: a[:, :3].copy()),
    ("nll", lambda a: a.astype(np.float32)),
    ("nll", frozen),
    ("kld", lambda a: np.zeros((2, 4))),
    ("kld", lambda a: a[:, :3].copy()),
    ("same", lambda a: a[:0]),
    ("same", lambda a: a.astype(np.bool_)),
    ("threads", lambda a: None),
]


@pytest.mark.parametrize(("name", "spoil"), SPOILT)
def test_wrong_calls_into_the_core_raise(name: str, spoil: Callable[[Any], Any]) -> None:
    good = arguments()
    assert _core.score(**good) is None
    with pytest.raises(WRONG):
        _core.score(**{**arguments(), name: spoil(good[name])})
