"""Blocks of keys and values, and the sequences that hold them.

The cache is one piece of memory cut into blocks of 32 tokens (vLLM's paged attention, Kwon et al.,
arXiv 2309.06180). A sequence has a table of the blocks it uses, in order; blocks are taken when
tokens come and given back when they go, so a sequence wastes at most the rest of its last block.
Counting, and finding contents again, is the scheduler's pool, which knows no engine.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from kvant._core import KV_BLOCK
from kvant.errors import CacheFullError
from kvant.scheduler import BlockPool

__all__ = ["KvBlocks", "KvSequence"]


class KvBlocks(BlockPool):
    """The engine's blocks: those of sequences, of a batch's requests, and of texts once read.

    One thread at a time takes; any thread may give back.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count, KV_BLOCK)
        # What sequences gave back. A sequence may be dropped in another thread, or by the garbage
        # collector in the midst of any line here; adding to a deque is all it does then.
        self._returned: deque[int] = deque()

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit into all blocks together."""
        return self.count * KV_BLOCK

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        while self._returned:
            self.release([self._returned.popleft()])
        return super().free

    @property
    def free_blocks(self) -> int:
        """Blocks no sequence and no request holds; some of them may hold texts for the next one."""
        return self.free

    @property
    def free_tokens(self) -> int:
        """Tokens that fit into the free blocks."""
        return self.free * KV_BLOCK

    def take(self, count: int) -> list[int]:
        """Take free blocks.

        Raises:
            CacheFullError: there are fewer; none was taken.
        """
        if count > self.free:
            raise CacheFullError(
                f"The cache has {self.free_tokens:,} of {self.capacity_tokens:,} tokens free, "
                f"{count * KV_BLOCK:,} more are needed. Free a sequence, use shorter texts, or "
                "load the model with a larger cache."
            )
        return super().take(count)

    def give_back(self, blocks: list[int]) -> None:
        """Return blocks that `take` gave; at any time, in any thread."""
        self._returned.extend(blocks)


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
