"""Rows of weights packed in one pass, for the least error as `weighting.py` weighs it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvant.packing import convert_rows, dequantize, quantize_weighed
from kvant.quant.weighting import BY_SIZE, error_weights

__all__ = ["pack_rows"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def pack_rows(
    source: str,
    target: str,
    data: Bytes,
    columns: int,
    importance: Floats | None = None,
    out: Bytes | None = None,
) -> Bytes:
    """Convert rows as `packing.convert_rows` does, with errors weighed by `error_weights`.

    Args:
        source: what ``data`` is stored as.
        target: the packing wanted.
        data: rows, uint8 [rows, row bytes].
        columns: weights in a row.
        importance: mean squares of the columns' inputs, of the order of one: float32 [columns].
        out: where the result goes, flat and large enough; by default a new array.

    Returns:
        uint8 [rows, row bytes].

    Raises:
        BadWeight: a weight is NaN or infinite, or beyond what the target holds.
        UnsupportedError: a type kvant does not know.
    """
    if target not in BY_SIZE:
        return convert_rows(source, target, data, columns, importance, out)
    x = dequantize(source, data)
    with np.errstate(invalid="ignore", over="ignore"):  # a bad weight is found in what follows
        weights = error_weights(target, x, importance)
    assert weights is not None
    return quantize_weighed(target, x, weights, out)
