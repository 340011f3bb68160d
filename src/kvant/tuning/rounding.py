"""How far rounding moves a tensor's outputs, relatively, on each grid; and its packed rows.

A grid is a GGUF packing, by name, or groups of another format.

An output of a linear is a sum over inputs; where the errors of weights are independent of one
another, its mean squared error is the sum of their squares, each weighted by its input's mean
square ("second moment"). Relative to the outputs' own mean square, estimated alike, that is one
number a grid, and divergence is proportional to it as long as it is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Weight
from kvant.packing import dequantize, get
from kvant.packing.groups import Groups
from kvant.packing.quantise_groups import quantise_groups
from kvant.quant.pack import pack_rows

__all__ = ["GROUPS_AS", "Floats", "packed_rows", "relative_errors"]

GROUPS_AS = "F16"
"""The packing in which rows rounded to groups are given to the engine, which does not know them."""

Floats = npt.NDArray[np.float32]

_SAMPLE = 1_000_000
"""Weights of a tensor that are looked at: errors relative to one another are then within about a
per cent of the whole tensor's."""

_RUN = 2_000_000  # weights a thread takes at a time


def relative_errors(
    weight: Weight,
    grids: Sequence[str | Groups],
    importance: Floats | None,
    *,
    threads: int,
    plain: bool = False,
) -> dict[str, float]:
    """The relative error of each grid by its name, squared and weighted, on a sample of rows.

    Args:
        weight: the tensor.
        grids: which; the packing it is stored as has error 0.
        importance: mean square of each input over their mean, float32 [columns]: what errors are
            weighed by, and scales searched with; None counts all alike.
        threads: processors to use.
        plain: scales of groups follow their format's own formula, without a search.

    Raises:
        DataError: NaN or infinity among the weights.
    """
    rows, columns = weight.stored.rows, weight.stored.row_length
    step = weight.row_step
    runs = max(1, min(rows // step, -(-_SAMPLE // (columns * step))))
    picked = np.unique(np.linspace(0, rows // step - 1, runs).astype(int)) * step
    with weight.open() as fd:
        x = np.concatenate([weight.read_rows_f32(fd, at, at + step) for at in picked.tolist()])
    squares = np.ones(columns) if importance is None else importance.astype(np.float64)
    whole = float((x.astype(np.float64) ** 2 @ squares).sum())

    def error(grid: str | Groups) -> float:
        if grid == weight.stored.type.name or whole == 0:
            return 0.0
        difference = x - _rounded(grid, x, importance, plain)
        return float((difference.astype(np.float64) ** 2 @ squares).sum()) / whole

    names = [g.name if isinstance(g, Groups) else g for g in grids]
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(names, pool.map(error, grids), strict=True))


def packed_rows(
    weight: Weight,
    grid: str | Groups,
    importance: Floats | None,
    *,
    threads: int,
    plain: bool = False,
) -> npt.NDArray[np.uint8]:
    """A whole weight on another grid, rows in the canonical order: uint8 [rows, row bytes].

    Of groups the rows are those of `GROUPS_AS`.
    """
    rows, columns = weight.stored.rows, weight.stored.row_length
    kind = GROUPS_AS if isinstance(grid, Groups) else grid
    out = np.empty((rows, get(kind).storage.row_bytes(columns)), np.uint8)
    with weight.open() as fd, ThreadPoolExecutor(threads) as pool:

        def convert(run: tuple[int, int]) -> None:
            start, stop = run
            x = weight.read_rows_f32(fd, start, stop)
            if isinstance(grid, Groups):
                halves = _rounded(grid, x, importance, plain).astype(np.float16)
                out[start:stop] = halves.view(np.uint8)
            else:
                out[start:stop] = _quantised(grid, x, importance)

        for _ in pool.map(convert, _runs(rows, columns, weight.row_step)):
            pass
    return out


def _rounded(grid: str | Groups, x: Floats, importance: Floats | None, plain: bool) -> Floats:
    """Rows as the grid holds them, float32; the last group of a row is filled up with zeros."""
    if not isinstance(grid, Groups):
        return dequantize(grid, _quantised(grid, x, importance))
    rows, columns = x.shape
    missing = -columns % grid.block
    if missing:
        x = np.pad(x, ((0, 0), (0, missing)))
        importance = None if importance is None else np.pad(importance, (0, missing))
    codes, scales = quantise_groups(grid, x, importance, plain=plain)
    found: Floats = grid.decode(codes.reshape(-1, grid.block), scales.reshape(-1))
    return np.ascontiguousarray(found.reshape(rows, -1)[:, :columns], np.float32)


def _quantised(packing: str, x: Floats, importance: Floats | None) -> npt.NDArray[np.uint8]:
    """Packed rows as a file would have them."""
    rows = np.ascontiguousarray(x, np.float32)
    return pack_rows("F32", packing, rows.view(np.uint8), rows.shape[1], importance)


def _runs(rows: int, columns: int, step: int) -> Iterator[tuple[int, int]]:
    height = max(1, _RUN // (columns * step)) * step
    for start in range(0, rows, height):
        yield start, min(rows, start + height)
