"""How fast a model runs: tokens a second, each beside what the machine allows at that moment.

Every test runs once to warm up and is then repeated in turn with all others; the machine's limits
are measured between the runs. Medians are stated. Tokens are random, which for a dense model is as
good as text; contexts are filled by real steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from kvant.errors import DataError
from kvant.evaluation.energy import EnergyMeter
from kvant.evaluation.limits import Limits, MachineLimits, Work

__all__ = ["STEP_TOKENS", "Engine", "EngineSequence", "SpeedPlan", "SpeedResult", "measure_speed"]

STEP_TOKENS = 512
"""Tokens of a prompt that are given to the engine at a time, as a server would."""

Tokens: TypeAlias = npt.NDArray[np.int32]
Progress: TypeAlias = Callable[[int, int], None]


class EngineSequence(Protocol):
    """One sequence and the keys and values of its tokens."""

    def truncate(self, length: int, /) -> None:
        """Forget all tokens but the first ``length``."""
        ...

    def free(self) -> None:
        """Give everything back."""
        ...


S = TypeVar("S", bound=EngineSequence)


class Engine(Protocol[S]):
    """What runs a model in steps over several sequences at once."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        ...

    def sequence(self) -> S:
        """A new, empty sequence."""
        ...

    def step(
        self, entries: Sequence[tuple[S, Tokens]], /, *, logits: Literal["last", "none"]
    ) -> npt.NDArray[np.float32]:
        """Add tokens to sequences; ``"last"`` gives a row an entry, ``"none"`` no row."""
        ...


@dataclass(frozen=True, slots=True)
class SpeedPlan:
    """What to measure: prompts of these lengths and ``generate`` tokens in batches of these sizes,
    with each of the depths (tokens of context before), each ``repeat`` times."""

    prompts: tuple[int, ...]
    generate: int
    batches: tuple[int, ...]
    depths: tuple[int, ...]
    repeat: int

    @property
    def sequences(self) -> int:
        """Sequences alive at the same time."""
        return max(self.batches, default=1)

    @property
    def longest(self) -> tuple[int, int]:
        """Tokens of the first sequence at most, and of every other."""
        depth, generate = max(self.depths), self.generate if self.batches else 0
        return depth + max(*self.prompts, generate, 1), depth + generate

    @property
    def tokens(self) -> int:
        """All tokens that go through the engine."""
        generated = sum(self.batches) * self.generate
        each = len(self.depths) * (sum(self.prompts) + generated)
        return self.sequences * max(self.depths) + (1 + self.repeat) * each


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """One test. ``share`` is the median over runs of rate by limit, each run by its own limit."""

    test: str
    """``prompt`` or ``generate``."""
    tokens: int
    """Of the prompt, or generated for each sequence."""
    batch: int
    depth: int
    seconds: float
    """Of the whole test, the median; for a prompt that is the time to its first token."""
    rate: float
    """Tokens a second, of all sequences together."""
    limit: float
    share: float
    bound: str
    """What stops the limit: ``memory``, ``int8``, ``bf16`` or ``float``."""
    joules_per_token: float | None
    runs: tuple[float, ...]
    """The rate of each run."""

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        found: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return {**found, "runs": list(self.runs)}


@dataclass(frozen=True, slots=True)
class _Test:
    name: str
    tokens: int
    batch: int
    depth: int

    def limit(self, work: Work, limits: Limits) -> tuple[float, str]:
        if self.name == "prompt":
            found = work.prompt(limits)
        else:
            found = work.generation(limits, self.batch, self.depth + (self.tokens - 1) / 2)
        return found.rate, found.bound


@dataclass(frozen=True, slots=True)
class _Run:
    seconds: float
    joules: float | None
    limit: float
    bound: str


def measure_speed(
    engine: Engine[S],
    work: Work,
    machine: MachineLimits,
    plan: SpeedPlan,
    *,
    progress: Progress | None = None,
) -> tuple[tuple[SpeedResult, ...], Limits]:
    """Run a plan; the results in its order, depth by depth, and the median limits of the machine.

    Raises:
        DataError: the model gives NaN or infinity.
    """
    bench = _Bench(engine, work, machine, plan, progress or (lambda done, total: None))
    results = tuple(bench.results())
    bench.free()
    seen = bench.seen
    return results, Limits(
        statistics.median(s.bandwidth for s in seen),
        {kind: statistics.median(s.peaks[kind] for s in seen) for kind in seen[0].peaks},
    )


