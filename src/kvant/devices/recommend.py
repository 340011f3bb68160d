"""The choice: pure rules over predictions, and what to say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvant.devices.knowledge import Cited, knowledge, quality_of_recipe
from kvant.devices.predict import Prediction
from kvant.errors import KvantError
from kvant.units import size_text

__all__ = ["Advice", "NothingFitsError", "Wish", "advise"]


class NothingFitsError(KvantError):
    """No variant fits; the message says what the smallest needs and what helps."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants, and has: bytes a model may take, and the kind of device."""

    use: str
    usable: int
    context: int
    kind: str = "other"
    min_speed: float | None = None
    engine: str = "kvant"
    format: str = "gguf"
    room: int | None = None
    """Tokens of context that would fit with the smallest variant, where nothing fits."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The pick, why, what to expect, and the runner-up."""

    pick: Prediction
    level: str
    """What the pick's level is called in the advised format."""
    format: str
    engine: str
    quality: Cited | None
    reasons: tuple[str, ...]
    runner_up: Prediction | None
    runner_up_quality: Cited | None
    runner_up_reason: str
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "level": self.level,
            "format": self.format,
            "engine": self.engine,
            "pick": self.pick.to_json(),
            "quality": None if self.quality is None else self.quality.to_json(),
            "reasons": list(self.reasons),
            "runner_up": None if self.runner_up is None else self.runner_up.to_json(),
            "runner_up_quality": (
                None if self.runner_up_quality is None else self.runner_up_quality.to_json()
            ),
            "runner_up_reason": self.runner_up_reason,
            "warnings": list(self.warnings),
        }


def advise(
    wish: Wish, predictions: Sequence[Prediction], measured: Mapping[str, Cited] | None = None
) -> Advice:
    """Choose among predictions.

    Args:
        wish: what is wanted and what is there.
        predictions: one a recipe, in any order.
        measured: by recipe, divergences of files of this very model; where any of those fits, the
            one with the least divergence is taken, before all rules.

    Raises:
        NothingFitsError: none fits in memory, or none is fast enough.
    """
    known = dict(measured or {})
    fitting = [p for p in predictions if p.memory.total <= wish.usable]
    if not fitting:
        raise NothingFitsError(_too_large(wish, predictions))
    fast = [p for p in fitting if _fast_enough(p, wish.min_speed)]
    if not fast:
        raise NothingFitsError(_too_slow(wish, fitting))
    proven = [p for p in fast if p.variant.recipe in known]
    if proven:
        pick = min(proven, key=lambda p: known[p.variant.recipe].kld)
        reasons = ["of the measured files beside the source, it has the least divergence that fits"]
    else:
        pick, reasons = _by_rules(wish, fast)
    runner, why = _runner_up(pick, fast)
    return Advice(
        pick=pick,
        level=knowledge()["levels"]
        .get(wish.format, {})
        .get(pick.variant.recipe, pick.variant.recipe),
        format=wish.format,
        engine=wish.engine,
        quality=_quality(pick, known),
        reasons=(*reasons, knowledge()["formats"][wish.format]),
        runner_up=runner,
        runner_up_quality=None if runner is None else _quality(runner, known),
        runner_up_reason=why,
        warnings=tuple(_warnings(wish, pick)),
    )


def _by_rules(wish: Wish, fitting: Sequence[Prediction]) -> tuple[Prediction, list[str]]:
    k = knowledge()
    by_recipe = {p.variant.recipe: p for p in fitting}
    goal, why = k["uses"][wish.use]["goal"], k["uses"][wish.use]["why"]
    roomy = k["roomy"]
    spare = by_recipe.get(roomy["goal"])
    if (
        wish.kind in roomy["kinds"]
        and spare is not None
        and spare.memory.total <= roomy["share"] * wish.usable
    ):
        goal, why = roomy["goal"], roomy["why"]
    ladder = k["ladder"]
    below = [by_recipe[r] for r in ladder[ladder.index(goal) :] if r in by_recipe]
    if not below:  # a model that is quantised already, beyond what the ladder knows
        return max(fitting, key=lambda p: p.variant.bpw), ["it is what fits"]
    pick = below[0]
    if pick.variant.recipe == goal:
        return pick, [why]
    reasons = [f"{goal} would be the choice for {wish.use}, and does not fit or is too slow"]
    if pick.variant.recipe in k["ultra_low"]:
        reasons.append("nothing larger fits")
    return pick, reasons


def _runner_up(pick: Prediction, fitting: Sequence[Prediction]) -> tuple[Prediction | None, str]:
    """The next level up that fits, or the next one down."""
    ordered = sorted(
        (p for p in fitting if p.variant.recipe in knowledge()["ladder"] or p is pick),
        key=lambda p: p.variant.bpw,
    )
    at = next(i for i, p in enumerate(ordered) if p is pick)
    if at + 1 < len(ordered):
        other = ordered[at + 1]
        more = other.memory.total - pick.memory.total
        return other, f"closer to the original for {size_text(more)} more memory"
    if at > 0:
        other = ordered[at - 1]
        less = pick.memory.total - other.memory.total
        return other, f"smaller by {size_text(less)}, and further from the original"
    return None, "nothing else fits"


def _quality(prediction: Prediction, known: Mapping[str, Cited]) -> Cited | None:
    recipe = prediction.variant.recipe
    return known.get(recipe) or quality_of_recipe(recipe)


def _fast_enough(prediction: Prediction, least: float | None) -> bool:
    """By the lower end of the range: what is promised has to hold."""
    return least is None or prediction.generation is None or prediction.generation.low >= least


def _warnings(wish: Wish, pick: Prediction) -> list[str]:
    k = knowledge()
    found = []
    if pick.variant.recipe in k["ultra_low"] and wish.use != "research":
        found.append(
            f"{k['ultra_low_why']}. A smaller model at four bits is usually better than this one."
        )
    if wish.format == "mlx" and pick.memory.total > 0.9 * wish.usable:
        found.append("It is close to what the GPU may use; close other programs.")
    if wish.kind == "browser" and pick.variant.file_bytes > 2 * 10**9:
        found.append("Files above 2 GB have to be split for a browser: --split-size 512MB.")
    return found


def _smallest(predictions: Sequence[Prediction]) -> Prediction:
    return min(predictions, key=lambda p: p.memory.total)


def _too_large(wish: Wish, predictions: Sequence[Prediction]) -> str:
    least = _smallest(predictions)
    m = least.memory
    text = (
        f"Nothing fits in {size_text(wish.usable)}: the smallest, {least.variant.recipe}, needs "
        f"{size_text(m.total)} ({size_text(m.weights)} of weights, {size_text(m.kv)} of keys and "
        f"values for {wish.context:,} tokens, {size_text(m.compute + m.process)} for the rest). "
    )
    if wish.room:
        return text + f"With --context {wish.room} it fits; so may a smaller model."
    return text + "A shorter context does not help; choose a smaller model or more memory."


def _too_slow(wish: Wish, fitting: Sequence[Prediction]) -> str:
    fastest = max(fitting, key=lambda p: p.generation.low if p.generation is not None else 0.0)
    low = fastest.generation.low if fastest.generation is not None else 0.0
    return (
        f"Nothing that fits is sure to write {wish.min_speed:g} tokens a second: the fastest, "
        f"{fastest.variant.recipe}, is expected to write at least {low:.1f}. Choose a smaller "
        "model, a shorter context, or ask for less."
    )
