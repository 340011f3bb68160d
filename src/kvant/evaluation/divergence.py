"""How far a model's predictions are from those of the model it was made from.

The Kullback-Leibler divergence ``KL(base || variant)``, the sum of ``p log(p / q)`` over the
vocabulary, is 0 exactly where the two agree and above 0 everywhere else. Unlike perplexity it
cannot improve by luck, and it uses the whole prediction instead of one token of it, so it tells
small losses apart on little text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvant.evaluation.perplexity import Distribution, Rows
from kvant.evaluation.runner import Logits

__all__ = ["divergence", "same_top"]


def divergence(base: Distribution, variant: Distribution) -> Rows:
    """``KL(base || variant)`` of each row, in nats. Overwrites ``variant.weights``.

    The divergence of two models that are all but equal can come out at -1e-16, by rounding. It is
    set to 0: no true value is below that, and what the cut adds to a mean is as small. Identical
    logits give 0 without it.
    """
    terms = np.subtract(base.shifted, variant.shifted, out=variant.weights)
    terms *= base.weights
    cross = terms.sum(axis=1) / base.total
    divergence: Rows = np.maximum(cross + (variant.log_total - base.log_total), 0.0)
    return divergence


def same_top(base: Logits, variant: Logits) -> npt.NDArray[np.bool_]:
    """Whether both give the same token the highest logit, for each row; the first one in a tie."""
    same: npt.NDArray[np.bool_] = base.argmax(axis=1) == variant.argmax(axis=1)
    return same
