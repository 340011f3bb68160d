"""A text as the token chunks a model is scored on.

The protocol is that of llama.cpp's perplexity tool, so that figures can be set side by side:

- the text is tokenised once, whole, with a BOS token before it if the tokenizer adds one;
- it is cut into chunks of ``context`` tokens; what is left over at the end is not used;
- the first token of every chunk is replaced by BOS (where there is one);
- each chunk is run by itself, and only its second half is scored, so that every scored token has
  been predicted from at least ``context // 2`` tokens before it.

The last token of a chunk is only ever predicted, never read, so models are given one token less.

Source: ``tools/perplexity`` in llama.cpp.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvant.errors import UsageError
from kvant.evaluation.runner import Tokens

__all__ = ["DEFAULT_CONTEXT", "Corpus"]

DEFAULT_CONTEXT = 512

# Chunks are the sampling unit of every standard error, and one chunk has none.
_MIN_CHUNKS = 2
# A context of 4 is the first whose second half predicts anything worth the name.
_MIN_CONTEXT = 4


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Chunks of token ids, int32 of shape [chunks, context], ready to be scored."""

    chunks: Tokens

    @classmethod
    def from_tokens(
        cls,
        tokens: Sequence[int] | npt.NDArray[np.integer],
        *,
        bos: int | None = None,
        context: int | None = None,
        max_context: int | None = None,
        max_chunks: int | None = None,
    ) -> Corpus:
        """Cut a tokenised text.

        Args:
            tokens: ids of the whole text, *without* special tokens.
            bos: id of the BOS token where the tokenizer adds one, otherwise None.
            context: tokens a chunk; by default 512, or what the model takes if that is less.
            max_context: how many tokens the model takes, where known.
            max_chunks: use no more than these first chunks.

        Raises:
            UsageError: the text gives fewer than two chunks, or ``context`` does not suit.
        """
        size = _context(context, max_context)
        ids = np.asarray(tokens, np.int64)
        if bos is not None:
            ids = np.concatenate([np.array([bos], np.int64), ids])
        if len(ids) < _MIN_CHUNKS * size:
            raise UsageError(
                f"The text is too short: it gives {len(ids)} tokens, expected at least "
                f"{_MIN_CHUNKS * size}, two chunks of {size}. Give a longer text"
                + (
                    f" or a context of at most {len(ids) // _MIN_CHUNKS}."
                    if len(ids) >= _MIN_CHUNKS * _MIN_CONTEXT
                    else "."
                )
            )
        if max_chunks is not None and max_chunks < _MIN_CHUNKS:
            raise UsageError(
                f"Expected at least {_MIN_CHUNKS} chunks, got {max_chunks}: "
                "from a single one no standard error can be told."
            )
        count = min(len(ids) // size, max_chunks or len(ids))
        chunks = ids[: count * size].reshape(count, size).astype(np.int32)
        if bos is not None:
            chunks[:, 0] = bos
        return cls(chunks)

    @property
    def count(self) -> int:
        """Number of chunks."""
        return len(self.chunks)

    @property
    def context(self) -> int:
        """Tokens a chunk."""
        return int(self.chunks.shape[1])

    @property
    def first(self) -> int:
        """The first row of a chunk whose prediction is scored."""
        return self.context // 2

    @property
    def scored(self) -> int:
        """Scored predictions a chunk: those after the tokens ``first`` to ``context - 2``."""
        return self.context - 1 - self.first

    @property
    def digest(self) -> str:
        """SHA-256 of context and chunks, as hexadecimal digits: what was scored, and how."""
        digest = hashlib.sha256(f"{self.context}\n".encode())
        digest.update(self.chunks.astype("<i4").tobytes())
        return digest.hexdigest()

    def batches(self, size: int) -> Iterator[tuple[int, Tokens, Tokens]]:
        """The chunks, ``size`` at a time.

        Yields:
            (index, tokens, targets): the index of the first chunk of the batch, what models
            read, [batch, context - 1], and what the rows from ``first`` on must predict,
            [batch, scored].
        """
        for index in range(0, self.count, size):
            batch = self.chunks[index : index + size]
            yield index, batch[:, :-1], batch[:, self.first + 1 :]


def _context(context: int | None, max_context: int | None) -> int:
    if context is None:
        context = DEFAULT_CONTEXT if max_context is None else min(DEFAULT_CONTEXT, max_context)
    elif max_context is not None and context > max_context:
        raise UsageError(
            f"A context of {context} tokens is more than the model takes, which is {max_context}. "
            "Choose a smaller one."
        )
    if context < _MIN_CONTEXT:
        raise UsageError(
            f"Expected a context of at least {_MIN_CONTEXT} tokens, got {context}. "
            f"The usual one is {DEFAULT_CONTEXT}."
        )
    return context
