"""How far rounding moves a tensor's outputs, relatively, at each packing; and its packed rows.

An output of a linear is a sum over inputs; where the errors of weights are independent of one
another, its mean squared error is the sum of their squares, each weighted by its input's mean
square ("second moment"). Relative to the outputs' own mean square, estimated alike, that is one
number a packing, and divergence is proportional to it as long as it is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kvant.checkpoint import Weight
from kvant.packing import dequantize, get
from kvant.quant.pack import pack_rows

__all__ = ["Floats", "packed_rows", "relative_errors"]

Floats = npt.NDArray[np.float32]

_SAMPLE = 1_000_000
"""Weights of a tensor that are looked at: errors relative to one another are then within about a
per cent of the whole tensor's."""

_RUN = 2_000_000  # weights a thread takes at a time


def relative_errors(
    weight: Weight, packings: Sequence[str], importance: Floats | None, *, threads: int
) -> dict[str, float]:
    """The relative error of each packing, squared and weighted, on a sample of rows.

    Args:
        weight: the tensor.
        packings: which; the one it is stored as has error 0.
        importance: mean square of each input over their mean, float32 [columns]: what errors are
            weighed by, and scales searched with; None counts all alike.
        threads: processors to use.

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

    def error(packing: str) -> float:
        if packing == weight.stored.type.name or whole == 0:
            return 0.0
        difference = x - dequantize(packing, _quantised(packing, x, importance))
        return float((difference.astype(np.float64) ** 2 @ squares).sum()) / whole

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(packings, pool.map(error, packings), strict=True))


def packed_rows(
    weight: Weight, packing: str, importance: Floats | None, *, threads: int
) -> npt.NDArray[np.uint8]:
    """A whole weight in another packing, rows in the canonical order: uint8 [rows, row bytes]."""
    rows, columns = weight.stored.rows, weight.stored.row_length
    out = np.empty((rows, get(packing).storage.row_bytes(columns)), np.uint8)
    with weight.open() as fd, ThreadPoolExecutor(threads) as pool:

        def convert(run: tuple[int, int]) -> None:
            start, stop = run
            x = weight.read_rows_f32(fd, start, stop)
            out[start:stop] = _quantised(packing, x, importance)

        for _ in pool.map(convert, _runs(rows, columns, weight.row_step)):
            pass
    return out


def _quantised(packing: str, x: Floats, importance: Floats | None) -> npt.NDArray[np.uint8]:
    """Packed rows as a file would have them."""
    rows = np.ascontiguousarray(x, np.float32)
    return pack_rows("F32", packing, rows.view(np.uint8), rows.shape[1], importance)


def _runs(rows: int, columns: int, step: int) -> Iterator[tuple[int, int]]:
    height = max(1, _RUN // (columns * step)) * step
    for start in range(0, rows, height):
        yield start, min(rows, start + height)
