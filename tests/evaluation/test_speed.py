"""What a speed measurement runs, told by an engine that only keeps a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvant.errors import DataError
from kvant.evaluation.limits import MachineLimits, Work
from kvant.evaluation.speed import STEP_TOKENS, SpeedPlan, measure_speed

WORK = Work({"int8": 10**6}, {"int8": 10**5}, weight_bytes=10**6, kv_bytes=100.0)


class Recorded:
    """A sequence that knows its length."""

    def __init__(self) -> None:
        self.length = 0
        self.freed = False

    def truncate(self, length: int, /) -> None:
        assert 0 <= length <= self.length
        self.length = length

    def free(self) -> None:
        self.freed = True


class Recorder:
    """An engine that computes nothing and writes down every step: lengths before, tokens, rows."""

    vocab_size = 50

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.steps: list[tuple[list[int], list[int], str]] = []
        self.sequences: list[Recorded] = []

    def sequence(self) -> Recorded:
        self.sequences.append(Recorded())
        return self.sequences[-1]

    def step(
        self, entries: Sequence[tuple[Recorded, npt.NDArray[np.int32]]], *, logits: str
    ) -> npt.NDArray[np.float32]:
        before = [s.length for s, _ in entries]
        self.steps.append((before, [len(t) for _, t in entries], logits))
        for sequence, tokens in entries:
            assert tokens.dtype == np.int32
            assert ((tokens >= 0) & (tokens < self.vocab_size)).all()
            sequence.length += len(tokens)
        rows = len(entries) if logits == "last" else 0
        return np.full((rows, self.vocab_size), self.value, np.float32)


@pytest.fixture(scope="module")
def machine() -> MachineLimits:
    return MachineLimits(1, WORK.kinds, seconds=0.002)


def _measure(machine: MachineLimits, plan: SpeedPlan, **options: Any) -> tuple[Recorder, Any]:
    engine = Recorder()
    return engine, measure_speed(engine, WORK, machine, plan, **options)


def test_every_test_runs_at_its_depth(machine: MachineLimits) -> None:
    plan = SpeedPlan(prompts=(7,), generate=3, batches=(1, 2), depths=(40, 0), repeat=2)
    engine, (results, _) = _measure(machine, plan)
    runs = 1 + plan.repeat
    for depth in (0, 40):
        assert engine.steps.count(([depth], [7], "last")) == runs
        for i in range(3):
            assert engine.steps.count(([depth + i], [1], "last")) == runs
            assert engine.steps.count(([depth + i] * 2, [1, 1], "last")) == runs
    assert engine.steps.count(([0], [40], "none")) == 2  # both sequences were filled, once
    tests = [(r.test, r.tokens, r.batch, r.depth) for r in results]
    assert tests == [
        ("prompt", 7, 1, 0),
        ("generate", 3, 1, 0),
        ("generate", 3, 2, 0),
        ("prompt", 7, 1, 40),
        ("generate", 3, 1, 40),
        ("generate", 3, 2, 40),
    ]
    assert all(s.freed for s in engine.sequences)
    assert len(engine.sequences) == plan.sequences == 2


def test_the_plan_knows_its_tokens(machine: MachineLimits) -> None:
    plan = SpeedPlan(prompts=(7, 9), generate=3, batches=(1, 2), depths=(40, 0), repeat=2)
    told: list[tuple[int, int]] = []
    engine, _ = _measure(machine, plan, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (plan.tokens, plan.tokens)
    assert sum(sum(tokens) for _, tokens, _ in engine.steps) == plan.tokens
    assert plan.longest == (49, 43)


def test_long_prompts_go_in_steps(machine: MachineLimits) -> None:
    length = STEP_TOKENS + 30
    plan = SpeedPlan(prompts=(length,), generate=1, batches=(), depths=(0,), repeat=1)
    engine, (results, _) = _measure(machine, plan)
    assert engine.steps == [([0], [STEP_TOKENS], "none"), ([STEP_TOKENS], [30], "last")] * 2
    assert [r.test for r in results] == ["prompt"]


def test_figures_follow_from_the_runs(machine: MachineLimits) -> None:
    plan = SpeedPlan(prompts=(8,), generate=4, batches=(3,), depths=(10,), repeat=3)
    _, (results, limits) = _measure(machine, plan)
    for result in results:
        assert len(result.runs) == 3
        assert result.rate == pytest.approx(sorted(result.runs)[1])
        assert result.rate * result.seconds == pytest.approx(result.tokens * result.batch)
        assert result.share > 0
        document = result.to_json()
        assert document["runs"] == list(result.runs)
        assert document["bound"] == result.bound
    assert results[0].bound == "int8"
    assert limits.bandwidth > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_without_numbers_is_refused(machine: MachineLimits, value: float) -> None:
    plan = SpeedPlan(prompts=(), generate=2, batches=(1,), depths=(0,), repeat=1)
    with pytest.raises(DataError, match="NaN or infinity"):
        measure_speed(Recorder(value), WORK, machine, plan)
