"""The packings a tensor may get."""

from __future__ import annotations

from collections.abc import Sequence

from kvant.checkpoint import Checkpoint, Weight
from kvant.errors import UsageError
from kvant.packing import Packing, all_packings, get
from kvant.quant.assign import Slot
from kvant.quant.candidate import Candidate
from kvant.quant.recipe import FLOATS

__all__ = [
    "ALL",
    "FAST",
    "candidates",
    "choose_packings",
    "matrices",
    "packing_candidates",
    "stored_as",
]

FAST, ALL = "fast", "all"
"""Words for sets of packings: those every common runtime runs at the speed their bytes allow, and
every one kvant writes."""


def choose_packings(names: Sequence[str] = (FAST,)) -> tuple[Packing, ...]:
    """The quantised packings meant by ``names``: `FAST`, `ALL`, or single names, in any mixture.

    Raises:
        UsageError: a name nothing is called by, or one that does not quantise.
    """
    quantised = [p for p in all_packings() if p.name not in FLOATS]
    wanted: set[str] = set()
    for name in names:
        if name.lower() == ALL:
            wanted |= {p.name for p in quantised}
        elif name.lower() == FAST:
            wanted |= {p.name for p in quantised if p.fast}
        else:
            packing = get(name)
            if packing.name in FLOATS:
                raise UsageError(
                    f"--packings expects packings that quantise, got {packing.name}; weights stay "
                    "as they are stored where the budget allows it, without being asked."
                )
            wanted.add(packing.name)
    found = tuple(p for p in quantised if p.name in wanted)
    if not found:
        raise UsageError("--packings names no packing; leave it out, or give some, such as Q4_K.")
    return found


def candidates(row_length: int, stored: str, packings: Sequence[Packing]) -> tuple[str, ...]:
    """Packings for a matrix with rows of ``row_length``, fewest bits first, the last one lossless.

    The last is how the source stores it: better than that no file can be. Where rows fill no
    block of the others it is the only one.
    """
    own = get(stored)
    fitting = [p for p in packings if row_length % p.block == 0 and p.name != own.name]
    fitting = [p for p in fitting if p.bits_per_weight < own.bits_per_weight]
    return (*(p.name for p in sorted(fitting, key=lambda p: p.bits_per_weight)), own.name)


def packing_candidates(
    checkpoint: Checkpoint, packings: Sequence[Packing]
) -> dict[str, tuple[Candidate, ...]]:
    """`candidates` of every matrix, by canonical name, with what each takes."""
    found = {}
    for name, weight in matrices(checkpoint).items():
        stored = weight.stored
        found[name] = tuple(
            Candidate(
                p, p, stored.rows * get(p).storage.row_bytes(stored.row_length), not get(p).fast
            )
            for p in candidates(stored.row_length, stored_as(weight), packings)
        )
    return found


def matrices(checkpoint: Checkpoint) -> dict[str, Weight]:
    """The weights that are quantised, by canonical name."""
    refs = checkpoint.graph.weights
    return {
        name: weight
        for name, weight in checkpoint.weights.items()
        if Slot(name, refs[name].role, refs[name].layer, weight.shape).is_matrix
    }


def stored_as(weight: Weight) -> str:
    """The packing a weight has in its source."""
    return weight.stored.type.name
