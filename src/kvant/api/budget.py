"""A budget becomes a recipe: costs measured once, then the best mixture for any size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kvant.api.effort import effort_of
from kvant.calibration import Chunks, Importance, collect_importance, importance_bytes
from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.evidence import Making
from kvant.export.gguf.plan import ModelKeys, Plan, model_shape, model_slots, plan_export
from kvant.packing import get
from kvant.quant.allocate import Choice, Front, Item, Mixture, NotReachableError
from kvant.quant.assign import parse_override
from kvant.quant.mixture import mixture_recipe
from kvant.quant.recipe import Recipe
from kvant.tuning.candidates import (
    FAST,
    candidates,
    choose_packings,
    matrices,
    packing_candidates,
    stored_as,
)
from kvant.tuning.sensitivity import EffortName, Progress, Sensitivity, measure_costs
from kvant.units import size_text

__all__ = [
    "BudgetSearch",
    "collected",
    "largest_within",
    "named",
    "pinned_by",
    "placeholder",
    "plan_maker",
    "search_budgets",
    "smallest_plan",
    "too_few_bits",
    "too_small",
]

_ROUNDS = 16

MakePlan = Callable[[Recipe], Plan]


def smallest_plan(
    checkpoint: Checkpoint, packings: Sequence[str], pinned: Mapping[str, str], make_plan: MakePlan
) -> Plan:
    """The smallest file the packings allow; nothing is read for it."""
    chosen = choose_packings(packings)
    tensors = {}
    for name, weight in matrices(checkpoint).items():
        own = candidates(weight.stored.row_length, stored_as(weight), chosen)
        tensors[name] = pinned.get(name, own[0])
    return make_plan(_recipe(checkpoint, tensors))


@dataclass(frozen=True)
class BudgetSearch:
    """What each tensor of a model costs, and recipes for any budget."""

    checkpoint: Checkpoint
    sensitivity: Sensitivity
    pinned: Mapping[str, str]
    make_plan: MakePlan

    @cached_property
    def front(self) -> Front:
        """The best mixtures."""
        return Front([self._item(t.item()) for t in self.sensitivity.tensors])

    def _item(self, item: Item) -> Item:
        packing = self.pinned.get(item.names[0])
        if packing is None:
            return item
        size = 0
        for name in item.names:
            stored = self.checkpoint.weights[name].stored
            size += stored.rows * get(packing).storage.row_bytes(stored.row_length)
        return replace(item, choices=(Choice(packing, size, 0.0),))

    def recipe(self, mixture: Mixture) -> Recipe:
        """The recipe of a mixture."""
        names = [t.name for t in self.sensitivity.tensors]
        chosen = {n: c.packing for n, c in zip(names, mixture.choices, strict=True)}
        return _recipe(self.checkpoint, chosen)

    def cost(self, recipe: Recipe) -> float:
        """The divergence expected of any recipe, by the table; NaN where it has no figure."""
        plan = self.make_plan(recipe)
        chosen = {t.name: t.assignment.packing for t in plan.tensors}
        return sum(t.costs.get(chosen[t.name], float("nan")) for t in self.sensitivity.tensors)

    def fit(self, nbytes: int) -> tuple[Recipe, Mixture]:
        """The best recipe whose files take at most ``nbytes``, header and padding included.

        Raises:
            UsageError: there is none; the smallest possible is stated.
        """

        def size(mixture: Mixture) -> int:
            return self.make_plan(self.recipe(mixture)).size

        try:
            best = largest_within(self.front, size, nbytes)
        except NotReachableError as error:
            raise too_small(self.checkpoint, nbytes, int(error.least)) from None
        return self.recipe(best), best

    def bits(self, bpw: float) -> tuple[Recipe, Mixture]:
        """The best recipe of at most ``bpw`` bits a weight, vectors counted, metadata not.

        Raises:
            UsageError: there is none; the fewest possible are stated.
        """
        least = self.front.within_bytes(self.front.least_bytes)
        plan = self.make_plan(self.recipe(least))
        vectors = sum(t.spec.nbytes for t in plan.tensors) - least.nbytes
        room = int(bpw * plan.weights / 8) - vectors
        if room < least.nbytes:
            raise too_few_bits(self.checkpoint, bpw, plan.bits_per_weight)
        found = self.front.within_bytes(room)
        return self.recipe(found), found


def largest_within(front: Front, size: Callable[[Mixture], int], budget: int) -> Mixture:
    """The best mixture found whose files have a ``size`` of at most ``budget`` bytes.

    Headers and padding depend a little on what is chosen, so the room for tensors is found by
    trying; whatever is taken has been planned to the byte.

    Raises:
        NotReachableError: even the smallest takes more.
    """
    least = front.within_bytes(front.least_bytes)
    taken = size(least)
    if taken > budget:
        raise NotReachableError("bytes", budget, taken)
    best, room = least, least.nbytes + budget - taken
    for _ in range(_ROUNDS):
        found = front.within_bytes(max(room, front.least_bytes))
        taken = size(found)
        if taken <= budget:
            if found.cost >= best.cost and best is not least:
                break
            best, room = found, max(room + 1, found.nbytes + budget - taken)
        else:
            room = min(found.nbytes - 1, room - (taken - budget))
    return best


def search_budgets(
    checkpoint: Checkpoint,
    make_plan: MakePlan,
    *,
    effort: EffortName = "balanced",
    packings: Sequence[str] = (FAST,),
    overrides: Sequence[str] = (),
    chunks: Chunks | None = None,
    importance: Importance | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> BudgetSearch:
    """Measure what each tensor costs at each packing.

    Args:
        checkpoint: the model, unquantised.
        make_plan: plans the export of a recipe, with everything else that decides about its size.
        effort: ``fast`` runs nothing; ``balanced`` and ``best`` measure.
        packings: that tensors may get: ``fast``, ``all``, or names.
        overrides: ``REGEX=PACKING`` texts; what they match is not searched.
        chunks: the text to measure on; not needed for ``fast``.
        importance: of this model's inputs, where it is known.
        threads: processors to use.
        progress: called with what is done, steps done and steps in all.

    Raises:
        UsageError: no such effort or packing.
        InputError: the model cannot be run.
    """
    effort_of(effort)  # raises where there is none
    sensitivity = measure_costs(
        checkpoint,
        packing_candidates(checkpoint, choose_packings(packings)),
        effort=effort,
        tokens=None if chunks is None else chunks.ids.reshape(-1),
        importance=importance,
        threads=threads,
        progress=progress,
    )
    return BudgetSearch(checkpoint, sensitivity, pinned_by(checkpoint, overrides), make_plan)


def pinned_by(checkpoint: Checkpoint, overrides: Sequence[str]) -> dict[str, str]:
    """The matrices that ``REGEX=PACKING`` texts decide about, the first that matches each."""
    parsed = [parse_override(text) for text in overrides]
    return {
        name: next(packing for pattern, packing in parsed if pattern.search(name))
        for name in matrices(checkpoint)
        if any(pattern.search(name) for pattern, _ in parsed)
    }


def too_small(checkpoint: Checkpoint, asked: int, least: int) -> UsageError:
    """No file of the packings allowed is as small as asked for."""
    return UsageError(
        f"{checkpoint.path}: no file fits {asked:,} bytes; the smallest possible has {least:,} "
        f"({size_text(least)}). Allow that much, or more packings (--packings)."
    )


def too_few_bits(checkpoint: Checkpoint, asked: float, least: float) -> UsageError:
    """The same in bits per weight."""
    return UsageError(
        f"{checkpoint.path}: no mixture has {asked:g} bits per weight; the fewest possible are "
        f"{math.ceil(least * 1e4) / 1e4:.4f}. Allow that many, or more packings (--packings)."
    )


def _recipe(checkpoint: Checkpoint, tensors: Mapping[str, str]) -> Recipe:
    return mixture_recipe(tensors, model_slots(checkpoint), model_shape(checkpoint))


def collected(
    checkpoint: Checkpoint, chunks: Chunks, threads: int, progress: Progress | None
) -> Importance:
    """The model's importance over the chunks, with the checksum its file would have."""
    found = collect_importance(
        checkpoint, chunks, threads=threads, progress=named(progress, "calibrating")
    )
    return replace(found, sha256=hashlib.sha256(importance_bytes(found)).hexdigest())


