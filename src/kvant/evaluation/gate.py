"""Limits a variant has to keep, for machines that decide whether it ships."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kvant.errors import UsageError
from kvant.evaluation.results import EvalResult
from kvant.evaluation.statistics import Estimate, exponential
from kvant.evaluation.table import decimals_for

__all__ = ["Gate", "check_limits", "gates"]

Figure = Literal["KL divergence", "perplexity ratio"]

# Beyond so many standard errors a figure is taken to be on the side of the limit it is found on.
_SURE = 2.0


@dataclass(frozen=True, slots=True)
class Gate:
    """One figure of one model beside its limit."""

    name: str
    """Of the model."""
    figure: Figure
    value: float
    se: float
    limit: float
    """The largest value that holds."""

    @property
    def held(self) -> bool:
        """Whether the figure, as measured, is within the limit. Its error does not widen it."""
        return self.value <= self.limit

    @property
    def sure(self) -> bool:
        """Whether value and limit are further apart than two standard errors."""
        return abs(self.value - self.limit) > _SURE * self.se

    def __str__(self) -> str:
        places = decimals_for(self.se)
        verdict = "holds" if self.held else "missed"
        text = (
            f"{self.name}: {self.figure} {self.value:.{places}f} ± {self.se:.{places}f}, "
            f"limit {self.limit:g}: {verdict}"
        )
        if not self.sure:
            text += " (within two standard errors of the limit; more text would make it sure)"
        return text

    def to_json(self) -> dict[str, str | float | bool]:
        """As plain data."""
        return {
            "name": self.name,
            "figure": self.figure,
            "value": self.value,
            "se": self.se,
            "limit": self.limit,
            "held": self.held,
            "sure": self.sure,
        }


def gates(
    results: Iterable[EvalResult],
    *,
    max_kld: float | None = None,
    max_ppl_ratio: float | None = None,
) -> tuple[Gate, ...]:
    """Put the models that were compared with a base beside limits.

    Args:
        results: what `evaluate` found; the base itself is passed over.
        max_kld: largest mean KL divergence, in nats a token.
        max_ppl_ratio: largest perplexity, as a multiple of the base's.

    Returns:
        For each model, one gate a limit.

    Raises:
        UsageError: nothing was compared with a base, no limit is given, or one makes no sense.
    """
    check_limits(max_kld, max_ppl_ratio)
    found: list[Gate] = []
    for r in results:
        if max_kld is not None and r.kld is not None and r.kld_se is not None:
            found.append(Gate(r.name, "KL divergence", r.kld, r.kld_se, max_kld))
        if (
            max_ppl_ratio is not None
            and r.ln_ppl_ratio is not None
            and r.ln_ppl_ratio_se is not None
        ):
            ratio = exponential(Estimate(r.ln_ppl_ratio, r.ln_ppl_ratio_se))
            found.append(Gate(r.name, "perplexity ratio", ratio.value, ratio.se, max_ppl_ratio))
    if not found:
        raise UsageError(
            "There is nothing to hold against a limit: expected results of models that were "
            "compared with a base, and at least one limit. Name the base with `against`."
        )
    return tuple(found)


def check_limits(max_kld: float | None, max_ppl_ratio: float | None) -> None:
    """Refuse limits that nothing, or everything, would keep.

    Raises:
        UsageError: a limit is not a number, negative, or of a ratio and zero.
    """
    if max_kld is not None and not 0 <= max_kld < math.inf:
        raise UsageError(f"Expected a limit of the KL divergence from 0, got {max_kld}.")
    if max_ppl_ratio is not None and not 0 < max_ppl_ratio < math.inf:
        raise UsageError(
            f"Expected a limit of the perplexity ratio above 0, got {max_ppl_ratio}; 1.01 allows "
            "one per cent above the base's perplexity."
        )