class _Bench(Generic[S]):
    """The sequences, which only ever grow from depth to depth, and what was measured."""

    def __init__(
        self,
        engine: Engine[S],
        work: Work,
        machine: MachineLimits,
        plan: SpeedPlan,
        progress: Progress,
    ) -> None:
        self._engine, self._work, self._machine, self._plan = engine, work, machine, plan
        self._progress = progress
        self._done = 0
        self._meter = EnergyMeter()
        self._rng = np.random.default_rng(0)
        self._sequences = [engine.sequence() for _ in range(plan.sequences)]
        self.seen: list[Limits] = []

    def free(self) -> None:
        for sequence in self._sequences:
            sequence.free()

    def results(self) -> Iterator[SpeedResult]:
        reached = 0
        for depth in sorted(self._plan.depths):
            for sequence in self._sequences:
                self._read(sequence, depth - reached)
            reached = depth
            tests = [_Test("prompt", n, 1, depth) for n in self._plan.prompts]
            tests += [_Test("generate", self._plan.generate, b, depth) for b in self._plan.batches]
            for test in tests:
                self._run(test)
            runs: dict[_Test, list[_Run]] = {test: [] for test in tests}
            for _ in range(self._plan.repeat):
                for test in tests:
                    runs[test].append(self._measured(test))
            yield from (_result(test, found) for test, found in runs.items())

    def _measured(self, test: _Test) -> _Run:
        before = self.seen[-1] if self.seen else self._limits()
        energy = self._meter.read()
        seconds = self._run(test)
        joules = self._meter.joules(energy, self._meter.read())
        limit, bound = test.limit(self._work, Limits.between(before, self._limits()))
        return _Run(seconds, joules, limit, bound)

    def _limits(self) -> Limits:
        self.seen.append(self._machine.measure())
        return self.seen[-1]

    def _run(self, test: _Test) -> float:
        """Seconds of one run; the sequences are at the test's depth before and after."""
        active = self._sequences[: test.batch]
        started = time.perf_counter()
        if test.name == "prompt":
            logits = self._read(active[0], test.tokens, last=True)
        else:
            tokens = self._tokens(test.tokens, test.batch)
            for row in tokens:
                entries = [(s, row[i : i + 1]) for i, s in enumerate(active)]
                logits = self._engine.step(entries, logits="last")
            self._advance(tokens.size)
        seconds = time.perf_counter() - started
        if not np.isfinite(logits).all():
            raise DataError(
                "The model gives NaN or infinity, expected finite logits. Its weights are damaged "
                "or beyond what the engine computes with; `kvant verify` checks a file."
            )
        for sequence in active:
            sequence.truncate(test.depth)
        return seconds

    def _read(self, sequence: S, count: int, *, last: bool = False) -> npt.NDArray[np.float32]:
        """Let a sequence read random tokens; the logits after the ``last`` one, or no row."""
        tokens = self._tokens(count)
        logits = np.empty((0, self._engine.vocab_size), np.float32)
        for start in range(0, count, STEP_TOKENS):
            part = tokens[start : start + STEP_TOKENS]
            wanted: Literal["last", "none"] = (
                "last" if last and start + len(part) == count else "none"
            )
            logits = self._engine.step([(sequence, part)], logits=wanted)
            self._advance(len(part))
        return logits

    def _tokens(self, *shape: int) -> Tokens:
        return self._rng.integers(0, self._engine.vocab_size, shape, np.int32)

    def _advance(self, tokens: int) -> None:
        self._done += tokens
        self._progress(self._done, self._plan.tokens)


def _result(test: _Test, runs: Sequence[_Run]) -> SpeedResult:
    tokens = test.tokens * test.batch
    joules = [run.joules / tokens for run in runs if run.joules is not None]
    seconds = statistics.median(run.seconds for run in runs)
    return SpeedResult(
        test.name,
        test.tokens,
        test.batch,
        test.depth,
        seconds,
        tokens / seconds,
        statistics.median(run.limit for run in runs),
        statistics.median(tokens / run.seconds / run.limit for run in runs),
        statistics.mode(run.bound for run in runs),
        statistics.median(joules) if joules else None,
        tuple(tokens / run.seconds for run in runs),
    )