def placeholder(checkpoint: Checkpoint, chunks: Chunks) -> Importance:
    """Importance that takes as much room in a header as what will be collected over the chunks."""
    weights = matrices(checkpoint)
    sums = {n: np.ones(w.stored.row_length, np.float32) for n, w in weights.items()}
    one = np.ones(1, np.int64)
    datasets = tuple(t.name for t in chunks.texts)
    return Importance(sums, dict.fromkeys(sums, one), datasets=datasets, sha256="0" * 64)


def named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    """The progress of one part of the work."""
    return None if progress is None else lambda done, total: progress(what, done, total)


def plan_maker(
    checkpoint: Checkpoint,
    model: ModelKeys,
    overrides: Sequence[str],
    split_size: int | None,
    importance: Importance | None,
    reserve: bool = False,
    making: Making | None = None,
) -> MakePlan:
    """Plans of one model by recipe; its keys are computed once.

    ``reserve``: with room for evidence, which counts against a budget of bytes too, as does what
    the file says of its method (``making``).
    """

    def make_plan(recipe: Recipe) -> Plan:
        return plan_export(
            checkpoint,
            recipe,
            overrides=overrides,
            split_size=split_size,
            model=model,
            importance=importance,
            reserve=reserve,
            making=making,
        )

    return make_plan
