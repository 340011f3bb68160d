"""Rows of weights to codes and scales of groups, in the core where it has the loops.

`Groups` is the specification; this gives the same bits. The core has the evenly spaced grids; small
floats are NumPy's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.packing.groups import Groups, widths

__all__ = ["encode_groups", "plain_scales", "quantise_groups", "search_scales"]

Floats = npt.NDArray[Any]
Codes = npt.NDArray[Any]
Scales = npt.NDArray[Any]

_ZEROS = {"bias": 0, "integer": 1, "middle": 2}
_SCALES = {"F32": 0, "F16": 1, "BF16": 2}


def quantise_groups(
    grid: Groups, x: Floats, importance: Floats | None = None, *, plain: bool
) -> tuple[Codes, Scales]:
    """Codes of rows ``x``, and their scales as a file holds them.

    Args:
        grid: whose groups divide the rows.
        x: float32 [rows, columns].
        importance: float32 [columns], of the order of one; weighs errors while scales are
            searched.
        plain: take the format's own formula, without a search.

    Returns:
        uint8 [rows, columns], and `GROUP_SCALES` [rows, columns / block].
    """
    rows, columns = x.shape
    groups = np.ascontiguousarray(x, np.float32).reshape(-1, grid.block)
    if plain:
        scales = plain_scales(grid, groups)
    else:
        scales = search_scales(grid, groups, _by_group(importance, grid.block))
    codes = encode_groups(grid, groups, scales)
    if plain:
        scales["d"] = grid.rounded(scales["d"])
        if grid.zero == "bias":
            scales["z"] = grid.rounded(scales["z"])
    return codes.reshape(x.shape), scales.reshape(rows, columns // grid.block)


def _by_group(importance: Floats | None, block: int) -> Floats | None:
    return None if importance is None else importance.reshape(-1, block)


def plain_scales(grid: Groups, x: Floats) -> Scales:
    """`Groups.plain` of groups ``x`` float32 [groups, block]."""
    lo, hi = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    _core.group_range(x, lo, hi)
    return grid.formula(lo, hi)


def search_scales(grid: Groups, x: Floats, importance: Floats | None = None) -> Scales:
    """`Groups.search` of groups ``x`` float32 [groups, block].

    ``importance`` is float32 [n, block]: group i is weighed by its row i mod n.
    """
    if grid.table is not None:
        whole = None
        if importance is not None:
            whole = np.tile(importance, (len(x) // len(importance), 1))
        return grid.search(x, whole)
    d, z = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    stretches = np.array(widths(grid), np.float32)
    _core.group_search(
        *(grid.bits, _ZEROS[grid.zero], _SCALES[grid.scale], x, weights, stretches, d, z)
    )
    return grid.scales(d, z)


def encode_groups(grid: Groups, x: Floats, scales: Scales) -> Codes:
    """`Groups.encode` of groups ``x`` float32 [groups, block]."""
    if grid.table is not None:
        return grid.encode(x, scales)
    codes = np.empty(x.shape, np.uint8)
    d, z = np.ascontiguousarray(scales["d"]), np.ascontiguousarray(scales["z"])
    _core.group_encode(grid.bits, _ZEROS[grid.zero], x, d, z, codes)
    return codes
