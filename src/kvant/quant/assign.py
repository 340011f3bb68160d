"""A recipe meets a model: one packing for each tensor, and what had to give way."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvant.errors import UsageError
from kvant.packing import get
from kvant.quant.recipe import ModelShape, Recipe

__all__ = [
    "FALLBACKS",
    "KEPT",
    "NEED_IMPORTANCE",
    "Assignment",
    "Slot",
    "assign",
    "parse_override",
]

NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
"""Packings with so few combinations that what matters has to be known: llama.cpp refuses them
without an importance matrix."""

FALLBACKS: dict[str, str] = {
    **dict.fromkeys(sorted(NEED_IMPORTANCE | {"IQ3_S", "IQ4_XS"}), "IQ4_NL"),
    **dict.fromkeys(("Q1_0", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Where a row is not a whole number of 256-weight blocks, the 32-weight packing that takes the
place; llama.cpp's rule. Where 32 does not divide the row either, F16."""


KEPT = frozenset({"ffn_gate_inp", "position_embd", "token_types"})
"""Roles of matrices that are kept in F32: a router is small, and decides what everything else is
for; positions and kinds of segments are added to all that follows. llama.cpp keeps them too."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor waiting for a packing. ``shape`` is row-major."""

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it is quantised: vectors (norms, biases) and ``KEPT`` are not, they are small and
        they matter."""
        return len(self.shape) >= 2 and self.role not in KEPT


@dataclass(frozen=True, slots=True)
class Assignment:
    """The packing of a tensor; ``wanted`` differs from it where rows did not fill blocks."""

    slot: Slot
    packing: str
    wanted: str

    @property
    def fell_back(self) -> bool:
        """Whether the recipe's packing could not be used."""
        return self.packing != self.wanted


def parse_override(text: str) -> tuple[re.Pattern[str], str]:
    """``REGEX=PACKING`` as given to --tensor.

    Raises:
        UsageError: no '=', a bad expression, or an unknown packing.
    """
    pattern, sep, packing = text.rpartition("=")
    if not sep or not pattern:
        raise UsageError(
            f"--tensor expects REGEX=PACKING, got {text!r}; for example 'ffn_down=Q6_K'."
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--tensor {text!r}: not a regular expression: {error}.") from None
    return compiled, get(packing).name


def assign(
    recipe: Recipe,
    slots: Iterable[Slot],
    shape: ModelShape,
    overrides: Sequence[tuple[re.Pattern[str], str]] = (),
) -> list[Assignment]:
    """Choose a packing for every tensor.

    ``overrides`` go before everything else, the first that is found in a name decides; they are
    never weakened silently.

    Raises:
        UsageError: an override decides about no matrix, or asks for a packing that cannot hold
            the rows; the recipe's map names a tensor the model does not have.
    """
    slots = list(slots)
    _check_names(recipe, slots)
    used = [False] * len(overrides)
    result = []
    for slot in slots:
        if not slot.is_matrix:
            result.append(Assignment(slot, "F32", "F32"))
            continue
        forced = next((i for i, (p, _) in enumerate(overrides) if p.search(slot.name)), None)
        if forced is not None:
            used[forced] = True
            packing = overrides[forced][1]
            _check_rows(slot, packing)
            result.append(Assignment(slot, packing, packing))
            continue
        wanted = recipe.packing_of(slot.name, slot.role, slot.layer, shape, slot.shape[-1])
        result.append(Assignment(slot, _fitting(wanted, slot.shape[-1]), wanted))
    for (pattern, packing), was_used in zip(overrides, used, strict=True):
        if not was_used:
            covered = any(s.is_matrix and pattern.search(s.name) for s in slots)
            raise UsageError(
                f"--tensor '{pattern.pattern}={packing}' matches no weight matrix "
                + (
                    "that an earlier --tensor did not take; put it before that one."
                    if covered
                    else "of this model; `kvant quantize SRC RECIPE --dry-run` lists their names."
                )
            )
    return result


def _fitting(packing: str, row_length: int) -> str:
    if row_length % get(packing).block == 0:
        return packing
    smaller = FALLBACKS.get(packing, "F16")
    return smaller if row_length % get(smaller).block == 0 else "F16"


def _check_rows(slot: Slot, packing: str) -> None:
    block = get(packing).block
    if slot.shape[-1] % block:
        raise UsageError(
            f"{slot.name} has rows of {slot.shape[-1]} weights and {packing} stores blocks of "
            f"{block}; choose a packing whose block divides the row."
        )


def _check_names(recipe: Recipe, slots: Sequence[Slot]) -> None:
    names = {s.name for s in slots}
    unknown = sorted(set(recipe.tensors) - names)
    if unknown:
        raise UsageError(
            f"Recipe {recipe.name} gives a packing to {unknown[0]!r}, which this model does not "
            "have; the recipe belongs to another model."
        )
