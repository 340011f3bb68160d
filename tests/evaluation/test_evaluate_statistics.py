"""Standard errors against the bootstrap and against repeated sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvant.evaluation.statistics import Estimate, exponential, over_chunks


def chunked_text(rng, chunks, tokens=40):
    """Per-token surprise of two models with common difficulty: chunk, token and model effects."""
    hard = rng.gamma(4, 0.25, (chunks, 1)) + rng.gamma(1, 2, (chunks, tokens))
    quirk = 0.05 * rng.standard_normal((chunks, 1)) + 0.2 * rng.standard_normal((chunks, tokens))
    return hard, hard + 0.03 + quirk


def bootstrap(statistic, chunks, rng, rounds=4000):
    """Spread of a statistic when chunks are drawn again with replacement."""
    return np.std([statistic(rng.integers(0, chunks, chunks)) for _ in range(rounds)], ddof=1)


@pytest.mark.parametrize("seed", range(3))
def test_errors_agree_with_the_bootstrap_over_chunks(seed):
    rng = np.random.default_rng(seed)
    base, variant = (values.mean(axis=1) for values in chunked_text(rng, 60))
    expected = bootstrap(lambda pick: base[pick].mean(), 60, rng)
    assert over_chunks(base).se == pytest.approx(expected, rel=0.08)
    expected = bootstrap(lambda pick: math.exp(base[pick].mean()), 60, rng)
    assert exponential(over_chunks(base)).se == pytest.approx(expected, rel=0.15)
    expected = bootstrap(lambda pick: (variant[pick] - base[pick]).mean(), 60, rng)
    paired = over_chunks(variant - base)
    assert paired.se == pytest.approx(expected, rel=0.08)
    unpaired = math.hypot(over_chunks(base).se, over_chunks(variant).se)
    assert paired.se < unpaired / 5


def test_errors_agree_with_fresh_samples():
    """Over many texts, the spread of the estimate is the standard error it gives itself."""
    rng = np.random.default_rng(5)
    runs = [over_chunks(chunked_text(rng, 30)[0].mean(axis=1)) for _ in range(2000)]
    spread = np.std([run.value for run in runs], ddof=1)
    assert math.sqrt(np.mean([run.se**2 for run in runs])) == pytest.approx(spread, rel=0.05)


def test_single_tokens_as_units_would_understate_the_error():
    """Why chunks: tokens of one chunk share its difficulty."""
    values = chunked_text(np.random.default_rng(1), 200)[0]
    by_token = values.std(ddof=1) / math.sqrt(values.size)
    assert over_chunks(values.mean(axis=1)).se > 1.5 * by_token


def test_delta_method_is_the_derivative():
    estimate = exponential(Estimate(2.0, 0.01))
    assert estimate.value == pytest.approx(math.exp(2))
    assert estimate.se == pytest.approx((math.exp(2.01) - math.exp(1.99)) / 2, rel=1e-4)
    with pytest.raises(OverflowError):
        exponential(Estimate(800.0, 1.0))
