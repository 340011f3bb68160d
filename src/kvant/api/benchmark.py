"""How fast a model runs here, beside the limits of the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvant import _core
from kvant.api.evidence import record_speed
from kvant.api.source import Source, resolve_whole, threads_or_default
from kvant.checkpoint import Checkpoint
from kvant.devices.machine import cpu_name
from kvant.engine import load_engine
from kvant.engine.load import KvTypeName
from kvant.errors import UsageError
from kvant.evaluation.limits import BUFFER_BYTES, Limits, MachineLimits, Work
from kvant.evaluation.speed import Progress, SpeedPlan, SpeedResult, measure_speed
from kvant.evidence import Speed
from kvant.runtimes import (
    Artefact,
    RunnerChoice,
    RunnerName,
    StepRunner,
    choose_each,
    open_artefact,
    run_artefact,
    runner_label,
)

__all__ = ["KV_TYPES", "BenchReport", "benchmark", "record_benchmark"]

KV_TYPES: tuple[KvTypeName, ...] = ("f16", "q8_0")
"""How keys and values can be kept."""

_PROMPTS, _BATCHES, _DEPTHS, _GENERATE, _REPEAT = (128, 512), (1, 4, 16), (0,), 64, 3
_KV_ROUND = 256
"""Room for each sequence is rounded up to this, a whole number of any engine's blocks."""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Speed and memory of one model on this machine."""

    name: str
    path: str
    bytes: int
    """Of all weights as stored."""
    threads: int
    isa: str
    kv_type: str
    load_seconds: float
    """Opening the model and making the engine ready, the file being cached or not."""
    weights_bytes: int | None
    kv_bytes: int | None
    scratch_bytes: int | None
    """What the engine says it holds: weights, room for keys and values, and the rest."""
    peak_rss_bytes: int | None
    """Resident memory of the whole process at its highest; None where the system does not tell."""
    limits: Limits
    """Medians over the whole run."""
    results: tuple[SpeedResult, ...]
    runtime: str = "native"
    """What ran it."""
    how: str = ""
    """How a runtime of others was used, where one was; what it holds in memory it does not say."""

    @property
    def memory_bytes(self) -> int | None:
        """All that the engine holds."""
        parts = (self.weights_bytes, self.kv_bytes, self.scratch_bytes)
        held = [part for part in parts if part is not None]
        return sum(held) if held else None

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        plain = (
            *("name", "path", "bytes", "runtime", "how"),
            *("threads", "isa", "kv_type", "load_seconds"),
        )
        memory = ("weights_bytes", "kv_bytes", "scratch_bytes", "peak_rss_bytes")
        return {
            **{name: getattr(self, name) for name in (*plain, *memory)},
            "limits": self.limits.to_json(),
            "results": [result.to_json() for result in self.results],
        }


