"""Final hidden states of texts, pooled: what embeddings are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kvant._core import KV_BLOCK
from kvant.engine.generate import BATCH, CHUNK, take_chunks
from kvant.engine.session import Engine

__all__ = ["pooled_states"]

Row = npt.NDArray[np.float64]


def pooled_states(engine: Engine, ids: Sequence[Sequence[int]], pooling: str) -> Iterator[Row]:
    """One row a text, in order; as many texts run together as the cache holds.

    Args:
        engine: an encoder reads whole texts, any other model reads them in chunks.
        ids: tokens of texts, none empty, none longer than the context.
        pooling: ``mean``, ``cls`` (the first token's) or ``last``.

    Yields:
        float64 [hidden size].
    """
    pool = _of_whole_texts if engine.encodes else _of_chunks
    for group in _groups(engine, ids):
        yield from pool(engine, group, pooling)


def _groups(engine: Engine, ids: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    room = engine.kv.count
    group: list[Sequence[int]] = []
    blocks = 0
    for tokens in ids:
        more = -(-len(tokens) // KV_BLOCK)
        if group and (len(group) == BATCH or blocks + more > room):
            yield group
            group, blocks = [], 0
        group.append(tokens)
        blocks += more
    if group:
        yield group


def _of_chunks(engine: Engine, group: Sequence[Sequence[int]], pooling: str) -> list[Row]:
    found: list[Row | None] = [None] * len(group)
    sequences = [engine.sequence() for _ in group]
    pending = [list(tokens) for tokens in group]
    try:
        while any(pending):
            taken = take_chunks(pending, CHUNK)
            entries = [(s, t) for s, t in zip(sequences, taken, strict=True) if t]
            hidden = engine.step(entries, logits="hidden")
            row = 0
            for i, tokens in enumerate(taken):
                rows = hidden[row : row + len(tokens)]
                row += len(tokens)
                if not tokens:
                    continue
                before = found[i]
                if pooling == "mean":
                    total = rows.sum(0, np.float64)
                    found[i] = total if before is None else before + total
                elif pooling == "last" or before is None:
                    found[i] = np.asarray(rows[-1 if pooling == "last" else 0], np.float64)
                del pending[i][: len(tokens)]
    finally:
        for sequence in sequences:
            sequence.free()
    return [row for row in found if row is not None]


def _of_whole_texts(engine: Engine, group: Sequence[Sequence[int]], pooling: str) -> list[Row]:
    work = [(engine.sequence(), list(tokens)) for tokens in group]
    try:
        hidden = engine.step(work, logits="hidden")
    finally:
        for sequence, _ in work:
            sequence.free()
    ends = np.cumsum([len(tokens) for tokens in group])
    place = {"cls": 0, "last": -1}
    return [
        np.asarray(rows[place[pooling]] if pooling in place else rows.mean(0, np.float64))
        for rows in np.split(hidden, ends[:-1])
    ]
