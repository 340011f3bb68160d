"""What was written, read back and compared with the source before it appears.

Floats must be the source's, rounded once. Blocks must be within what their grid allows
(`verify_folder.bound`); their error is stated. Runs of rows at a time, so memory does not grow with
the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvant.checkpoint import Checkpoint, Weight
from kvant.errors import OutputError
from kvant.export.onnx.read import dequantised
from kvant.packing.groups import Groups

__all__ = ["check_onnx"]

_RUN = 1 << 20
_MOST = 0.75
_ROUNDING = {"float32": 0.0, "float16": 2.0**-11}
_LEAST = {"float32": 0.0, "float16": 2.0**-24}


def check_onnx(
    source: Checkpoint, folder: Path, grids: Mapping[str, Groups], kind: str, *, threads: int
) -> str:
    """Compare every weight; returns a sentence for the report.

    Raises:
        OutputError: they differ by more than is allowed; names the tensor.
    """
    model = dequantised(source, folder)

    def compared(name: str) -> tuple[float, str]:
        grid = grids.get(name)
        error = _error(source.weights[name], model.weights[name], kind if grid is None else None)
        if grid is not None and error > bound(grid):
            raise _broken(
                f"tensor {name} differs from the source by {error:.3f} of its size, expected at "
                f"most {bound(grid):.3f}"
            )
        return error, name

    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = [pair for pair in pool.map(compared, source.weights) if pair[1] in grids]
    exact = len(source.weights) - len(found)
    said = f"Verified: {exact} tensors read back are the source's to the last digit kept"
    if not found:
        return f"{said}."
    worst, name = max(found)
    return (
        f"{said}; of {len(found)} quantised ones the relative error is at most {worst:.4f} "
        f"({name}), the bound for it {bound(grids[name]):.4f}."
    )


def bound(grid: Groups) -> float:
    """The most relative error of a tensor: half a step of the levels for every weight, a step the
    block's range over the number of levels."""
    return min(_MOST, math.sqrt(grid.block) / grid.most)


def _error(source: Weight, written: Weight, kind: str | None) -> float:
    """Root of the mean squared difference over that of the source; floats also one by one."""
    squares = reference = 0.0
    step = source.row_step
    rows, columns = source.stored.rows, source.stored.row_length
    height = max(1, _RUN // (columns * step)) * step
    with source.open() as a, written.open() as b:
        for start in range(0, rows, height):
            stop = min(rows, start + height)
            x = source.read_rows_f32(a, start, stop)
            error = written.read_rows_f32(b, start, stop) - x
            if kind is not None:
                allowed = _ROUNDING[kind] * np.abs(x) + _LEAST[kind]
                if not (np.abs(error) <= allowed).all():
                    raise _broken(
                        f"tensor {source.name} differs from the source by up to "
                        f"{float(np.abs(error).max()):g}, more than rounding to {kind} explains"
                    )
            squares += float(np.square(error, dtype=np.float64).sum())
            reference += float(np.square(x, dtype=np.float64).sum())
    return math.sqrt(squares / reference) if reference else float(squares > 0)


def _broken(what: str) -> OutputError:
    return OutputError(
        f"What was written does not read back as it should: {what}. Nothing was kept. This is a "
        "fault of kvant's or of the disk's; --no-verify keeps the files."
    )
