"""Which nodes stay in float so that a bound holds: measured one by one, as few as will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvant.errors import KvantError, UnsupportedError
from kvant.onnxtools.compare import Bounds, Quality

__all__ = ["Kept", "hold_bounds", "measure_sensitivity"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """A node left in float, and why."""

    node: str
    error: float | None
    """Output error when this node alone is quantised; None: asked for, or it cannot be."""
    why: str

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {"node": self.node, "error": self.error, "why": self.why}


def measure_sensitivity(
    nodes: Sequence[str],
    make: Callable[[Sequence[str]], Any],
    error: Callable[[Any], float],
    progress: Progress | None = None,
) -> dict[str, float]:
    """The output error of the model with each node alone quantised.

    Args:
        nodes: those that can be.
        make: a model with all nodes but the given ones quantised.
        error: of a model.
        progress: told what is done.

    Returns:
        by node; infinite where it cannot be quantised alone.
    """
    found = {}
    for index, node in enumerate(nodes):
        rest = [other for other in nodes if other != node]
        try:
            found[node] = error(make(rest))
        except KvantError:
            found[node] = float("inf")
        if progress:
            progress("sensitivity of nodes", index + 1, len(nodes))
    return found


def hold_bounds(
    sensitivity: dict[str, float],
    fixed: Sequence[str],
    make: Callable[[Sequence[str]], Any],
    quality: Callable[[Any], Quality],
    bounds: Bounds,
    progress: Progress | None = None,
) -> tuple[Any, Quality, list[Kept]]:
    """The model with the fewest nodes in float, the most sensitive first, that holds ``bounds``.

    The number of nodes is found by bisection: more nodes in float are taken to be better, and what
    is returned was measured and holds.

    Args:
        sensitivity: from `measure_sensitivity`.
        fixed: nodes in float already, whatever happens.
        make: a model with the given nodes in float.
        quality: of a model, on the data the bounds speak of.
        bounds: at least one.
        progress: told what is done.

    Raises:
        UnsupportedError: it holds only with everything in float, or not even then.
    """
    order = sorted(sensitivity, key=lambda node: (-sensitivity[node], node))
    low, high = 0, len(order)  # `low` nodes in float miss the bounds, `high` are not tried yet
    best: tuple[Any, Quality] | None = None
    tried = 0
    steps = max(1, len(order).bit_length())
    while high - low > 1:
        middle = (low + high) // 2
        proto = make([*fixed, *order[:middle]])
        found = quality(proto)
        tried += 1
        if progress:
            progress("nodes in float", min(tried, steps), steps)
        if bounds.missed(found):
            low = middle
        else:
            high, best = middle, (proto, found)
    if best is None:
        raise UnsupportedError(
            f"the bound does not hold with fewer than all {len(order)} nodes in float: nothing "
            "would be quantised. Loosen it, or choose another level or calibration."
        )
    kept = [Kept(node, sensitivity[node], "for the bound") for node in order[:high]]
    return best[0], best[1], kept
