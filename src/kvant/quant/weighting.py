"""How squared errors of weights are weighed, given how much each input of a linear matters.

An error e of weight [i, j] changes output i by e x_j, whose mean square over a text is
e^2 E[x_j^2]. So to second order an error counts by the mean square of its column's input, and where
errors are small (four bits and more) nothing measured was better.

At two and three bits errors are not small, and two corrections pay. Columns are drawn together (the
power below one): what follows a linear saturates, and the text is finite. Large weights count more,
as in llama.cpp (``sqrt(2 s^2 + x^2)``, with s^2 the mean square of a block): the scale of least
squared error shrinks them, all in the same direction. The second helps without importance too.

Divergence of files, as a multiple of llama-quantize's with the same importance, on the built-in
model and on bench/models/qwen3-11m: Q2_K by the mean square alone 0.98 and 1.15, by llama.cpp's
product 1.07 and 1.05, by this 0.95 and 1.05; Q3_K_M 0.97 and 1.02, 0.98 and 0.97, 0.97 and 0.97;
Q4_K_M, where the first two are 0.99 and 0.95, 0.99 and 0.96, with the power below one 1.01 and
1.01. Without importance, weights of different size alike or not: Q2_K 1.08 and 1.22, 1.03 and
1.10.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BY_SIZE", "error_weights"]

Floats = npt.NDArray[np.float32]

BY_SIZE = frozenset({"Q2_K", "Q3_K"})
"""Packings whose errors are weighed by the size of the weight too."""

_POWER = np.float32(0.75)
_SPREAD = np.float32(2)
_BLOCK = 256


def error_weights(packing: str, x: Floats, importance: Floats | None) -> Floats | None:
    """What the squared error of each weight counts.

    Args:
        packing: the weights are about to be packed in.
        x: weights, float32 [rows, columns]; for `BY_SIZE` columns are a multiple of 256.
        importance: mean squares of the columns' inputs, of the order of one: float32 [columns];
            None where nothing is known of them.

    Returns:
        float32 [columns], or [rows, columns] where the weights' size counts, of the order of one;
        None where all count alike.
    """
    if packing not in BY_SIZE:
        return None if importance is None else np.ascontiguousarray(importance, np.float32)
    squares = np.square(x).reshape(len(x), -1, _BLOCK)
    level = squares.mean(-1, keepdims=True, dtype=np.float32)
    level = np.where(level > 0, level, np.float32(1))  # a block of zeros counts evenly
    squares += _SPREAD * level
    squares /= level  # only ratios within a block count
    np.sqrt(squares, out=squares)
    weights: Floats = squares.reshape(x.shape)
    if importance is not None:
        weights *= np.power(importance, _POWER)
    return weights
