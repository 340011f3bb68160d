"""A variant held against its original on data: accuracy, output error, latency, size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kvant.onnxtools.samples import Batch
from kvant.onnxtools.session import Array, Feeds, Session

__all__ = [
    "Bounds",
    "Comparison",
    "Quality",
    "latencies",
    "measure_quality",
    "relative",
    "squares",
    "verdicts",
]

_SLOWER = 1.05
"""Medians of interleaved runs wander by a few percent; beyond this it is slower."""
_WORSE = 0.1
"""Without a bound of the user's, an output error from here on is called worse."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a variant's outputs are beside the original's."""

    samples: int
    output_error: float
    """Root mean square of the difference over that of the original's values, worst output."""
    errors: dict[str, float] = field(default_factory=dict)
    """The same for each output."""
    accuracy_before: float | None = None
    """Share of samples whose class is right, 0 to 1; None without labels."""
    accuracy_after: float | None = None
    changed: float | None = None
    """Share of samples whose predicted class changed."""

    @property
    def loss(self) -> float:
        """Accuracy lost, in points (percent)."""
        if self.accuracy_before is None or self.accuracy_after is None:
            return 0.0
        return 100.0 * (self.accuracy_before - self.accuracy_after)

    @property
    def loss_error(self) -> float:
        """Standard error of ``loss``: samples whose class changed are the pairs that differ."""
        if self.changed is None or not self.samples:
            return 0.0
        return 100.0 * float(np.sqrt(self.changed / self.samples))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a variant must hold. Nothing set: nothing demanded."""

    max_error: float | None = None
    """Of ``Quality.output_error``."""
    max_loss: float | None = None
    """Points of accuracy."""
    min_accuracy: float | None = None
    """Accuracy in percent."""

    def __bool__(self) -> bool:
        return any(v is not None for v in (self.max_error, self.max_loss, self.min_accuracy))

    @property
    def needs_labels(self) -> bool:
        """Whether accuracy is spoken of."""
        return self.max_loss is not None or self.min_accuracy is not None

    def missed(self, quality: Quality) -> list[str]:
        """What ``quality`` misses, in words."""
        found = []
        if self.max_error is not None and not quality.output_error <= self.max_error:
            found.append(f"output error {quality.output_error:.4g}, at most {self.max_error:g}")
        if self.max_loss is not None and not quality.loss <= self.max_loss + 1e-9:
            found.append(f"{quality.loss:.2f} points of accuracy lost, at most {self.max_loss:g}")
        after = quality.accuracy_after
        if self.min_accuracy is not None and after is not None and 100 * after < self.min_accuracy:
            found.append(f"accuracy {100 * after:.2f} %, at least {self.min_accuracy:g} %")
        return found


@dataclass(frozen=True, slots=True)
class Comparison:
    """Before and after."""

    bytes_before: int
    bytes_after: int
    quality: Quality | None
    """None: no values could be made up that the model takes."""
    milliseconds_before: float | None
    """Median of one run."""
    milliseconds_after: float | None
    held_out: bool = True
    """Measured on samples that calibration did not see."""
    made_up: bool = False
    """There were no data: values are noise, and the output error is only a hint."""

    @property
    def slowdown(self) -> float | None:
        """Time of a run after, over before."""
        if not self.milliseconds_before or self.milliseconds_after is None:
            return None
        return self.milliseconds_after / self.milliseconds_before

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {**asdict(self), "slowdown": self.slowdown}


def measure_quality(
    before: Session,
    after: Session,
    batches: Iterable[Batch],
    told: Callable[[int], None] | None = None,
) -> Quality:
    """Run both on the same data.

    Args:
        before: the original.
        after: the variant; its outputs are the same.
        batches: the data.
        told: called with the number of runs done, for progress.
    """
    sums: dict[str, Array] = {name: np.zeros(2) for name in before.outputs}
    samples = labelled = right_before = right_after = changed = 0
    for number, batch in enumerate(batches, 1):
        one, other = before.run(batch.feeds), after.run(batch.feeds, before.outputs)
        for name, a, b in zip(before.outputs, one, other, strict=True):
            sums[name] += squares(a, b)
        count = len(batch.labels) if batch.labels is not None else _batch_of(batch.feeds)
        samples += count
        if batch.labels is not None:
            classes = predicted(one, count), predicted(other, count)
            if classes[0] is not None and classes[1] is not None:
                labelled += count
                right_before += int((classes[0] == batch.labels).sum())
                right_after += int((classes[1] == batch.labels).sum())
                changed += int((classes[0] != classes[1]).sum())
        if told:
            told(number)
    errors = {name: relative(total) for name, total in sums.items()}
    worst = max(errors.values(), default=0.0)
    if not labelled:
        return Quality(samples, worst, errors)
    shares = right_before / labelled, right_after / labelled, changed / labelled
    return Quality(samples, worst, errors, *shares)


def _batch_of(feeds: Feeds) -> int:
    first = next(iter(feeds.values()))
    return len(first) if first.ndim else 1


def squares(a: Any, b: Any) -> Array:
    """Sums of the squared difference of two outputs and of the first one's finite values.

    Infinities and NaN that agree are no difference; NaN beside a number makes the sum NaN, other
    shapes make it infinite.
    """
    one, other = np.asarray(a), np.asarray(b)
    if one.shape != other.shape:
        return np.asarray([np.inf, 1.0])
    if one.dtype.kind not in "fiub":
        return np.asarray([float((one != other).sum()), float(one.size)])
    one, other = one.astype(np.float64), other.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):  # infinities that agree
        difference = np.where(same, 0.0, one - other)
    return np.asarray([(difference**2).sum(), (np.where(np.isfinite(one), one, 0.0) ** 2).sum()])


def relative(total: Array) -> float:
    """Root of the sums' ratio (see `squares`); infinite where NaN stands beside numbers."""
    wrong, size = float(total[0]), float(total[1])
    if np.isnan(wrong):
        return float("inf")
    if wrong == 0:
        return 0.0
    return float(np.sqrt(wrong / size)) if size else float("inf")


