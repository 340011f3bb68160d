"""Sampling as a textbook has it: float64, whole sorts, one step after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvant.engine.sampling import Sampling

F64 = npt.NDArray[np.float64]


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max())
    return e / e.sum()


def ranking(x: F64) -> npt.NDArray[np.intp]:
    """Ids, likeliest first; lower ids first among equals."""
    return np.lexsort((np.arange(x.size), -x))


def penalise(
    x: F64, sampling: Sampling, prompt: Sequence[int] = (), answer: Sequence[int] = ()
) -> F64:
    x = x.copy()
    for token, bias in sampling.logit_bias.items():
        x[token] += bias
    for token in {*prompt, *answer}:
        if x[token] > 0:
            x[token] /= sampling.repetition_penalty
        else:
            x[token] *= sampling.repetition_penalty
    for token in set(answer):
        x[token] -= sampling.frequency_penalty * list(answer).count(token)
        x[token] -= sampling.presence_penalty
    return x


def min_p(x: F64, share: float) -> F64:
    p = softmax(x)
    return np.where(p >= share * p.max(), x, -np.inf)


def top_k(x: F64, k: int) -> F64:
    if k == 0:
        return x
    kept = np.full_like(x, -np.inf)
    best = ranking(x)[:k]
    kept[best] = x[best]
    return kept


def top_p(x: F64, share: float) -> F64:
    if share == 1:
        return x
    order = ranking(x)
    reached = np.cumsum(softmax(x)[order]) >= share
    best = order[: int(reached.argmax()) + 1] if reached.any() else order
    kept = np.full_like(x, -np.inf)
    kept[best] = x[best]
    return kept


def distribution(
    logits: npt.ArrayLike, s: Sampling, prompt: Sequence[int] = (), answer: Sequence[int] = ()
) -> F64:
    """The probability of every token."""
    x = penalise(np.asarray(logits, np.float64), s, prompt, answer)
    if s.temperature == 0:
        return np.eye(x.size)[x.argmax()]
    x = x / s.temperature
    return softmax(top_p(top_k(min_p(x, s.min_p), s.top_k), s.top_p))


def philox(seed: int, position: int) -> float:
    """A number in [0, 1): Philox-4x32-10, by its paper."""
    mask = 0xFFFFFFFF
    c = [position & mask, position >> 32, 0, 0]
    k = [seed & mask, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return ((c[1] << 32 | c[0]) >> 11) / 2**53


def choose(p: F64, u: float) -> int:
    """The token where the cumulated probability passes ``u``."""
    return int(np.searchsorted(np.cumsum(p), u * p.sum(), side="right"))
