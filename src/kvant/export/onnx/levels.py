"""Names of levels, and the grid each tensor gets.

A level is ``int8``, ``int4`` or ``int2``, then how many weights share a scale (``-g32``), then
``-sym`` where the zero is the middle code and not stored: ``int4-g32``, ``int8-g128-sym``. A bare
name takes the group that serves it best. Scales are half precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kvant.errors import UsageError
from kvant.export.overrides import Overrides
from kvant.export.target import Level
from kvant.graph.ir import Trace
from kvant.graph.ops import Embedding, Linear
from kvant.packing.groups import Groups, Zero
from kvant.packing.spec import PrecisionClass

__all__ = ["GROUPS", "LEVELS", "assigned", "bits_per_weight", "grid"]

GROUPS = (16, 32, 64, 128, 256)
"""What MatMulNBits takes."""

_BARE = {"int2": "int2-g32", "int4": "int4-g32", "int8": "int8-g128-sym"}
_CLASS: dict[int, PrecisionClass] = {2: "ultra-low", 4: "low", 8: "medium"}
_GOOD_FOR = {
    2: "the smallest files; needs --effort balanced",
    4: "most uses: little loss, fast on processors",
    8: "as good as the original, at half its size",
}
_NAME = re.compile(r"int([248])-g(16|32|64|128|256)(-sym)?")


def grid(name: str) -> Groups:
    """The grid of a level, which must be one of `LEVELS` by name."""
    found = _NAME.fullmatch(_BARE.get(name, name))
    if found is None:
        raise ValueError(f"no level {name!r}")
    zero: Zero = "middle" if found[3] else "integer"
    return Groups(found[0], int(found[1]), int(found[2]), zero, "F16")


def bits_per_weight(g: Groups) -> float:
    """Codes, scales and zeros."""
    return g.bits + (16 + (g.bits if g.zero == "integer" else 0)) / g.block


def _level(name: str) -> Level:
    g = grid(name)
    return Level(name, g.bits, bits_per_weight(g), g.block, _CLASS[g.bits], _GOOD_FOR[g.bits])


def _names() -> list[str]:
    full = [f"int{b}-g{g}{s}" for b in (2, 4, 8) for g in reversed(GROUPS) for s in ("-sym", "")]
    return [*full, *_BARE]


LEVELS: tuple[Level, ...] = tuple(
    sorted(map(_level, _names()), key=lambda level: (level.bits_per_weight, level.name))
)
"""All of them, fewest bits first."""

_BY_NAME = {level.name: level for level in LEVELS}


def assigned(
    graph: Trace, level: str | None, overrides: Sequence[str] = ()
) -> tuple[Mapping[str, Groups], tuple[str, ...]]:
    """The grid of every weight that is quantised, by canonical name, and notes.

    Matrices of linears and the token embedding are quantised; tables of positions and vectors are
    not. An embedding of two bits, which no operator looks up, gets four.

    Args:
        graph: the model.
        level: None leaves all as floats.
        overrides: ``REGEX=LEVEL`` texts that go first; the level ``float`` leaves a tensor alone.

    Raises:
        UsageError: an override that cannot be read, names no level, or suits no tensor.
    """
    if level is None and overrides:
        raise UsageError("--tensor is for quantised models; give a level, too.")
    rules = Overrides.parse(overrides, (*_BY_NAME, "float"))
    found: dict[str, Groups] = {}
    notes: list[str] = []
    for node in graph.nodes:
        if not isinstance(node.op, (Linear, Embedding)):
            continue
        name = node.op.weight.name
        chosen = rules.find(name) or level
        if chosen is None or chosen == "float":
            continue
        g = grid(chosen)
        if isinstance(node.op, Embedding) and g.bits == 2:
            g = grid(f"int4-g{max(g.block, 32)}")
            notes.append("The embedding has four bits: no operator looks up rows of two.")
        if name not in found:
            columns = node.op.weight.shape[-1]
            found[name] = _fitting(g, columns)
            notes.append(_changed(g, found[name], columns))
    rules.refuse_unused()
    return found, tuple(dict.fromkeys(note for note in notes if note))


def _changed(wanted: Groups, got: Groups, columns: int) -> str:
    """What a report says of a row that groups do not divide; empty where they do."""
    rows = f"Matrices with rows of {columns} weights"
    if columns % got.block:
        return f"{rows} have groups of {got.block}, the last one filled up with zeros."
    if got.block != wanted.block:
        return f"{rows} have groups of {got.block} instead of {wanted.block}, which do not divide."
    return ""


def _fitting(g: Groups, columns: int) -> Groups:
    """The grid with groups that the row is a whole number of, or the last group padded."""
    block = g.block
    while block > 16 and columns % block:
        block //= 2
    name = f"int{g.bits}-g{block}{'-sym' if g.zero == 'middle' else ''}"
    return g if block == g.block else grid(name)