def benchmark(
    model: Source,
    *,
    prompts: Sequence[int] | None = None,
    generate: int | None = None,
    batches: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    threads: int | None = None,
    kv_type: KvTypeName = "f16",
    repeat: int = _REPEAT,
    runner: RunnerChoice = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure how fast a model reads prompts and generates, in turn with the machine's limits.

    Args:
        model: what to run.
        prompts: lengths of prompts; by default 128 and 512, as far as the model takes them.
            Empty: no prompts.
        generate: tokens generated for each sequence; by default 64.
        batches: how many sequences generate together; by default 1, 4 and 16, or 1 where the
            runner takes one at a time. Empty: none do.
        depths: tokens of context before each test; by default 0.
        threads: by default one for each processor.
        kv_type: ``f16`` or ``q8_0``; runtimes of others have their own.
        repeat: measured runs of each test; medians are stated.
        runner: what runs it, as for `evaluate`; the reference interpreter has no speed.
        progress: called with tokens done and tokens in all.

    Raises:
        UsageError: a number makes no sense, or is more than the model takes.
        InputError: the model cannot be read or run.
        MissingExtraError: the runtime is not installed.
    """
    started = time.perf_counter()
    artefact = open_artefact(resolve_whole(model))
    (name,) = choose_each([artefact], runner)
    if artefact.checkpoint is None and artefact.refusal is not None:
        raise artefact.refusal  # without its weights nobody knows the machine's limit for it
    checkpoint = artefact.checkpoint
    assert checkpoint is not None
    if kv_type not in KV_TYPES:
        raise UsageError(
            f"Keys and values are kept as {' or '.join(KV_TYPES)}, got {kv_type!r}; choose one."
        )
    alone = name not in ("native", "llama.cpp")
    if alone and batches is None:
        batches = (1,)
    plan = _plan(checkpoint, prompts, generate, batches, depths, repeat)
    count = threads_or_default(threads)
    if name != "native":
        return _foreign(artefact, name, plan, count, started, progress)
    engine = load_engine(checkpoint, threads=count, kv_tokens=_room(plan), kv_type=kv_type)
    loaded = time.perf_counter() - started
    memory = engine.memory
    work = Work.of(checkpoint, memory.kv_bytes / engine.kv.capacity_tokens)
    before = _peak_rss()
    machine = MachineLimits(engine.threads, work.kinds)
    results, limits = measure_speed(engine, work, machine, plan, progress=progress)
    return BenchReport(
        runtime=runner_label(artefact, name),
        name=checkpoint.path.name,
        path=str(checkpoint.path),
        bytes=sum(w.stored.nbytes for w in checkpoint.weights.values()),
        threads=engine.threads,
        isa=_core.current_isa(),
        kv_type=kv_type,
        load_seconds=loaded,
        weights_bytes=memory.weights_bytes,
        kv_bytes=memory.kv_bytes,
        scratch_bytes=engine.memory.scratch_bytes,
        peak_rss_bytes=_without_buffer(before, _peak_rss()),
        limits=limits,
        results=results,
    )


def _foreign(
    artefact: Artefact,
    name: RunnerName,
    plan: SpeedPlan,
    threads: int,
    started: float,
    progress: Progress | None,
) -> BenchReport:
    """The same plan on a runtime of others, beside the limits for the weights as the file has them.

    Its own memory it does not tell; that of the process is measured as for the engine.
    """
    checkpoint = artefact.checkpoint
    assert checkpoint is not None
    room = _room(plan) // plan.sequences + _KV_ROUND
    engine = run_artefact(artefact, name, threads=threads, context=room, sequences=plan.sequences)
    if not isinstance(engine, StepRunner):
        raise UsageError(
            "The reference interpreter judges numbers and has no speed to measure; choose another "
            "runner."
        )
    if max(plan.batches, default=1) > 1 and not engine.together:
        raise UsageError(
            f"{runner_label(artefact, name)} is measured with one sequence at a time, got batches "
            f"of {max(plan.batches)}. Leave them away, or choose native or llama.cpp."
        )
    loaded = time.perf_counter() - started
    states = checkpoint.graph.states
    kept = sum(2 * state.heads * state.head_dim for state in states)
    work = Work.of(checkpoint, kept * (2 if name == "llama.cpp" else 4), as_in_file=True)
    before = _peak_rss()
    results, limits = measure_speed(
        engine, work, MachineLimits(threads, work.kinds), plan, progress=progress
    )
    return BenchReport(
        name=artefact.name,
        path=str(artefact.path),
        bytes=sum(w.stored.file_bytes for w in checkpoint.weights.values()),
        threads=threads,
        isa="",
        kv_type="",
        load_seconds=loaded,
        weights_bytes=None,
        kv_bytes=None,
        scratch_bytes=None,
        peak_rss_bytes=_without_buffer(before, _peak_rss()),
        limits=limits,
        results=results,
        runtime=runner_label(artefact, name),
        how=engine.how,
    )


def record_benchmark(report: BenchReport) -> Path:
    """Add a report to the evidence beside its model, a GGUF file; gives the file that holds it."""
    machine = cpu_name()
    found = tuple(
        Speed(
            machine=machine,
            threads=report.threads,
            isa=report.isa,
            test=r.test,
            tokens=r.tokens,
            batch=r.batch,
            depth=r.depth,
            rate=r.rate,
            share=r.share,
            peak_rss_bytes=report.peak_rss_bytes,
        )
        for r in report.results
    )
    return record_speed(Path(report.path), found)[0]


def _plan(
    checkpoint: Checkpoint,
    prompts: Sequence[int] | None,
    generate: int | None,
    batches: Sequence[int] | None,
    depths: Sequence[int] | None,
    repeat: int,
) -> SpeedPlan:
    """The plan asked for, its defaults cut to what the model takes."""
    context = checkpoint.config.max_position_embeddings
    deep = tuple(dict.fromkeys(_DEPTHS if depths is None else depths)) or _DEPTHS
    room = context - max(deep)
    lengths = [n for n in _PROMPTS if n <= room] or [max(1, room)] if prompts is None else prompts
    plan = SpeedPlan(
        prompts=tuple(dict.fromkeys(lengths)),
        generate=max(1, min(_GENERATE, room)) if generate is None else generate,
        batches=tuple(dict.fromkeys(_BATCHES if batches is None else batches)),
        depths=deep,
        repeat=repeat,
    )
    for what, least, numbers in (
        ("prompts", 1, plan.prompts),
        ("generated tokens", 1, (plan.generate,)),
        ("batches", 1, plan.batches),
        ("depths", 0, plan.depths),
        ("repetitions", 1, (plan.repeat,)),
    ):
        if any(n < least for n in numbers):
            raise UsageError(f"Expected {what} from {least}, got {min(numbers)}.")
    if not plan.prompts and not plan.batches:
        raise UsageError("There is nothing to measure; give lengths of prompts or batches.")
    if max(plan.longest) > context:
        raise UsageError(
            f"The tests need {max(plan.longest)} tokens of context, but {checkpoint.path} takes "
            f"{context}. Choose shorter prompts, fewer tokens to generate or a smaller depth."
        )
    return plan


def _room(plan: SpeedPlan) -> int:
    """Tokens of keys and values that all sequences may hold together."""
    first, other = (-(-tokens // _KV_ROUND) * _KV_ROUND for tokens in plan.longest)
    return first + (plan.sequences - 1) * other


def _peak_rss() -> int | None:
    """Highest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _without_buffer(before: int | None, after: int | None) -> int | None:
    """The peak without what only measuring needed: the buffer, there from ``before`` on."""
    if before is None or after is None:
        return None
    return max(before, after - BUFFER_BYTES)
