"""What methods need of a grid: GGUF's packings and groups of other formats, seen alike.

A grid works on one block of columns at a time: its scales are fitted together, and a method goes
through its columns with the core's loops (`packing.feedback`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvant.packing import feedback, get, native
from kvant.packing.groups import GROUP_SCALES, Groups
from kvant.packing.half import to_half
from kvant.packing.quantise_groups import encode_groups, search_scales
from kvant.packing.spec import SCALES, Codes, Floats, Scales

__all__ = ["Grid", "grid_of"]


class Grid(Protocol):
    """Codes and scales of blocks of columns."""

    @property
    def block(self) -> int:
        """Columns of a block."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the scales of a block."""
        ...

    def fit(self, x: Floats, importance: Floats) -> Scales:
        """Scales [rows] of blocks [rows, block].

        ``importance`` [n, block] weighs errors, row i by its row i mod n.
        """
        ...

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """The nearest codes of blocks [rows, block] under fixed scales."""
        ...

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """What codes [n, block] under scales [n] stand for."""
        ...

    def carry(
        self, w: Floats, start: int, scales: Scales, factor: Floats, inverse: Floats, threads: int
    ) -> tuple[Codes, Floats]:
        """See `packing.feedback.carry`."""
        ...

    def descend(
        self,
        q: Floats,
        r: Floats,
        start: int,
        scales: Scales,
        moments: Floats,
        inverse: Floats,
        codes: Codes,
        threads: int,
    ) -> Floats:
        """See `packing.feedback.descend`."""
        ...

    def directions(self, codes: Codes, scales: Scales) -> list[Floats]:
        """What a block's weights change by when each of its free scales grows by one."""
        ...

    def moved(self, scales: Scales, steps: list[Floats]) -> Scales:
        """Scales after such steps, as a file holds them."""
        ...


def grid_of(packing: str | Groups) -> Grid:
    """The grid of a GGUF packing by its name, or of groups."""
    return _OfGroups(packing) if isinstance(packing, Groups) else _OfPacking(packing)


@dataclass(frozen=True, slots=True)
class _OfPacking:
    name: str

    @property
    def block(self) -> int:
        return get(self.name).block

    @property
    def dtype(self) -> np.dtype[Any]:
        return SCALES

    def fit(self, x: Floats, importance: Floats) -> Scales:
        weights = np.tile(importance, (len(x) // len(importance), 1))
        return native.fit(self.name, x, weights)

    def encode(self, x: Floats, scales: Scales) -> Codes:
        return native.encode(self.name, x, scales)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        return native.decode(self.name, codes, scales)

    def carry(
        self, w: Floats, start: int, scales: Scales, factor: Floats, inverse: Floats, threads: int
    ) -> tuple[Codes, Floats]:
        return feedback.carry(self.name, w, start, scales, factor, inverse, threads=threads)

    def descend(
        self,
        q: Floats,
        r: Floats,
        start: int,
        scales: Scales,
        moments: Floats,
        inverse: Floats,
        codes: Codes,
        threads: int,
    ) -> Floats:
        return feedback.descend(
            self.name, q, r, start, scales, moments, inverse, codes, threads=threads
        )

    def directions(self, codes: Codes, scales: Scales) -> list[Floats]:
        unit = scales.copy()
        unit["d"], unit["dmin"] = 1, 0
        along = [self.decode(codes, unit)]
        if (scales["dmin"] != 0).any():
            unit["d"], unit["dmin"] = 0, 1
            along.append(self.decode(codes, unit))
        return along

    def moved(self, scales: Scales, steps: list[Floats]) -> Scales:
        new = scales.copy()
        new["d"] = to_half(scales["d"] + steps[0])
        if len(steps) > 1:
            new["dmin"] = to_half(np.maximum(scales["dmin"] + steps[1], 0))
        return new


@dataclass(frozen=True, slots=True)
class _OfGroups:
    groups: Groups

    @property
    def block(self) -> int:
        return self.groups.block

    @property
    def dtype(self) -> np.dtype[Any]:
        return GROUP_SCALES

    def fit(self, x: Floats, importance: Floats) -> Scales:
        return search_scales(self.groups, x, importance)

    def encode(self, x: Floats, scales: Scales) -> Codes:
        return encode_groups(self.groups, x, scales)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        return self.groups.decode(codes, scales)

    def carry(
        self, w: Floats, start: int, scales: Scales, factor: Floats, inverse: Floats, threads: int
    ) -> tuple[Codes, Floats]:
        return feedback.carry_group(self.groups, w, start, scales, factor, inverse, threads=threads)

    def descend(
        self,
        q: Floats,
        r: Floats,
        start: int,
        scales: Scales,
        moments: Floats,
        inverse: Floats,
        codes: Codes,
        threads: int,
    ) -> Floats:
        return feedback.descend_group(
            self.groups, q, r, start, scales, moments, inverse, codes, threads=threads
        )

    def directions(self, codes: Codes, scales: Scales) -> list[Floats]:
        return self.groups.directions(codes, scales)

    def moved(self, scales: Scales, steps: list[Floats]) -> Scales:
        return self.groups.moved(scales, steps)
