"""The sampler against its textbook: sets, probabilities, tokens, penalties, logprobs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sampling_textbook as textbook
from hypothesis import given
from hypothesis import strategies as st

from kvant import _core
from kvant.engine.sampling import Sampler, Sampling, draw
from kvant.errors import DataError, UsageError

Row = npt.NDArray[np.float32]

GREEDY = Sampling(temperature=0)
SETTINGS = {
    "unchanged": Sampling(),
    "warm": Sampling(temperature=1.7),
    "cold": Sampling(temperature=0.2),
    "top-k": Sampling(top_k=40),
    "top-1": Sampling(top_k=1),
    "top-k of most": Sampling(top_k=3000),
    "top-p": Sampling(top_p=0.9),
    "top-p, warm": Sampling(top_p=0.99, temperature=2.0),
    "top-p, tiny": Sampling(top_p=1e-6),
    "min-p": Sampling(min_p=0.02),
    "min-p of one": Sampling(min_p=1.0),
    "all": Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05),
    "penalties": Sampling(repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.7),
    "bias": Sampling(logit_bias={3: 5.0, 7: -math.inf, 11: -2.5}, top_k=20),
}


@pytest.fixture(params=_core.isas(), autouse=True)
def _every_instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    best = _core.current_isa()
    _core.select_isa(request.param)
    yield
    _core.select_isa(best)


def _logits(size: int, seed: int = 0, spread: float = 3.0) -> Row:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * spread).astype(np.float32)


def _draws(row: Row, sampling: Sampling, count: int, prompt: list[int] | None = None) -> list[int]:
    """Independent draws from one row: each by a sampler with a seed of its own."""
    samplers = [Sampler(replace(sampling, seed=i), row.size, prompt or []) for i in range(count)]
    return [d.token for s in samplers for d in draw([s], row[None])]


@pytest.mark.parametrize("size", [1, 5, 16, 1000, 1024, 1025, 5003, 32000])
@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_the_textbooks(name: str, size: int) -> None:
    """One sampler draws on and on; textbook and core choose by the same random numbers."""
    sampling = replace(SETTINGS[name], seed=5)
    sampling = replace(
        sampling, logit_bias={t: b for t, b in sampling.logit_bias.items() if t < size - 1}
    )
    row = _logits(size, seed=size)
    prompt = [0, size // 2, size // 2]
    sampler = Sampler(sampling, size, prompt)
    answer: list[int] = []
    for position in range(12):
        p = textbook.distribution(row, sampling, prompt, answer)
        token = draw([sampler], row[None])[0].token
        assert p[token] > 0
        u = textbook.philox(5, position)
        expected = textbook.choose(p, u)
        if token != expected:  # only where the random number lies on the border, within rounding
            assert abs(np.cumsum(p)[min(token, expected)] - u) < 2e-6
        answer.append(token)


@pytest.mark.parametrize("name", SETTINGS)
def test_chosen_as_often_as_their_probability_says(name: str) -> None:
    """A chi-square test of 4,000 draws, at a level where a sound sampler fails once in 10^6."""
    row = _logits(60, spread=1.5)
    sampling = SETTINGS[name]
    p = textbook.distribution(row, sampling, [4, 5])
    counts = Counter(_draws(row, sampling, 4000, [4, 5]))
    assert set(counts) <= set(np.flatnonzero(p))
    big = p * 4000 >= 5
    rest = 4000 * p[~big].sum()
    observed = [counts[i] for i in np.flatnonzero(big)]
    expected = list(4000 * p[big])
    if rest >= 5:
        observed.append(4000 - sum(observed))
        expected.append(rest)
    o, e = np.array(observed), np.array(expected)
    statistic = float(((o - e) ** 2 / e).sum())
    freedom = len(o) - 1
    assert statistic <= freedom + 7 * math.sqrt(2 * freedom) + 15


def test_philox_is_the_papers() -> None:
    """Known answer of Random123 for counter and key 0: 6627e8d5 e169c58d bc57ac4c 9b00dbd8."""
    assert textbook.philox(0, 0) == (0xE169C58D6627E8D5 >> 11) / 2**53
    size = 1 << 16
    flat = np.zeros((1, size), np.float32)  # then the token is the random number
    for seed in (0, 1, 2**63 + 12345):
        sampler = Sampler(Sampling(seed=seed), size)
        for position in range(20):
            expected = math.floor(textbook.philox(seed, position) * size)
            assert draw([sampler], flat)[0].token == expected


@pytest.mark.parametrize("size", [1, 3, 17, 1023, 1024, 4096, 50257])
def test_greedy_takes_the_first_of_the_likeliest(size: int) -> None:
    row = np.round(_logits(size))  # many equal values
    assert draw([Sampler(GREEDY, size)], row[None])[0].token == int(row.argmax())
    for at in {0, size // 3, size - 1}:
        row[at] = 99
        assert draw([Sampler(GREEDY, size)], row[None])[0].token == int(row.argmax())


def test_ties_at_the_border_go_to_lower_ids() -> None:
    row = np.zeros(3000, np.float32)
    row[[5, 2000]] = 1
    assert set(_draws(row, Sampling(top_k=4), 400)) == {0, 1, 5, 2000}
    assert set(_draws(np.zeros(4, np.float32), Sampling(top_p=0.5), 200)) == {0, 1}


_numbers = st.floats(-30, 30, width=32)


@given(
    values=st.lists(_numbers, min_size=1, max_size=80),
    temperature=st.floats(0.05, 5),
    k=st.integers(0, 90),
    p=st.floats(0.01, 1),
    low=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_only_what_the_textbook_keeps(
    values: list[float], temperature: float, k: int, p: float, low: float, seed: int
) -> None:
    row = np.array(values, np.float32)
    sampling = Sampling(temperature=temperature, top_k=k, top_p=p, min_p=low, seed=seed)
    sampler = Sampler(sampling, row.size)
    for _ in range(3):
        token = draw([sampler], row[None])[0].token
        # Borders within rounding may fall either way.
        generous = replace(
            sampling, top_p=min(1.0, p * (1 + 1e-5)), min_p=max(0.0, low * (1 - 1e-5))
        )
        assert textbook.distribution(row, generous)[token] > 0


@given(data=st.data())
def test_a_seed_decides_whatever_the_neighbours(data: Any) -> None:
    size, steps = 500, 6
    seeds = data.draw(st.lists(st.integers(0, 2**32), min_size=1, max_size=5, unique=True))
    rows = {s: _logits(size * steps, seed=s).reshape(steps, size) for s in seeds}
    alone = {}
    for s in seeds:
        sampler = Sampler(Sampling(seed=s, temperature=1.2), size)
        alone[s] = [draw([sampler], rows[s][i : i + 1])[0].token for i in range(steps)]
    order = data.draw(st.permutations(seeds))
    samplers = [Sampler(Sampling(seed=s, temperature=1.2), size) for s in order]
    together = [draw(samplers, np.stack([rows[s][i] for s in order])) for i in range(steps)]
    for at, s in enumerate(order):
        assert [step[at].token for step in together] == alone[s]


def test_taken_up_again_a_request_goes_on_as_it_would_have() -> None:
    sampling = Sampling(seed=3, temperature=1.5, repetition_penalty=1.2, frequency_penalty=0.5)
    row = _logits(800)[None]
    whole = Sampler(sampling, 800, [1, 2])
    tokens = [draw([whole], row)[0].token for _ in range(20)]
    rest = Sampler(sampling, 800, [1, 2])
    rest.accept(tokens[:9])
    assert [draw([rest], row)[0].token for _ in range(11)] == tokens[9:]


def test_without_a_seed_every_request_is_another() -> None:
    row = np.zeros((1, 100_000), np.float32)
    assert len({draw([Sampler(Sampling(), 100_000)], row)[0].token for _ in range(20)}) > 15


def test_the_repetition_penalty_knows_the_prompt_and_the_others_only_the_answer() -> None:
    row = np.array([[3.0, 2.5, -1.0, -1.2]], np.float32)

    def first(sampling: Sampling, prompt: list[int], answer: list[int]) -> int:
        sampler = Sampler(replace(sampling, temperature=0), 4, prompt)
        if answer:
            sampler.accept(answer)
        return draw([sampler], row)[0].token

    assert first(Sampling(repetition_penalty=1.5), [0], []) == 1
    assert first(Sampling(repetition_penalty=1.5), [], [0]) == 1
    assert first(Sampling(repetition_penalty=1.5), [0, 1], []) == 0
    assert first(Sampling(presence_penalty=1.0), [0], []) == 0
    assert first(Sampling(presence_penalty=1.0), [], [0]) == 1
    assert first(Sampling(presence_penalty=0.4), [], [0, 0, 0]) == 0  # once, however often
    assert first(Sampling(frequency_penalty=0.4), [], [0]) == 0
    assert first(Sampling(frequency_penalty=0.4), [], [0, 0]) == 1


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.5, top_k=3)])
def test_logprobs_are_the_models_own(sampling: Sampling) -> None:
    row = _logits(5003)
    asked = replace(sampling, logprobs=7, logit_bias={9: 50.0}, repetition_penalty=1.5, seed=0)
    (found,) = draw([Sampler(asked, row.size, [1])], row[None])
    log_p = np.log(textbook.softmax(row.astype(np.float64)))
    assert found.token == 9
    assert found.logprob is not None
    assert found.logprob.logprob == pytest.approx(log_p[9], abs=2e-6)
    best = textbook.ranking(row.astype(np.float64))[:7]
    assert [t for t, _ in found.logprob.top] == best.tolist()
    assert [lp for _, lp in found.logprob.top] == pytest.approx(log_p[best].tolist(), abs=2e-6)
    (found,) = draw([Sampler(replace(asked, logprobs=0), row.size)], row[None])
    assert found.logprob is not None
    assert found.logprob.top == ()
    assert draw([Sampler(sampling, row.size)], row[None])[0].logprob is None


def test_more_logprobs_than_tokens() -> None:
    row = _logits(5)
    (found,) = draw([Sampler(Sampling(logprobs=20), 5)], row[None])
    assert found.logprob is not None
    assert sum(math.exp(lp) for _, lp in found.logprob.top) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_k=5)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 700, 1029])
def test_bad_logits_are_an_error(sampling: Sampling, bad: float, at: int) -> None:
    rows = np.stack([_logits(1030, 1), _logits(1030, 2)])
    rows[1, at] = bad
    with pytest.raises(DataError, match=rf"finite, got {bad} for token {at} and 1 such .*row 1"):
        draw([Sampler(sampling, 1030) for _ in range(2)], rows)


def test_forbidden_tokens() -> None:
    row = np.zeros((1, 3), np.float32)
    ban = {0: -math.inf, 2: -math.inf}
    assert {draw([Sampler(Sampling(logit_bias=ban), 3)], row)[0].token for _ in range(50)} == {1}
    with pytest.raises(DataError, match="leave no token"):
        draw([Sampler(Sampling(logit_bias={**ban, 1: -math.inf}), 3)], row)


def test_extreme_logits_and_temperatures() -> None:
    row = np.array([[3e38, -3e38, 2.9e38, 0.0]], np.float32)
    for temperature in (1e-5, 0.01, 1, 100):
        for more in ({}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.5}):
            sampler = Sampler(Sampling(temperature=temperature, **more), 4)  # type: ignore[arg-type]
            assert draw([sampler], row)[0].token == 0


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", -0.1, "from 0 to 100, got -0.1"),
        ("temperature", math.nan, "got nan"),
        ("temperature", "hot", "got 'hot'"),
        ("temperature", True, "got True"),
        ("top_k", -1, "whole number from 0"),
        ("top_k", 1.5, "whole number"),
        ("top_p", 0, "above 0, at most 1"),
        ("top_p", 1.1, "got 1.1"),
        ("min_p", 2, "from 0 to 1"),
        ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", math.inf, "from -100 to 100"),
        ("frequency_penalty", -101, "from -100 to 100"),
        ("seed", 2**64, "seed should be"),
        ("logprobs", 101, "from 0 to 100"),
        ("logit_bias", {-1: 0.0}, "a token of logit_bias"),
        ("logit_bias", {3: math.inf}, "logit_bias of token 3"),
    ],
)
def test_values_out_of_range(field: str, value: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert str(caught.value).startswith(field.split()[0]) or field in str(caught.value)


def test_a_bias_of_a_token_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="token 9; the vocabulary has ids 0 to 8"):
        Sampler(Sampling(logit_bias={9: 1.0}), 9)


def test_wrong_calls_of_the_core_raise() -> None:
    sampler = Sampler(Sampling(), 10)
    rows: list[Any] = [
        np.zeros((2, 10), np.float32),
        np.zeros((1, 9), np.float32),
        np.zeros((1, 10)),
        np.zeros(10, np.float32),
    ]
    for logits in rows:
        with pytest.raises((ValueError, TypeError)):
            draw([sampler], logits)
    for tokens in ([10], [-1]):
        with pytest.raises(ValueError, match="out of range"):
            sampler.accept(tokens)
