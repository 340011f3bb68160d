"""Limits: what holds, what is missed, and what is said about it."""

from __future__ import annotations

import math

import pytest
from test_evaluate_report import RESULTS, result

from kvant import gates
from kvant.errors import UsageError

NEAR = result(
    "Q4", kld=0.0200, kld_se=0.0004, same_top=0.9, same_top_se=0.01, ln_ppl_ratio=0.01,
    ln_ppl_ratio_se=0.002,
)  # fmt: skip


def test_each_compared_model_meets_each_limit() -> None:
    found = gates([*RESULTS, NEAR], max_kld=0.1, max_ppl_ratio=1.02)
    assert [(g.name, g.figure, g.held) for g in found] == [
        ("Q8_0", "KL divergence", True),
        ("Q2_K", "KL divergence", False),
        ("Q4", "KL divergence", True),
        ("Q4", "perplexity ratio", True),
    ]
    ratio = found[-1]
    assert ratio.value == pytest.approx(math.exp(0.01))
    assert ratio.se == pytest.approx(math.exp(0.01) * 0.002)


@pytest.mark.parametrize(
    ("limit", "held", "sure"),
    [
        (0.03, True, True),
        (0.0205, True, False),
        (0.02, True, False),
        (0.0195, False, False),
        (0.01, False, True),
        (0, False, True),
    ],
)
def test_a_limit_is_kept_or_not_and_how_sure_that_is(limit: float, held: bool, sure: bool) -> None:
    (gate,) = gates([NEAR], max_kld=limit)
    assert (gate.held, gate.sure) == (held, sure)
    assert ("more text" in str(gate)) == (not sure)
    assert gate.to_json() == {
        "name": "Q4",
        "figure": "KL divergence",
        "value": 0.02,
        "se": 0.0004,
        "limit": limit,
        "held": held,
        "sure": sure,
    }


def test_the_message_has_value_error_and_limit() -> None:
    held, missed = gates([NEAR], max_kld=0.025, max_ppl_ratio=1.002)
    assert str(held) == "Q4: KL divergence 0.02000 ± 0.00040, limit 0.025: holds"
    assert str(missed) == "Q4: perplexity ratio 1.0101 ± 0.0020, limit 1.002: missed"


def test_exactly_nothing_may_be_asked_for() -> None:
    same = result("copy", kld=0.0, kld_se=0.0, ln_ppl_ratio=0.0, ln_ppl_ratio_se=0.0)
    assert all(gate.held for gate in gates([same], max_kld=0, max_ppl_ratio=1))
    assert not gates([NEAR], max_kld=0)[0].held


@pytest.mark.parametrize("limit", [-0.1, math.nan, math.inf])
def test_limits_that_make_no_sense(limit: float) -> None:
    with pytest.raises(UsageError, match=r"limit of the KL divergence from 0, got"):
        gates([NEAR], max_kld=limit)
    with pytest.raises(UsageError, match=r"limit of the perplexity ratio above 0, got"):
        gates([NEAR], max_ppl_ratio=limit)
    with pytest.raises(UsageError):
        gates([NEAR], max_ppl_ratio=0)


def test_nothing_to_hold_against_a_limit_is_an_error() -> None:
    for results, limits in (([], {"max_kld": 1.0}), (RESULTS[:1], {"max_kld": 1.0}), ([NEAR], {})):
        with pytest.raises(UsageError, match="Name the base with `against`"):
            gates(results, **limits)
