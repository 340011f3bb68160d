"""The NumPy fold: what each op means, in float32, for a batch of sequences.

Plain on purpose. What is done for speed is only what keeps NumPy in its matrix kernels: all
sequences of a batch go through a linear in one product, attention goes by tiles of queries so
that scores stay small, and elementwise steps reuse their memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.graph.ir import WeightRef
from kvant.graph.ops import (
    Add,
    Attention,
    Embedding,
    Fold,
    GeGlu,
    Gelu,
    LayerNorm,
    Linear,
    Moe,
    Positions,
    RmsNorm,
    Rope,
    Row,
    Scale,
    Slice,
    SoftCap,
    SwiGlu,
)

__all__ = ["Interpreter"]

Array = npt.NDArray[Any]
"""A value: float32 [batch, n, width]; the token ids, which only an embedding sees, integers."""

#: OpenBLAS shares a product of up to this many multiplications among no threads. The many small
#: products of attention gain nothing from threads, and where another process keeps a core busy,
#: waiting for each other made them 20 times slower.
_ONE_THREAD = 2**18


class Interpreter(Fold[Array]):
    """Runs a graph on token ids [batch, n]; every value is float32 [batch, n, width].

    Positions count from 0 in each sequence; nothing is kept between runs. ``weight`` gives a
    declared weight as float32 of its shape, ``rows`` some rows of one (for embeddings).
    """

    def __init__(
        self,
        weight: Callable[[WeightRef], Array],
        rows: Callable[[WeightRef, Array], Array],
    ) -> None:
        self._weight, self._rows = weight, rows
        self._turns: dict[tuple[Rope, int], tuple[Array, Array]] = {}

    def embedding(self, op: Embedding, tokens: Array) -> Array:
        """Rows of the table."""
        return self._rows(op.weight, tokens.reshape(-1)).reshape(*tokens.shape, -1)

    def positions(self, op: Positions, tokens: Array) -> Array:
        """The table's first rows, the same for every sequence."""
        rows = self._rows(op.weight, np.arange(tokens.shape[-1]))
        return np.broadcast_to(rows, (*tokens.shape, rows.shape[-1]))

    def row(self, op: Row, tokens: Array) -> Array:
        """One row, the same for every token."""
        row = self._rows(op.weight, np.array([op.index]))
        return np.broadcast_to(row, (*tokens.shape, row.shape[-1]))

    def linear(self, op: Linear, x: Array) -> Array:
        """One product for all tokens of all sequences."""
        y: Array = x.reshape(-1, x.shape[-1]) @ self._weight(op.weight).T
        if op.bias is not None:
            y += self._weight(op.bias)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def rms_norm(self, op: RmsNorm, x: Array) -> Array:
        """Over the last axis, by groups."""
        parts = x.reshape(*x.shape[:-1], op.groups, -1)
        mean = np.einsum("...i,...i->...", parts, parts)[..., None] / np.float32(parts.shape[-1])
        y: Array = parts / np.sqrt(mean + np.float32(op.eps))
        y *= self._weight(op.weight)
        return y.reshape(x.shape)

    def layer_norm(self, op: LayerNorm, x: Array) -> Array:
        """Over the last axis."""
        n = np.float32(x.shape[-1])
        y: Array = x - x.sum(axis=-1, keepdims=True) / n
        variance = np.einsum("...i,...i->...", y, y)[..., None] / n
        y /= np.sqrt(variance + np.float32(op.eps))
        y *= self._weight(op.weight)
        if op.bias is not None:
            y += self._weight(op.bias)
        return y

    def rope(self, op: Rope, x: Array) -> Array:
        """Turn pairs (i, i + turned / 2) of every head."""
        cos, sin = self._cos_sin(op, x.shape[-2])
        heads = x.reshape(*x.shape[:-1], op.heads, -1)
        half = op.turned // 2
        first, second = heads[..., :half], heads[..., half : op.turned]
        y = heads.copy()
        y[..., :half] = first * cos - second * sin
        y[..., half : op.turned] = second * cos + first * sin
        return y.reshape(x.shape)

    def _cos_sin(self, op: Rope, n: int) -> tuple[Array, Array]:
        """Of every position and pair: float32 [n, 1, turned / 2], by way of float64."""
        if (op, n) not in self._turns:
            if len(self._turns) > 7:  # queries and keys, in two ways: all else is out of date
                self._turns.clear()
            angles = np.arange(n)[:, None, None] * op.frequencies(n)
            self._turns[op, n] = (
                (np.cos(angles) * op.magnitude).astype(np.float32),
                (np.sin(angles) * op.magnitude).astype(np.float32),
            )
        return self._turns[op, n]

    def attention(self, op: Attention, query: Array, key: Array, value: Array) -> Array:
        """Softmax over the keys up to each query, for all heads that share keys at once."""
        batch, n, width = query.shape
        shared, group = op.state.heads, op.heads // op.state.heads
        # [batch, kv head, query head of it, token, element]; keys and values without the third.
        q = query.reshape(batch, n, shared, group, -1).transpose(0, 2, 3, 1, 4)
        k = key.reshape(batch, n, shared, 1, -1).transpose(0, 2, 3, 4, 1)
        v = value.reshape(batch, n, shared, 1, -1).transpose(0, 2, 3, 1, 4)
        out = np.empty((batch, n, shared, group, op.state.head_dim), np.float32)
        tile = min(128, max(8, _ONE_THREAD // (n * op.state.head_dim)))
        for start in range(0, n, tile):
            stop = min(start + tile, n)
            first = max(0, start - op.window + 1) if op.window else 0
            seen = stop if op.causal else n
            scores = (q[..., start:stop, :] * np.float32(op.scale)) @ k[..., first:seen]
            if op.soft_cap:
                scores = _soft_cap(scores, op.soft_cap)
            if op.causal:
                later = np.triu(np.ones((stop - start, stop - start), bool), 1)
                scores[..., start - first :][..., later] = -np.inf
            if op.window:
                behind = np.arange(start, stop)[:, None] - np.arange(first, seen)
                scores[..., behind >= op.window] = -np.inf
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            mixed = scores @ v[..., first:seen, :] / scores.sum(axis=-1, keepdims=True)
            out[:, start:stop] = mixed.transpose(0, 3, 1, 2, 4)
        return out.reshape(batch, n, width)

    def swiglu(self, op: SwiGlu, gate: Array, up: Array) -> Array:
        """``gate / (1 + exp(-gate)) * up``; exp overflows to infinity where the result is 0."""
        with np.errstate(over="ignore"):
            y = np.exp(-gate)
        y += 1
        np.divide(gate, y, out=y)
        y *= up
        return y

    def geglu(self, op: GeGlu, gate: Array, up: Array) -> Array:
        """Gelu of ``gate`` by tanh, times ``up``."""
        return self.gelu(Gelu(tanh=True), gate) * up

    def gelu(self, op: Gelu, x: Array) -> Array:
        """In float32 by tanh; the error function goes element by element through the library."""
        if not op.tanh:
            wide = x.astype(np.float64).reshape(-1)
            errors = np.fromiter(map(math.erf, (wide * 0.5**0.5).tolist()), np.float64, wide.size)
            return (0.5 * wide * (1 + errors)).astype(np.float32).reshape(x.shape)
        with np.errstate(over="ignore"):  # of x cubed, where tanh is one
            inner = np.float32((2 / math.pi) ** 0.5) * (x + np.float32(0.044715) * x * x * x)
        y: Array = np.float32(0.5) * x * (1 + np.tanh(inner))
        return y

    def scale(self, op: Scale, x: Array) -> Array:
        """Elementwise."""
        y: Array = x * np.float32(op.factor)
        return y

    def soft_cap(self, op: SoftCap, x: Array) -> Array:
        """Elementwise."""
        return _soft_cap(x, op.cap)

    def slice(self, op: Slice, x: Array) -> Array:
        """A part of the last axis."""
        return x[..., op.start : op.start + op.width]

    def moe(self, op: Moe, x: Array) -> Array:
        """Expert by expert, over the tokens that chose it."""
        rows = x.reshape(-1, x.shape[-1])
        scores = rows @ self._weight(op.router).T
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : op.used]
        share = np.take_along_axis(shares, chosen, -1)
        if op.normalise:
            share /= share.sum(-1, keepdims=True)
        gates, ups, downs = map(self._weight, (op.gate, op.up, op.down))
        y = np.zeros_like(rows)
        for expert in range(op.experts):
            token, rank = np.nonzero(chosen == expert)
            if len(token):
                some = rows[token]
                inner = self.swiglu(SwiGlu(), some @ gates[expert].T, some @ ups[expert].T)
                y[token] += share[token, rank, None] * (inner @ downs[expert].T)
        return y.reshape(x.shape)

    def add(self, op: Add, left: Array, right: Array) -> Array:
        """Elementwise."""
        return left + right


def _soft_cap(x: Array, cap: float) -> Array:
    y: Array = np.tanh(x / np.float32(cap)) * np.float32(cap)
    return y
