"""Perplexity and divergence the slow way, and runners whose logits are known.

The protocol is written out index by index over whole matrices of logits, in float64 with exact
sums: nothing here is shared with the product but the definition. For vocabularies of real models,
where that takes too long, the same in NumPy with long floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


class RandomRunner:
    """Logits that depend on the sequence's tokens alone, given out in tiles of any height."""

    def __init__(self, vocab: int, seed: int, *, tile: int = 7, near=None, noise: float = 0.3):
        self.vocab_size = vocab
        self.seed = seed
        self.tile = tile
        self.near = near
        self.noise = noise

    def matrix(self, tokens) -> np.ndarray:
        """Logits of one sequence: float32 [n, vocab]."""
        ids = [int(t) for t in tokens]
        rng = np.random.default_rng([self.seed, *ids])
        logits = rng.standard_normal((len(ids), self.vocab_size)) * 3
        if self.near is not None:
            logits = self.near.matrix(tokens) + self.noise * logits
        return logits.astype(np.float32)

    def logits(self, tokens, *, first_row: int) -> Iterator[tuple[int, int, np.ndarray]]:
        buffer = np.full((self.tile, self.vocab_size), np.nan, np.float32)
        for sequence, ids in enumerate(tokens):
            matrix = self.matrix(ids)
            for row in range(first_row, len(ids), self.tile):
                rows = matrix[row : row + self.tile]
                buffer[:] = np.nan  # a tile is no longer valid when the next one is asked for
                buffer[: len(rows)] = rows
                yield sequence, row, buffer[: len(rows)]


def log_softmax(row) -> list[float]:
    values = [float(v) for v in row]
    top = max(values)
    log_sum = top + math.log(math.fsum(math.exp(v - top) for v in values))
    return [v - log_sum for v in values]


def scores(text_tokens, context, bos, base, variant=None):
    """(nll, kld, same) of every scored token: lists of a list for each chunk."""
    ids = list(text_tokens) if bos is None else [bos, *text_tokens]
    nll, kld, same = [], [], []
    for start in range(0, len(ids) - context + 1, context):
        chunk = ids[start : start + context]
        read = chunk if bos is None else [bos, *chunk[1:]]
        # The last token is only predicted; models whose rows see later tokens do not exist.
        p_rows = base.matrix(read[:-1])
        q_rows = p_rows if variant is None else variant.matrix(read[:-1])
        nll.append([])
        kld.append([])
        same.append([])
        for i in range(context // 2, context - 1):
            log_p, log_q = log_softmax(p_rows[i]), log_softmax(q_rows[i])
            nll[-1].append(-log_q[chunk[i + 1]])
            pairs = zip(log_p, log_q, strict=True)
            kld[-1].append(math.fsum(math.exp(p) * (p - q) for p, q in pairs))
            same[-1].append(float(log_p.index(max(log_p)) == log_q.index(max(log_q))))
    return nll, kld, same


def long_scores(logits, targets):
    """(nll, kld, same) of whole matrices of logits, base first, in long floats of NumPy."""
    log_p = []
    for matrix in logits:
        shifted = matrix.astype(np.longdouble) - matrix.max(axis=1, keepdims=True)
        log_p.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    base = log_p[0]
    rows = np.arange(len(targets))
    nll = np.array([-one[rows, targets] for one in log_p])
    kld = np.array([(np.exp(base) * (base - one)).sum(axis=1) for one in log_p[1:]])
    top = [matrix.argmax(axis=1) for matrix in logits]
    return (
        nll,
        kld.reshape(len(logits) - 1, len(targets)),
        np.array([top[0] == one for one in top[1:]]),
    )


def mean(chunks) -> float:
    return math.fsum(v for chunk in chunks for v in chunk) / sum(map(len, chunks))


def standard_error(chunks) -> float:
    means = [math.fsum(chunk) / len(chunk) for chunk in chunks]
    centre = math.fsum(means) / len(means)
    spread = math.fsum((m - centre) ** 2 for m in means) / (len(means) - 1)
    return math.sqrt(spread / len(means))
