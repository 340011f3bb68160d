"""Weights that were written, held against their source: what every target's check has in common.

Every weight that is stored as a float must be the source's, rounded once. Of quantised matrices the
error is stated, and must be below what their grid allows: a group's weights are within half a step
of the levels, a step is the group's range over the number of levels, and the range is at most the
root of the group's length times twice the root mean square. Runs of rows at a time, so memory does
not grow with the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Weight
from kvant.errors import OutputError
from kvant.export.work import RUN_WEIGHTS
from kvant.packing.groups import Groups

__all__ = ["bound", "broken", "check_bound", "check_rounded", "relative_error", "sentence"]

Floats = npt.NDArray[np.float32]

#: Of a weight's size: half a unit in the last place, and a little for values below the normal ones.
_ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
_LEAST = {"F32": 0.0, "F16": 2.0**-24, "BF16": 2.0**-133}
_MOST = 0.75
"""No bound is above this: rows or columns in a wrong order give an error of 1.4, zeros of 1."""


def bound(grid: Groups) -> float:
    """The most relative error of a tensor on ``grid``."""
    if grid.levels == "E4M3":
        return 0.125
    steps = 5 if grid.levels == "E2M1" else grid.most
    return min(_MOST, math.sqrt(grid.block) / steps)


def relative_error(
    source: Weight, written: Weight, check: Callable[[Floats, Floats], None] | None = None
) -> float:
    """Root of the mean squared difference over that of the source.

    ``check`` is given each run of the source's rows and their differences.
    """
    squares = reference = 0.0
    step = math.lcm(written.row_step, source.row_step)
    rows, columns = source.stored.rows, source.stored.row_length
    height = max(1, RUN_WEIGHTS // (columns * step)) * step
    with source.open() as a, written.open() as b:
        for start in range(0, rows, height):
            stop = min(rows, start + height)
            x = source.read_rows_f32(a, start, stop)
            error = written.read_rows_f32(b, start, stop) - x
            if check is not None:
                check(x, error)
            squares += float(np.square(error, dtype=np.float64).sum())
            reference += float(np.square(x, dtype=np.float64).sum())
    return math.sqrt(squares / reference) if reference else float(squares > 0)


def check_rounded(name: str, dtype: str, x: Floats, error: Floats, *, less: bool = False) -> None:
    """Raise OutputError unless ``error`` is explained by rounding ``x`` to ``dtype``.

    ``less``: what is stored is less by one, and was rounded at that size.
    """
    size = np.abs(x) + (2.0 if less else 0.0)
    allowed = _ROUNDING[dtype] * size + _LEAST[dtype] + (2.0**-23 if less else 0.0)
    if not (np.abs(error) <= allowed).all():
        raise broken(
            f"tensor {name} differs from the source by up to {float(np.abs(error).max()):g}, more "
            f"than rounding to {dtype} explains"
        )


def check_bound(name: str, grid: Groups, error: float) -> None:
    """Raise OutputError where a relative error is more than ``grid`` allows."""
    if not error <= bound(grid):  # nor may it be NaN
        raise broken(
            f"tensor {name} differs from the source by {error:.3f} of its size, expected at most "
            f"{bound(grid):.3f}"
        )


def sentence(exact: int, quantised: Sequence[tuple[float, str, float]]) -> str:
    """What a report says: so many floats, and of each quantised tensor its error, name, bound."""
    said = f"Verified: {exact} tensors read back are the source's to the last digit kept"
    if not quantised:
        return f"{said}."
    error, name, allowed = max(quantised)
    return (
        f"{said}; of {len(quantised)} quantised ones the relative error is at most {error:.4f} "
        f"({name}), the bound for it {allowed:.4f}."
    )


def broken(what: str) -> OutputError:
    """The error for what does not read back as it should."""
    return OutputError(
        f"What was written does not read back as it should: {what}. Nothing was kept. This is a "
        "fault of kvant's or of the disk's; --no-verify keeps the files."
    )
