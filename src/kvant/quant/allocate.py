"""Which packing each tensor gets under a budget: the best mixture, exactly.

Every item (a tensor, or tensors that have to be alike) gets one of its choices; each choice takes
bytes and costs quality. What is wanted is the least total cost within so many bytes, or the fewest
bytes within a total cost: the multiple-choice knapsack problem (Sinha and Zoltners, 1979).

Sizes of a model's tensors have a large common divisor, so the problem is small when bytes are
counted in it: dynamic programming over the bytes above the smallest mixture solves it exactly, for
all budgets at once. Where the divisor is so small that the table would be too long, bytes are
counted in a coarser unit, rounded up: no budget is exceeded then either, and what the rounding left
unused is spent by moving single items, then pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Choice", "Front", "Item", "Mixture", "NotReachableError"]

_MOST_UNITS = 1 << 18
"""Length of the table; with some hundred items it takes tens of megabytes and a few seconds."""

_MOST_MOVES = 10_000
_SLACK = 1e-12  # a cost this much lower, relatively, is no gain but rounding


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to store an item: its ``packing``, the bytes it takes, what it costs (>= 0)."""

    packing: str
    nbytes: int
    cost: float


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor, or several that get the same packing, and the choices there are."""

    names: tuple[str, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Mixture:
    """One choice an item, in order, and what they come to."""

    choices: tuple[Choice, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return sum(c.nbytes for c in self.choices)

    @property
    def cost(self) -> float:
        """Cost in all."""
        return math.fsum(c.cost for c in self.choices)


class NotReachableError(ValueError):
    """No mixture keeps the bound; ``least`` is the smallest that could be asked for."""

    def __init__(self, what: str, asked: float, least: float) -> None:
        super().__init__(f"{what}: {asked} asked for, at least {least} needed")
        self.asked, self.least = asked, least


class Front:
    """All best mixtures of some items: solved once, asked for any budget.

    The same items give the same mixtures; of equal costs the one of fewer bytes is taken, of equal
    bytes the choice that comes first.
    """

    def __init__(self, items: Sequence[Item], *, most_units: int = _MOST_UNITS) -> None:
        self._items = tuple(items)
        self._choices = [_useful(item) for item in self._items]
        self._base = sum(c[0].nbytes for c in self._choices)
        extras = [[c.nbytes - own[0].nbytes for c in own] for own in self._choices]
        reach = sum(own[-1] for own in extras)
        divisor = math.gcd(*(e for own in extras for e in own)) or 1
        self._unit = divisor * max(1, -(-reach // (divisor * most_units)))
        self._exact = self._unit == divisor
        self._extras = [[-(-e // self._unit) for e in own] for own in extras]
        self._solve(sum(own[-1] for own in self._extras))

    @property
    def least_bytes(self) -> int:
        """Bytes of the smallest mixture."""
        return self._base

    @property
    def most_bytes(self) -> int:
        """Bytes of the mixture that costs least; more are of no use."""
        return sum(c[-1].nbytes for c in self._choices)

    @property
    def least_cost(self) -> float:
        """Cost of the best mixture there is."""
        return math.fsum(c[-1].cost for c in self._choices)

    def within_bytes(self, budget: int) -> Mixture:
        """The mixture of least cost that takes at most ``budget`` bytes.

        Raises:
            NotReachableError: even the smallest takes more.
        """
        if budget < self._base:
            raise NotReachableError("bytes", budget, self._base)
        column = min((budget - self._base) // self._unit, len(self._best) - 1)
        picked = self._trace(column)
        if not self._exact:
            self._spend(picked, budget)
        return self._mixture(picked)

    def within_cost(self, bound: float) -> Mixture:
        """The mixture of fewest bytes that costs at most ``bound``.

        Raises:
            NotReachableError: even the best costs more.
        """
        # The table sums in another order than the mixture: both have to keep the bound.
        columns = np.flatnonzero(self._best <= bound * (1 + _SLACK))
        for column in columns:
            found = self._mixture(self._trace(int(column)))
            if found.cost <= bound:
                return found
        if self.least_cost <= bound:
            return self._mixture([len(own) - 1 for own in self._choices])
        raise NotReachableError("cost", bound, self.least_cost)

    # -- the table

    def _solve(self, units: int) -> None:
        """``_best[u]``: least cost with at most u units; ``_taken[i, u]``: item i's choice then."""
        best: npt.NDArray[np.float64] = np.zeros(units + 1)
        self._taken = np.zeros((len(self._items), units + 1), np.uint8)
        for number, (own, extras) in enumerate(zip(self._choices, self._extras, strict=True)):
            found = best + own[0].cost
            for index in range(1, len(own)):
                extra = extras[index]
                candidate = best[: units + 1 - extra] + own[index].cost
                better = candidate < found[extra:]
                found[extra:][better] = candidate[better]
                self._taken[number, extra:][better] = index
            best = found
        self._best = best

    def _trace(self, column: int) -> list[int]:
        picked = []
        # Of equal costs the fewest units, which the table, being monotone, finds by bisection.
        column = int(np.searchsorted(-self._best, -self._best[column]))
        for number in range(len(self._items) - 1, -1, -1):
            index = int(self._taken[number, column])
            picked.append(index)
            column -= self._extras[number][index]
        return picked[::-1]

    def _mixture(self, picked: Sequence[int]) -> Mixture:
        return Mixture(tuple(own[i] for own, i in zip(self._choices, picked, strict=True)))

    # -- what rounding left over

    def _spend(self, picked: list[int], budget: int) -> None:
        """Improve ``picked`` in place by the best move or pair of moves, while there is one."""
        for _ in range(_MOST_MOVES):
            room = budget - self._mixture(picked).nbytes
            moves = [
                (own[i].nbytes - own[at].nbytes, own[i].cost - own[at].cost, number, i)
                for number, (own, at) in enumerate(zip(self._choices, picked, strict=True))
                for i in range(len(own))
                if i != at
            ]
            gain, chosen = _best_moves(moves, room)
            if gain >= -_SLACK * self._mixture(picked).cost:
                return
            for _, _, number, i in chosen:
                picked[number] = i


