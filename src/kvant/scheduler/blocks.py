"""Blocks of the paged cache: counted references, and contents found again by their hash.

A full block's key is a digest of all tokens up to its end, so equal keys mean equal keys and values
(vLLM's prefix cache). A block nobody refers to keeps its content until its place is needed; the one
unused for longest goes first, and of one text the end before the beginning.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

__all__ = ["BlockPool", "Key", "block_keys"]

Key = bytes


def block_keys(
    tokens: Sequence[int], block_tokens: int, salt: bytes = b"", known: Sequence[Key] = ()
) -> list[Key]:
    """The keys of the full blocks of ``tokens``.

    Args:
        tokens: a text from its beginning.
        block_tokens: tokens in a block.
        salt: texts of different salts never share a block.
        known: keys of the first blocks, found before.
    """
    keys = list(known)
    parent = keys[-1] if keys else hashlib.blake2b(salt, digest_size=16).digest()
    for i in range(len(keys), len(tokens) // block_tokens):
        part = array("q", tokens[i * block_tokens : (i + 1) * block_tokens])
        parent = hashlib.blake2b(parent + part.tobytes(), digest_size=16).digest()
        keys.append(parent)
    return keys


class BlockPool:
    """``count`` blocks of ``block_tokens`` tokens, numbered from 0."""

    def __init__(self, count: int, block_tokens: int) -> None:
        self.count = count
        self.block_tokens = block_tokens
        self._references = [0] * count
        self._blank = list(range(count - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # content, no references; oldest first
        self._by_key: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return len(self._blank) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks somebody refers to."""
        return self.count - self.free

    def references(self, block: int) -> int:
        """How many texts a block is part of."""
        return self._references[block]

    def blocks_for(self, tokens: int) -> int:
        """Blocks that many tokens take."""
        return -(-tokens // self.block_tokens)

    def take(self, count: int) -> list[int]:
        """Blocks to write to, one reference each; the caller has checked `free`."""
        if count > self.free:
            raise ValueError(f"{count} blocks asked for, {self.free} free")
        return [self._next() for _ in range(count)]

    def _next(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._by_key[self._keys.pop(block)]
        self._references[block] = 1
        return block

    def known(self, keys: Iterable[Key]) -> int:
        """How many of ``keys``, from the first on, are there."""
        found = 0
        for key in keys:
            if key not in self._by_key:
                break
            found += 1
        return found

    def share(self, keys: Iterable[Key]) -> list[int]:
        """The blocks with these contents, which must be there; one reference more each."""
        blocks = [self._by_key[key] for key in keys]
        for block in blocks:
            self._kept.pop(block, None)
            self._references[block] += 1
        return blocks

    def free_without(self, keys: Iterable[Key]) -> int:
        """Blocks that can still be taken once these contents are shared."""
        return self.free - sum(1 for key in keys if self._by_key[key] in self._kept)

    def publish(self, block: int, key: Key) -> None:
        """Say what a block now holds; where another holds the same, that one is still found."""
        if key not in self._by_key and block not in self._keys:
            self._by_key[key] = block
            self._keys[block] = key

    def refer(self, blocks: Iterable[int]) -> None:
        """One reference more to blocks that have some (a fork)."""
        for block in blocks:
            if not self._references[block]:
                raise ValueError(f"block {block} is free")
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give references back. The last blocks of a text are forgotten before its first."""
        for block in reversed(blocks):
            if not self._references[block]:
                raise ValueError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._keys:
                self._kept[block] = None
            else:
                self._blank.append(block)

    def forget(self) -> None:
        """Find no content again that is there now (other weights, another adapter)."""
        self._by_key.clear()
        self._keys.clear()
        self._blank += self._kept
        self._kept.clear()
