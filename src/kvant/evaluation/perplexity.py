"""How surprised a model is by the text that really follows.

Perplexity is ``exp`` of the mean over all scored tokens of ``-log p(token)``.

Everything after the float32 logits is computed in float64. That costs no more than float32 here
(the passes are few and work in cache) and puts rounding at 1e-15, far below the divergence of
even two 16-bit formats, with plain formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant.evaluation.runner import Logits

__all__ = ["Distribution"]

Rows = npt.NDArray[np.float64]
"""float64 [rows, vocab], or [rows] where one number is told of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """The softmax of a few rows: ``p = weights / total`` and ``log p = shifted - log_total``.

    ``shifted`` and ``weights`` are [rows, vocab], ``total`` and ``log_total`` are [rows]. The
    largest entry of each row of ``shifted`` is 0, so nothing overflows.
    """

    shifted: Rows
    weights: Rows
    total: Rows
    log_total: Rows

    @classmethod
    def of(cls, logits: Logits, shifted: Rows, weights: Rows) -> Distribution:
        """The softmax of finite ``logits`` [rows, vocab]; the two buffers, as large, are filled."""
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=shifted, dtype=np.float64)
        np.exp(shifted, out=weights)
        total = weights.sum(axis=1)
        return cls(shifted, weights, total, np.log(total))

    def surprise(self, targets: npt.NDArray[np.int32]) -> Rows:
        """``-log p`` of one token a row, in nats."""
        rows = np.arange(len(targets))
        surprise: Rows = self.log_total - self.shifted[rows, targets]
        return surprise
