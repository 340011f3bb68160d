"""Rows of weights to codes and scales of groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.packing.groups import Groups

__all__ = ["quantise_groups"]

Floats = npt.NDArray[Any]
Codes = npt.NDArray[Any]
Scales = npt.NDArray[Any]


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
        scales = grid.plain(groups)
    else:
        weights = None
        if importance is not None:
            weights = np.broadcast_to(importance, x.shape).reshape(groups.shape)
        scales = grid.search(groups, weights)
    codes = grid.encode(groups, scales)
    if plain:
        scales = scales.copy()
        scales["d"] = grid.rounded(scales["d"])
        if grid.zero == "bias":
            scales["z"] = grid.rounded(scales["z"])
    return codes.reshape(x.shape), scales.reshape(rows, columns // grid.block)
