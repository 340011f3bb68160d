"""Means and their standard errors, with chunks of text as the sampling unit.

Neighbouring tokens are far from independent (a name the model does not know is a surprise each
time it comes), so an error told from single tokens would be too small; chunks are as good as
independent. All chunks score equally many tokens, so the mean over tokens is the plain mean of
the chunk means, and no weights are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Estimate", "exponential", "over_chunks"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured figure and its standard error, in the same unit."""

    value: float
    se: float


def over_chunks(means: npt.NDArray[np.float64]) -> Estimate:
    """The mean of ``means``, float64 [chunks]: one mean a chunk, two chunks or more.

    The standard error is the spread of the chunk means (over ``chunks - 1``) divided by the root
    of their number. To compare two models give the differences of their means: what is hard in a
    chunk is hard for both and cancels, which leaves a far smaller error.
    """
    return Estimate(float(means.mean()), float(means.std(ddof=1)) / math.sqrt(len(means)))


def exponential(estimate: Estimate) -> Estimate:
    """``exp`` of an estimate; its error is carried over to first order (the delta method).

    Raises:
        OverflowError: the value is above 709.
    """
    value = math.exp(estimate.value)
    return Estimate(value, value * estimate.se)
