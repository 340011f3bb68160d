"""Running the native kernels of each instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvant import _core
from kvant.packing import Packing, all_packings
from kvant.packing.lattice_layout import LatticePacking

__all__ = [
    "BLOCK_PACKINGS",
    "K_PACKINGS",
    "LATTICE_PACKINGS",
    "PLAIN_PACKINGS",
    "SEARCHED_PACKINGS",
    "using",
]

BLOCK_PACKINGS: tuple[Packing, ...] = tuple(p for p in all_packings() if p.block > 1)
K_PACKINGS = tuple(p for p in BLOCK_PACKINGS if p.name.endswith("_K"))
LATTICE_PACKINGS = tuple(p for p in BLOCK_PACKINGS if isinstance(p, LatticePacking))
PLAIN_PACKINGS = tuple(
    p for p in BLOCK_PACKINGS if p.name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
)
"""Those that ggml's formulas define: scales do not depend on importance."""
SEARCHED_PACKINGS = tuple(p for p in BLOCK_PACKINGS if p not in PLAIN_PACKINGS)


@contextmanager
def using(isa: str) -> Iterator[None]:
    """Use the kernels of one instruction set for a while."""
    before = _core.current_isa()
    if not _core.select_isa(isa):
        raise ValueError(f"{isa} is not among {_core.isas()}")
    try:
        yield
    finally:
        _core.select_isa(before)
