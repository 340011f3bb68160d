"""Scales of a chart: where a value stands, and which round values get a tick."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Kind", "Scale", "Tick", "scale_for"]

Kind = Literal["linear", "log"]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Room between the outermost values and the frame, as a share of the span.
_PADDING = 0.07
_TICKS = 7
# Below this many decades the ticks at 2 and 5 are labelled too.
_FEW_DECADES = 2.2
# Beyond this many, not every power of ten is labelled.
_MOST_DECADES = 12
_EPSILON = 1e-9
# Values closer than this are one; below lie numbers too small to divide by.
_LEAST_SPAN = 1e-30


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis; minor ones have no label."""

    value: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """A range of values with its ticks. ``position`` maps ``low`` to 0 and ``high`` to 1."""

    kind: Kind
    low: float
    high: float
    ticks: tuple[Tick, ...]

    def position(self, value: float) -> float:
        """Where ``value`` stands, as a share of the axis; on a log axis 0 for what has no log."""
        if self.kind == "linear":
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return 0.0
        return math.log(value / self.low) / math.log(self.high / self.low)


def scale_for(values: Iterable[float], kind: Kind) -> Scale:
    """A scale that shows all finite ``values`` (on a log axis, all above 0)."""
    usable = [v for v in values if math.isfinite(v) and (v > 0 or kind == "linear")]
    low, high = (min(usable), max(usable)) if usable else (1.0, 1.0)
    return _log_scale(low, high) if kind == "log" else _linear_scale(low, high)


def _linear_scale(low: float, high: float) -> Scale:
    span, largest = high - low, max(abs(low), abs(high))
    if span <= _EPSILON * largest or span < _LEAST_SPAN:
        span = largest if largest > _LEAST_SPAN else 1.0
    padded_low = low - _PADDING * span
    if low >= 0:
        padded_low = max(padded_low, 0.0)
    padded_high = high + _PADDING * span
    return Scale("linear", padded_low, padded_high, _linear_ticks(padded_low, padded_high))


def _linear_ticks(low: float, high: float) -> tuple[Tick, ...]:
    step = _round_step((high - low) / _TICKS)
    places = max(0, -math.floor(math.log10(step) + _EPSILON))
    # 2.5 and 0.25 need one digit more than their power of ten.
    if abs(step * 10**places - round(step * 10**places)) > _EPSILON:
        places += 1
    indices = range(math.ceil(low / step - _EPSILON), math.floor(high / step + _EPSILON) + 1)
    return tuple(Tick(i * step, f"{i * step:.{places}f}") for i in indices)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= least * (1 - _EPSILON))


def _log_scale(low: float, high: float) -> Scale:
    if low == high:
        low, high = low / 3, high * 3
    factor = (high / low) ** _PADDING
    low, high = low / factor, high * factor
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [
        (decade, digit)
        for decade in decades
        for digit in range(1, 10)
        if low <= digit * 10.0**decade <= high
    ]
    if sum(digit in (1, 2, 5) for _, digit in steps) < 2:
        return Scale("log", low, high, _linear_ticks(low, high))
    labelled = (1,) if math.log10(high / low) > _FEW_DECADES else (1, 2, 5)
    every = math.ceil(len(decades) / _MOST_DECADES)
    powers = any(digit in labelled and not -4 <= decade <= 5 for decade, digit in steps)
    ticks = tuple(
        Tick(
            digit * 10.0**decade,
            _log_label(decade, digit, powers) if digit in labelled and decade % every == 0 else "",
        )
        for decade, digit in steps
    )
    return Scale("log", low, high, ticks)


def _log_label(decade: int, digit: int, powers: bool) -> str:
    if not powers:
        return f"{digit * 10**decade}" if decade >= 0 else f"{digit * 10.0**decade:.{-decade}f}"
    power = "10" + str(decade).translate(_SUPERSCRIPT)
    return power if digit == 1 else f"{digit}×{power}"
