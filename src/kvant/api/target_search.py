"""What tensors cost at a target's levels, and the best mixture for any budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from kvant.api.artefact import Artefact
from kvant.api.budget import largest_within
from kvant.api.effort import effort_of
from kvant.calibration import Chunks, Importance
from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.export.mixture import LevelMixture
from kvant.export.overrides import Overrides
from kvant.export.target import Choices, Target, TargetOptions, find_level, find_target
from kvant.packing.groups import Groups
from kvant.quant.allocate import Choice, Front, Item, Mixture, NotReachableError
from kvant.quant.candidate import FLOAT, Candidate
from kvant.quant.methods import applies
from kvant.tuning.candidates import ALL, FAST
from kvant.tuning.sensitivity import EffortName, Progress, Sensitivity, measure_costs
from kvant.units import size_text

__all__ = ["TargetSearch", "choose_levels"]

_METHOD = 0.5
"""What is left of a linear's error where codes are chosen by what it is fed (`--effort balanced`),
about: without it too few bits go to embeddings, which no method is for (docs/budgets.md)."""

_UNNAMED = "kvant-0.00bpw"
"""The name of mixtures that are only planned, as long as what they will be called."""


def choose_levels(target: Target, names: Sequence[str]) -> tuple[str, ...]:
    """The levels meant by ``names``: ``fast``, ``all``, or single ones, in any mixture.

    Raises:
        UsageError: the target has no levels, or none is called so.
    """
    if not names:
        raise UsageError("--packings names no level; leave it out, or give some.")
    wanted: set[str] = set()
    for name in names:
        if name.lower() == ALL:
            wanted |= {level.name for level in target.levels()}
        elif name.lower() == FAST and target.levels():
            wanted |= {level.name for level in target.levels() if level.fast}
        else:
            wanted.add(find_level(target, name).name)
    return tuple(level.name for level in target.levels() if level.name in wanted)


def _free(target: Target, choices: Choices, overrides: Sequence[str]) -> Choices:
    """The choices of tensors that no ``REGEX=LEVEL`` text decides about."""
    rules = Overrides.parse(overrides, (*(level.name for level in target.levels()), FLOAT))
    free = {n: own for n, own in choices.candidates.items() if rules.find(n) is None}
    rules.refuse_unused()
    if not any(len(own) > 1 for own in free.values()):
        raise UsageError(
            "There is nothing to choose: no tensor may get more than one level. Give a level "
            "instead of a budget, or leave --tensor or --packings out."
        )
    return replace(choices, candidates=free)


def _groups(choices: Choices) -> list[tuple[str, ...]]:
    """Names that get the same, in the model's order; most are alone."""
    free = choices.candidates
    shared = [tuple(n for n in names if n in free) for names in choices.together]
    of = {name: names for names in shared for name in names}
    return list(dict.fromkeys(of.get(name, (name,)) for name in free))


def _items(choices: Choices, costs: Mapping[str, Mapping[str, float]]) -> list[Item]:
    """What the budget is spent on: tensors that go together as one, with their sums."""
    return [
        Item(
            names,
            tuple(
                Choice(
                    level,
                    sum(c.nbytes for c in own),
                    sum(costs[n][level] if n in costs else 0.0 for n in names),
                )
                for level, own in _common(choices, names).items()
            ),
        )
        for names in _groups(choices)
    ]


def _common(choices: Choices, names: Sequence[str]) -> dict[str, list[Candidate]]:
    """The candidates that all of some tensors have, by level."""
    each = [{c.name: c for c in choices.candidates[name]} for name in names]
    return {
        level: [own[level] for own in each] for level in each[0] if all(level in o for o in each)
    }


