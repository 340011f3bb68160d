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
    wanted = (TOKENS if tokens is None else tokens) // size
    _check(texts, cut, shares, size, most, wanted, stated=tokens is not None)
    counts = _apportion(shares, min(wanted, most), [len(c) for c in cut])
    parts, used = [], []
    for text, rows, count in zip(texts, cut, counts, strict=True):
        parts.append(rows[np.arange(count) * len(rows) // max(1, count)])
        used.append(Text(text.name, text.weight, count * size))
    return Chunks(np.concatenate(parts), tuple(used))


def _check(
    texts: Sequence[Encoded],
    cut: Sequence[Ids],
    shares: npt.NDArray[np.float64],
    size: int,
    most: int,
    wanted: int,
    *,
    stated: bool,
) -> None:
    least = -(-LEAST_TOKENS // size)
    if stated and wanted < least:
        raise UsageError(
            f"Calibration needs at least {least * size:,} tokens ({least} chunks of {size}), got "
            f"--tokens {wanted * size:,}. Ask for more."
        )
    need = wanted if stated else least
    for text, rows, share in zip(texts, cut, shares, strict=True):
        chunks = int(np.ceil(need * share - 1e-9))
        if need > most and len(rows) < chunks:
            remedy = (
                f"Give a longer text, or ask for at most {most * size:,} tokens."
                if stated and most >= least
                else "Give a longer text."
            )
            raise UsageError(
                f"{text.name}: the text is too short to calibrate on: it gives {len(text.ids):,} "
                f"tokens, {chunks} chunks of {size} ({chunks * size:,} tokens) are needed. {remedy}"
            )


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


def _apportion(shares: npt.NDArray[np.float64], total: int, limits: Sequence[int]) -> list[int]:
    """Whole chunks in proportion, ``total`` in all where limits allow (largest remainders)."""
    exact = shares * total
    counts = np.minimum(np.floor(exact + 1e-9).astype(int), limits)
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in order:
        if counts.sum() < total and counts[i] < limits[i]:
            counts[i] += 1
    return [int(c) for c in counts]
