"""Rows of logits scored by the core: how surprised a model is, and how far from its base.

Perplexity is ``exp`` of the mean over all scored tokens of ``-log p(token)``.

The Kullback-Leibler divergence ``KL(base || variant)``, the sum of ``p log(p / q)`` over the
vocabulary, is 0 exactly where the two agree and above 0 everywhere else. Unlike perplexity it
cannot improve by luck, and it uses the whole prediction instead of one token of it, so it tells
small losses apart on little text.

Everything after the float32 logits is in float64, in a fixed order: figures are the same to the
last bit for any number of threads and any instruction set, and rounding stays at 1e-15, far below
the divergence of even two 16-bit formats. ``native/kernels/score.cc`` has the formulas; the tests
hold it against the same in NumPy with longer floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.evaluation.runner import Logits

__all__ = ["NotFinite", "RowScores", "score_rows"]

Rows = npt.NDArray[np.float64]


class NotFinite(ValueError):  # noqa: N818 - not for the user: callers know the model and say so
    """A model's logits have NaN or infinity."""

    def __init__(self, row: int, model: int) -> None:
        super().__init__(f"logits of model {model} in row {row}")
        self.row, self.model = row, model


@dataclass(frozen=True, slots=True, eq=False)
class RowScores:
    """What was found for each row."""

    nll: Rows
    """-log p(target) in nats, float64 [models, rows]."""
    kld: Rows
    """KL(base || variant) in nats, float64 [variants, rows], never below 0."""
    same: npt.NDArray[np.bool_]
    """Whether base and variant have their greatest logit at one token (the first in a tie), bool
    [variants, rows]."""


def score_rows(
    logits: Sequence[Logits], targets: npt.NDArray[np.int32], *, threads: int = 1
) -> RowScores:
    """Score the same rows of a base, ``logits[0]``, and of any number of variants.

    Args:
        logits: float32 [rows, vocab] of each model.
        targets: the token that follows each row, int32 [rows], each below ``vocab``.
        threads: processors to use.

    Raises:
        NotFinite: NaN or infinity; it names the first such row, and the first model in it.
    """
    models, rows = len(logits), len(targets)
    nll = np.empty((models, rows))
    kld = np.empty((models - 1, rows))
    same = np.empty((models - 1, rows), np.uint8)
    whole = [np.ascontiguousarray(one) for one in logits]  # as they are, for every runner of ours
    bad = _core.score(whole, np.ascontiguousarray(targets), nll, kld, same, threads)
    if bad is not None:
        raise NotFinite(*bad)
    return RowScores(nll, kld, same.view(np.bool_))