class TargetSearch:
    """What a model's tensors may be stored as; once `measure` was called, mixtures for budgets.

    Args:
        checkpoint: the model.
        to: the target.
        packings: levels tensors may get: ``fast``, ``all``, or names.
        options: what else decides about the folder's size; its overrides are not searched.
        plan: what would be written of a mixture, decided to the byte without reading a weight.

    Raises:
        UsageError, UnsupportedError: as for the target's ``choices``; nothing is left to choose.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        to: str,
        packings: Sequence[str],
        options: TargetOptions,
        plan: Callable[[LevelMixture], Artefact],
    ) -> None:
        target = find_target(to)
        levels = choose_levels(target, packings)
        self._checkpoint, self._to, self._plan = checkpoint, to, plan
        choices = target.choices(checkpoint, levels, options)
        self._choices = _free(target, choices, options.overrides)
        self._groups = _groups(self._choices)
        self._sensitivity: Sensitivity | None = None
        self._by_method = False

    @cached_property
    def _least(self) -> Artefact:
        common = (_common(self._choices, group) for group in self._groups)
        smallest = [min(own.values(), key=_nbytes)[0].name for own in common]
        return self._plan(self._named(smallest, _UNNAMED))

    def measure(
        self,
        *,
        effort: EffortName,
        written: EffortName | None = None,
        chunks: Chunks | None,
        importance: Importance | None,
        threads: int,
        progress: Progress | None = None,
    ) -> Sensitivity:
        """Find what each tensor costs at each level; see `measure_costs`.

        The table is of rounding each weight by itself; `front` takes into account that an effort
        above ``fast`` writes most of them by a method: that of ``written``, by default the same.
        """
        choices = self._choices
        self._by_method = effort_of(written or effort).method is not None
        self._sensitivity = measure_costs(
            self._checkpoint,
            {name: own for name, own in choices.candidates.items() if len(own) > 1},
            effort=effort,
            tokens=None if chunks is None else chunks.ids.reshape(-1),
            importance=importance,
            plain=choices.plain and importance is None,
            threads=threads,
            progress=progress,
        )
        return self._sensitivity

    @cached_property
    def front(self) -> Front:
        """The best mixtures; `measure` comes before."""
        assert self._sensitivity is not None
        costs = {t.name: t.costs for t in self._sensitivity.tensors}
        if self._by_method:
            for name, own in costs.items():
                own |= {
                    c.name: _METHOD * own[c.name]
                    for c in self._choices.candidates[name]
                    if self._is_linear(name) and isinstance(c.grid, Groups) and applies(c.grid)
                }
        return Front(_items(self._choices, costs))

    def _is_linear(self, name: str) -> bool:
        """Whether methods reach it: embeddings and stacked experts they do not."""
        ref = self._checkpoint.graph.weights[name]
        return len(ref.shape) == 2 and ref.role != "token_embd"

    def fit(self, nbytes: int) -> Mixture:
        """The best mixture whose files take at most ``nbytes``.

        Raises:
            UsageError: there is none; the smallest possible is stated.
        """
        return self._within(nbytes, lambda mixture: self._planned(mixture).nbytes)

    def bits(self, bpw: float) -> Mixture:
        """The best mixture of at most ``bpw`` bits a weight, vectors counted, metadata not.

        Raises:
            UsageError: there is none; the fewest possible are stated.
        """
        self.refuse_impossible(None, bpw)
        room = self._room(bpw)
        return self._within(room, lambda mixture: _tensor_bytes(self._planned(mixture)))

    def _named(self, levels: Sequence[str], name: str) -> LevelMixture:
        found = {n: v for group, v in zip(self._groups, levels, strict=True) for n in group}
        return LevelMixture(self._to, name, found)

    def _planned(self, mixture: Mixture) -> Artefact:
        return self._plan(self._named([c.packing for c in mixture.choices], _UNNAMED))

    def _room(self, bpw: float) -> int:
        """Bytes that all tensors may take."""
        return int(bpw * self._weights / 8)

    @property
    def _weights(self) -> int:
        return round(8 * _tensor_bytes(self._least) / self._least.bits_per_weight)

    def named(self, mixture: Mixture) -> LevelMixture:
        """Levels by name; it is called after the bits per weight of all tensors."""
        bits = self._planned(mixture).bits_per_weight
        return self._named([c.packing for c in mixture.choices], f"kvant-{bits:.2f}bpw")

    def refuse_impossible(self, fit: int | None, bpw: float | None) -> None:
        """Raise UsageError where not even the smallest mixture keeps the budget."""
        if fit is not None and self._least.nbytes > fit:
            raise self._too_small(fit, self._least.nbytes)
        if bpw is not None and _tensor_bytes(self._least) > self._room(bpw):
            least = math.ceil(self._least.bits_per_weight * 1e4) / 1e4
            raise UsageError(
                f"{self._checkpoint.path}: no mixture has {bpw:g} bits per weight; the fewest "
                f"possible are {least:.4f}. Allow that many, or more levels (--packings)."
            )

    def _within(self, budget: int, size: Callable[[Mixture], int]) -> Mixture:
        try:
            return largest_within(self.front, size, budget)
        except NotReachableError as error:
            raise self._too_small(budget, int(error.least)) from None

    def _too_small(self, asked: int, least: int) -> UsageError:
        return UsageError(
            f"{self._checkpoint.path}: nothing for {self._to} fits {asked:,} bytes; the smallest "
            f"possible has {least:,} ({size_text(least)}). Allow that much, or more levels "
            "(--packings)."
        )


def _nbytes(own: Sequence[Candidate]) -> int:
    return sum(c.nbytes for c in own)


def _tensor_bytes(artefact: Artefact) -> int:
    return sum(t.nbytes for t in artefact.tensors)
