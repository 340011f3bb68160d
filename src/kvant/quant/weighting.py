"""How squared errors of weights are weighed, given how much each input of a linear matters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["column_weights"]

Floats = npt.NDArray[np.float32]


def column_weights(importance: Floats) -> Floats:
    """The weight of an error in each column: the mean square of the column's input.

    An error e of weight [i, j] changes output i by e x_j, whose mean square over a text is
    e^2 E[x_j^2]: so this weighs each column by what its errors do, to first order.

    Args:
        importance: mean squares, of the order of one: float32 [columns].
    """
    return np.ascontiguousarray(importance, np.float32)
