"""Blocks of keys and values, and the sequences that hold them.

The cache is one piece of memory cut into blocks of 32 tokens (vLLM's paged attention, Kwon et al.,
arXiv 2309.06180). A sequence has a table of the blocks it uses, in order; blocks are taken when
tokens come and given back when they go, so a sequence wastes at most the rest of its last block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvant._core import KV_BLOCK
from kvant.errors import CacheFullError

__all__ = ["KvBlocks", "KvSequence"]


class KvBlocks:
    """The pool of blocks. One thread at a time takes; any thread may give back."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""
        return KV_BLOCK

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit into all blocks together."""
        return self.count * KV_BLOCK

    @property
    def free_blocks(self) -> int:
        """Blocks no sequence holds."""
        return len(self._free)

    @property
    def free_tokens(self) -> int:
        """Tokens that fit into the free blocks."""
        return len(self._free) * KV_BLOCK

    def take(self, count: int) -> list[int]:
        """Take free blocks.

        Raises:
            CacheFullError: there are fewer; none was taken.
        """
        if count > len(self._free):
            raise CacheFullError(
                f"The cache has {self.free_tokens:,} of {self.capacity_tokens:,} tokens free, "
                f"{count * KV_BLOCK:,} more are needed. Free a sequence, use shorter texts, or "
                "load the model with a larger cache."
            )
        # One at a time: a sequence that is dropped meanwhile, by the garbage collector or in
        # another thread, gives its blocks back to the same list.
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        """Return blocks that `take` gave."""
        self._free.extend(reversed(blocks))


class KvSequence:
    """One text in the cache: its length and its blocks. Made by `Engine.sequence`."""

    def __init__(self, pool: KvBlocks, most_tokens: int) -> None:
        self._pool = pool
        self._blocks: list[int] = []
        self.most_tokens = most_tokens
        self.length = 0
        """Tokens whose keys and values are in the cache."""

    def missing_blocks(self, tokens: int) -> int:
        """Blocks that have to be taken before ``tokens`` more fit."""
        return max(0, -(-(self.length + tokens) // KV_BLOCK) - len(self._blocks))

    def reserve(self, tokens: int) -> None:
        """Take the blocks that ``tokens`` more need; raises CacheFullError and changes nothing."""
        self._blocks += self._pool.take(self.missing_blocks(tokens))

    def table(self, width: int) -> npt.NDArray[np.int32]:
        """Physical blocks in order, int32 [width], the unused rest zero."""
        table = np.zeros(width, np.int32)
        table[: len(self._blocks)] = self._blocks
        return table

    @property
    def pool(self) -> KvBlocks:
        """Where the blocks come from."""
        return self._pool

    @property
    def block_count(self) -> int:
        """Blocks held."""
        return len(self._blocks)

    def truncate(self, length: int) -> None:
        """Forget all tokens from ``length`` on.

        Raises:
            ValueError: ``length`` is negative or more than there are.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"a sequence of {self.length} tokens cannot be cut to {length}")
        keep = -(-length // KV_BLOCK)
        self._pool.give_back(self._blocks[keep:])
        del self._blocks[keep:]
        self.length = length

    def free(self) -> None:
        """Give all blocks back; the sequence is empty and may be used again."""
        self.truncate(0)

    def __del__(self) -> None:
        """A sequence nobody holds gives its blocks back."""
        self._pool.give_back(self._blocks)
        self._blocks = []

    def __enter__(self) -> KvSequence:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()
