"""Grids whose levels are not evenly spaced: a table says what each code stands for.

A code under a scale stands for scale x level. The search is that of :mod:`kvant.packing.search`,
which needs to know of levels only which one is nearest; for fixed codes the best scale follows in
closed form as before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kvant.packing.half import to_half
from kvant.packing.search import SymmetricGrid, SymmetricRun, reciprocal_or_zero, scales_near
from kvant.packing.spec import Codes, Floats, Scales, empty_scales

__all__ = ["FP4", "IQ4", "Book", "BookGrid", "FlatBookGrid"]

_ZERO, _TWO = np.float32(0), np.float32(2)


@dataclass(frozen=True)
class Book:
    """What codes stand for: ``levels[code]``. Of two codes of one level the first is written."""

    levels: tuple[int, ...]

    @cached_property
    def values(self) -> Floats:
        """Levels by code, float32."""
        return np.array(self.levels, np.float32)

    @cached_property
    def _ascending(self) -> Codes:
        return np.unique(self.values, return_index=True)[1].astype(np.uint8)

    @cached_property
    def _middles(self) -> Floats:
        levels = self.values[self._ascending]
        return (levels[1:] + levels[:-1]) / _TWO

    def codes(self, t: Floats) -> Codes:
        """The code of the level nearest to each ``t``; halfway the greater level."""
        return self._ascending[np.searchsorted(self._middles, t, side="right")]


IQ4 = Book((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
"""ggml's ``kvalues_iq4nl``: 16 levels that are closer where normal weights are more frequent."""

FP4 = Book((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))
"""Twice the values of a 4-bit float E2M1 (OCP Microscaling Formats 1.0), sign in the top bit."""


class _BookRun(SymmetricRun):
    def __init__(self, spec: SymmetricGrid, x: Floats, w: Floats | None, book: Book) -> None:
        super().__init__(spec, x, w)
        self.book = book

    def nearest(self, t: Floats) -> Floats:
        return self.book.values[self.book.codes(t)]

    def gain(self, s: Floats) -> Floats:
        """What scales ``s``, as they are, explain of the weights' squares."""
        m = self.sums(np.zeros_like(s), reciprocal_or_zero(s))
        return s * (_TWO * m.xq - s * m.qq)


@dataclass(frozen=True)
class BookGrid(SymmetricGrid):
    """w = (d sub) level: IQ4_XS. Fitted as `SymmetricGrid` is.

    ``widths`` say at which level a candidate puts the weight of largest magnitude; ``half``
    belongs to even levels and is not used.
    """

    book: Book = field(kw_only=True)

    def run(self, x: Floats, w: Floats | None) -> SymmetricRun:
        """A search over the book's levels."""
        return _BookRun(self, x, w, self.book)

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """Codes of blocks ``x`` under ``scales``: the nearest levels."""
        inverse = reciprocal_or_zero(self._steps(scales))[..., None]
        return self.book.codes(x.reshape(len(x), -1, self.n) * inverse).reshape(x.shape)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """Weights of ``codes`` under ``scales``."""
        values = self.book.values[codes].reshape(len(codes), -1, self.n)
        return (self._steps(scales)[..., None] * values).reshape(codes.shape)

    def _steps(self, scales: Scales) -> Floats:
        return scales["d"][:, None] * scales["sub"][:, : 256 // self.n].astype(np.float32)


@dataclass(frozen=True)
class FlatBookGrid:
    """w = d level, one scale for a block of 32: IQ4_NL.

    The exact scale is searched as in `BookGrid`; of the half-precision scales beside it the one
    that serves best is kept, or none where zeros are better.
    """

    book: Book
    widths: tuple[float, ...]

    def fit(self, x: Floats, importance: Floats | None) -> Scales:
        """Scales for blocks ``x`` [blocks, 32]."""
        search = BookGrid(0, 0, True, 0, self.widths, 32, book=self.book)
        w = None if importance is None else np.ascontiguousarray(importance.T)
        run = _BookRun(search, np.ascontiguousarray(x.T), w, self.book)
        s, _ = run.search()
        out = empty_scales(len(x))
        best = np.zeros(len(x), np.float32)
        for d in (to_half(s), scales_near(s)):
            gain = run.gain(d)
            better = gain > best
            best, out["d"] = np.where(better, gain, best), np.where(better, d, out["d"])
        return out

    def encode(self, x: Floats, scales: Scales) -> Codes:
        """Codes of blocks ``x`` under ``scales``: the nearest levels."""
        return self.book.codes(x * reciprocal_or_zero(scales["d"])[:, None])

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        """Weights of ``codes`` under ``scales``."""
        return scales["d"][:, None] * self.book.values[codes]
