"""A way to store a tensor that a search may choose."""

from __future__ import annotations

from dataclasses import dataclass

from kvant.packing.groups import Groups

__all__ = ["FLOAT", "Candidate"]

FLOAT = "float"
"""What targets other than GGUF call a tensor that is not quantised."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What reports, recipes and ``--tensor`` call it, how weights are rounded, and its size.

    Attributes:
        name: a GGUF packing, a target's level, or `FLOAT`.
        grid: a GGUF packing by name (the source's own where nothing is rounded), or groups.
        nbytes: all bytes of the tensor in the output: codes, scales, zeros.
        slow: takes long to search for; measured only where others are clearly less fitting.
    """

    name: str
    grid: str | Groups
    nbytes: int
    slow: bool = False
