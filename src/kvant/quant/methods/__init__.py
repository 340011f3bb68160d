"""Ways to choose codes and scales for a linear, given what it is fed: one file a method.

A method is a pure function from a `Problem` to a `Quantised`. `METHODS` names them for the driver
(`kvant.tuning.layerwise`), the command line and the metadata of files; docs/methods.md says how to
add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvant.packing import get
from kvant.packing.groups import Groups
from kvant.quant.methods.feedback import feedback
from kvant.quant.methods.problem import Problem, Quantised
from kvant.quant.methods.refine import refine
from kvant.quant.methods.search import search

__all__ = ["METHODS", "Method", "Problem", "Quantised", "applies"]

Method = Callable[[Problem], Quantised]

METHODS: Mapping[str, Method] = {
    "search": search,
    "feedback": feedback,
    "refine": lambda problem: refine(problem, feedback(problem), sweeps=2),
    "refine-long": lambda problem: refine(problem, feedback(problem), sweeps=8),
}
"""By the name that a file's metadata gives."""


def applies(packing: str | Groups) -> bool:
    """Whether methods that choose code by code can be used with a packing, or gain anything.

    Of groups not with eight bits, where there is nothing to gain, nor with scales that are powers
    of two, which cannot follow.
    """
    if isinstance(packing, Groups):
        return packing.bits < 8 and packing.scale != "E8M0" and packing.block <= 256
    return get(packing).feedback is not None