def predicted(outputs: Sequence[Any], count: int) -> Array | None:
    """The class of each of ``count`` samples: the first output's numbers, or its largest place."""
    first = np.asarray(outputs[0])
    if first.dtype.kind in "iu" and first.size == count:
        return first.reshape(count)
    if first.dtype.kind != "f" or first.size % count or first.size <= count:
        return None
    return np.asarray(first.reshape(count, -1).argmax(1))


def latencies(
    before: Session, after: Session, feeds: Feeds, *, seconds: float = 1.0, least: int = 5
) -> tuple[float, float]:
    """Median milliseconds of a run of each, in turns, so that a busy machine hits both alike."""
    pair = (before, after)
    for session in pair:
        session.run(feeds)  # the first one allocates
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    turns = 0
    while turns < least or time.perf_counter() < end:
        # Who ran last has warm caches: the order changes every turn.
        for index in (0, 1) if turns % 2 == 0 else (1, 0):
            start = time.perf_counter()
            pair[index].run(feeds)
            times[index].append(1000.0 * (time.perf_counter() - start))
        turns += 1
    return statistics.median(times[0]), statistics.median(times[1])


def verdicts(found: Comparison, bounds: Bounds, *, smaller: bool) -> list[str]:
    """What speaks against the variant: slower, larger (where it should be smaller), worse."""
    against = []
    if found.slowdown is not None and found.slowdown > _SLOWER:
        against.append(
            f"slower: a run takes {found.milliseconds_after:.3g} ms, {found.slowdown:.2f} times "
            f"the original's {found.milliseconds_before:.3g} ms on this machine"
        )
    if smaller and found.bytes_after >= found.bytes_before:
        against.append(
            f"not smaller: {found.bytes_after:,} bytes, the original has {found.bytes_before:,}"
        )
    quality = found.quality
    if quality is None:
        return against
    if found.made_up:
        if not np.isfinite(quality.output_error):
            against.append("worse: it gives NaN or other shapes on made-up values")
        return against
    missed = bounds.missed(quality)
    if missed:
        against += [f"worse: {what}" for what in missed]
    elif not bounds and quality.accuracy_before is not None:
        if quality.loss > 0.3 and quality.loss > 2 * quality.loss_error:
            against.append(
                f"worse: {quality.loss:.2f} points of accuracy lost on {quality.samples:,} samples"
            )
    elif not bounds and quality.output_error > _WORSE:
        against.append(f"worse: outputs differ by {100 * quality.output_error:.1f} % of their size")
    return against