_Move = tuple[int, float, int, int]


def _best_moves(moves: Sequence[_Move], room: int) -> tuple[float, list[_Move]]:
    """The move, or pair of moves of two items, that lowers the cost most within ``room`` bytes."""
    if not moves:
        return 0.0, []
    nbytes = np.array([m[0] for m in moves], np.int64)
    costs = np.array([m[1] for m in moves])
    numbers = np.array([m[2] for m in moves])
    single = np.where(nbytes <= room, costs, 0.0)
    gain, chosen = float(single.min()), [moves[int(single.argmin())]]
    for at in np.flatnonzero(costs > 0).tolist():  # a step down makes room for one up
        allowed = (nbytes + nbytes[at] <= room) & (numbers != numbers[at])
        pair = np.where(allowed, costs + costs[at], 0.0)
        if pair.min() < gain:
            gain, chosen = float(pair.min()), [moves[at], moves[int(pair.argmin())]]
    return gain, chosen


def _useful(item: Item) -> list[Choice]:
    """The choices no other beats in bytes and cost, fewest bytes first, cost falling.

    Raises:
        ValueError: an item without choices, or a cost that is negative or no number.
    """
    if not item.choices:
        raise ValueError(f"{item.names}: no choices")
    if not all(0 <= c.cost < math.inf for c in item.choices):
        raise ValueError(f"{item.names}: costs are numbers from 0")
    useful: list[Choice] = []
    for choice in sorted(item.choices, key=lambda c: (c.nbytes, c.cost)):
        if not useful or choice.cost < useful[-1].cost:
            useful.append(choice)
    return useful
