"""Texts become chunks of tokens: each text in its share, evenly from its whole length.

As llama.cpp does it, a text is tokenised once and cut into chunks of equal length, the first token
of each replaced by BOS where the tokenizer adds one; what is left over at the end is not used.
Nothing is drawn by chance: the same texts give the same chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant.calibration.importance import Text
from kvant.errors import UsageError

__all__ = ["CHUNK", "LEAST_TOKENS", "TOKENS", "Chunks", "Encoded", "choose_chunks"]

Ids = npt.NDArray[np.int32]

CHUNK = 512
"""Tokens a chunk unless told otherwise; llama.cpp's number."""

TOKENS = 1 << 16
"""Most tokens unless told otherwise."""

LEAST_TOKENS = 2048
"""With fewer, chance decides which inputs look important."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text: its name, its share (any positive number), and its token ids without BOS."""

    name: str
    weight: float
    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """What is run: token ids int32 [chunks, chunk], and which texts they are of."""

    ids: Ids
    texts: tuple[Text, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the chunks, as hexadecimal digits."""
        digest = hashlib.sha256(f"{self.ids.shape[1]}\n".encode())
        digest.update(self.ids.astype("<i4").tobytes())
        return digest.hexdigest()


def choose_chunks(
    texts: Sequence[Encoded],
    *,
    bos: int | None = None,
    chunk: int | None = None,
    tokens: int | None = None,
    max_context: int | None = None,
) -> Chunks:
    """Cut texts into chunks, as many of each as its share asks for.

    Args:
        texts: at least one.
        bos: id of the BOS token where the tokenizer adds one, otherwise None.
        chunk: tokens a chunk; by default 512, or what the model takes if that is less.
        tokens: of all texts together, rounded down to whole chunks. By default 65,536, or as many
            as the shortest text allows with all shares kept.
        max_context: how many tokens the model takes, where known.

    Raises:
        UsageError: a text is too short for its share, or there is too little altogether; the
            message says how much is needed.
    """
    size = _chunk(chunk, max_context)
    cut = [_cut(t, bos, size) for t in texts]
    shares = np.array([t.weight for t in texts], np.float64)
    shares /= shares.sum()
    most = int(min(len(c) / s for c, s in zip(cut, shares, strict=True)) + 1e-9)
    least = -(-LEAST_TOKENS // size)
    if tokens is not None and tokens < least * size:
        raise UsageError(
            f"Calibration needs at least {least * size:,} tokens, got --tokens {tokens:,}: with "
            "fewer, chance decides what looks important. Ask for more."
        )
    total = max(least, min(most, TOKENS // size)) if tokens is None else tokens // size
    counts = _apportion(shares, total)
    parts, used = [], []
    for text, rows, count in zip(texts, cut, counts, strict=True):
        if count > len(rows):
            longer = "Give a longer text"
            if tokens is not None and most >= least:
                longer += f", or ask for at most {most * size:,} tokens"
            raise UsageError(
                f"{text.name}: the text is too short to calibrate on: it gives {len(text.ids):,} "
                f"tokens, {count} chunks of {size} ({count * size:,} tokens) are needed. {longer}."
            )
        parts.append(rows[np.arange(count) * len(rows) // max(1, count)])
        used.append(Text(text.name, text.weight, count * size))
    return Chunks(np.concatenate(parts), tuple(used))


def _chunk(chunk: int | None, max_context: int | None) -> int:
    if chunk is None:
        return CHUNK if max_context is None else min(CHUNK, max_context)
    if max_context is not None and chunk > max_context:
        raise UsageError(
            f"A chunk of {chunk} tokens is more than the model takes, which is {max_context}."
        )
    if chunk < 16:
        raise UsageError(f"A chunk should have at least 16 tokens, got {chunk}.")
    return chunk


def _cut(text: Encoded, bos: int | None, size: int) -> Ids:
    ids = text.ids if bos is None else np.concatenate([np.array([bos], np.int32), text.ids])
    rows = ids[: len(ids) // size * size].reshape(-1, size).astype(np.int32)
    if bos is not None and len(rows):
        rows[:, 0] = bos
    return rows


def _apportion(shares: npt.NDArray[np.float64], total: int) -> list[int]:
    """Whole chunks in proportion, ``total`` in all: largest remainders, of equals the first."""
    exact = shares * total
    counts = np.floor(exact + 1e-9).astype(int)
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - int(counts.sum())]:
        counts[i] += 1
    return [int(c) for c in counts]
