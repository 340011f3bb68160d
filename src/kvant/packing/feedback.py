"""Codes chosen column by column: the core's loops inside one block of columns.

A packing's ``feedback`` says how. Where codes stand for one weight each the loops need only what
its ``decode`` says of its levels: where these are evenly spaced two of them tell the others,
otherwise all are listed. Where codes stand for several weights its kernels choose them together
(native/kernels/lattice_feedback.h).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.packing import get
from kvant.packing.groups import Groups
from kvant.packing.spec import Codes, Floats, Scales

__all__ = [
    "carry",
    "carry_group",
    "descend",
    "descend_group",
]


def carry(
    name: str,
    w: Floats,
    start: int,
    scales: Scales,
    factor: Floats,
    inverse: Floats,
    *,
    threads: int,
) -> tuple[Codes, Floats]:
    """Codes of the block of columns from ``start``, each column correcting those to its right.

    For each column j in order: the code nearest to ``w[:, j]``; the error, what is left divided by
    the factor's diagonal; and ``error * factor[j, i]`` is taken off every later column i of the
    block.

    Args:
        name: the packing.
        w: float32 [rows, columns]; the block's columns end as they were when they were rounded.
        start: first column of the block.
        scales: of the block in every row, [rows].
        factor: float32 [block, block], the upper factor right of its diagonal, zero elsewhere.
        inverse: float32 [block], 1 / the factor's diagonal.
        threads: processors to use; the result does not depend on it.

    Returns:
        Codes uint8 [rows, block], and errors float32 [rows, block] for the blocks to the right.
    """
    packing = get(name)
    codes = np.empty((len(w), packing.block), np.uint8)
    error = np.empty((len(w), packing.block), np.float32)
    _core.carry(
        packing.storage.id,
        packing.code_count,
        packing.feedback == "even",
        w,
        start,
        _bytes_of(scales),
        factor,
        inverse,
        codes,
        error,
        threads,
    )
    return codes, error


def descend(
    name: str,
    q: Floats,
    r: Floats,
    start: int,
    scales: Scales,
    moments: Floats,
    inverse: Floats,
    codes: Codes,
    *,
    threads: int,
) -> Floats:
    """One sweep of coordinate descent over the codes of a block of columns, scales fixed.

    Args:
        name: the packing.
        q: float32 [rows, columns], what the codes stand for; updated.
        r: float32 [rows, columns], (q - wanted) times the second moments; updated in the block.
        start: first column of the block.
        scales: of the block in every row, [rows].
        moments: float32 [block, block], the second moments of the block's inputs.
        inverse: float32 [block], 1 / their diagonal.
        codes: uint8 [rows, block]; updated.
        threads: processors to use; the result does not depend on it.

    Returns:
        How ``q`` changed, float32 [rows, block].
    """
    packing = get(name)
    change = np.empty((len(q), packing.block), np.float32)
    _core.descend(
        packing.storage.id,
        packing.code_count,
        packing.feedback == "even",
        q,
        r,
        start,
        _bytes_of(scales),
        moments,
        inverse,
        codes,
        change,
        threads,
    )
    return change


def carry_group(
    grid: Groups,
    w: Floats,
    start: int,
    scales: Scales,
    factor: Floats,
    inverse: Floats,
    *,
    threads: int,
) -> tuple[Codes, Floats]:
    """As `carry`, for a block of columns that is one group of ``grid``."""
    codes = np.empty((len(w), grid.block), np.uint8)
    error = np.empty((len(w), grid.block), np.float32)
    base, step = _lines(grid, scales)
    _core.carry_group(
        *(grid.bits, base, step, _table(grid), w, start, factor, inverse, codes, error, threads)
    )
    return codes, error


def descend_group(
    grid: Groups,
    q: Floats,
    r: Floats,
    start: int,
    scales: Scales,
    moments: Floats,
    inverse: Floats,
    codes: Codes,
    *,
    threads: int,
) -> Floats:
    """As `descend`, for a block of columns that is one group of ``grid``."""
    change = np.empty((len(q), grid.block), np.float32)
    base, step = _lines(grid, scales)
    _core.descend_group(
        *(grid.bits, base, step, _table(grid), q, r, start, moments, inverse, codes),
        *(change, threads),
    )
    return change


def _lines(grid: Groups, scales: Scales) -> tuple[Floats, Floats]:
    """What code 0 stands for in each row, and what each further code adds."""
    step = np.ascontiguousarray(scales["d"])
    if grid.table is not None:
        return np.zeros_like(step), step
    base = scales["z"] if grid.zero == "bias" else -scales["z"] * step
    return np.ascontiguousarray(base, np.float32), step


def _table(grid: Groups) -> Floats | None:
    """The levels of codes, one that is none at all made to be far from every weight."""
    if grid.table is None:
        return None
    return np.ascontiguousarray(np.where(np.isnan(grid.table), np.float32(1e9), grid.table))


def _bytes_of(scales: Scales) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(scales).view(np.uint8).reshape(len(scales), -1)
