"""Tracing: a model written down op by op, each with its shape rule."""

from __future__ import annotations

from itertools import accumulate

from kvant.graph.ir import KvState, Trace, Value
from kvant.graph.ops import (
    Add,
    Attention,
    Embedding,
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

__all__ = ["Graph"]


class Graph(Trace):
    """A traced model. Each method applies one op and checks its shape rule.

    A model whose attention is not causal is an encoder: it ends in states, not in logits.

    The methods raise ValueError where widths do not fit: that is a mistake in an architecture,
    which has to refuse impossible configurations before it traces them.
    """

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder."""
        return any(isinstance(n.op, Attention) and not n.op.causal for n in self.nodes)

    def embedding(self, role: str, vocabulary: int, width: int) -> Value:
        """Look up the tokens: the first node of a language model."""
        weight = self._declare(role, "weight", (vocabulary, width))
        return self._record(Embedding(weight), (self.tokens,), width)

    def positions(self, role: str, count: int, width: int) -> Value:
        """Look up the tokens' positions, of which there are ``count``."""
        weight = self._declare(role, "weight", (count, width))
        return self._record(Positions(weight), (self.tokens,), width)

    def row(self, role: str, count: int, width: int, *, index: int = 0) -> Value:
        """The same row of ``count`` for every token."""
        if not 0 <= index < count:
            raise ValueError(f"row: there is no row {index} of {count}")
        weight = self._declare(role, "weight", (count, width))
        return self._record(Row(weight, index), (self.tokens,), width)

    def linear(self, x: Value, role: str, width: int, *, bias: bool = False) -> Value:
        """Map the row to ``width`` numbers."""
        weight = self._declare(role, "weight", (width, x.width))
        offset = self._declare(role, "bias", (width,)) if bias else None
        return self._record(Linear(weight, offset), (x,), width)

    def rms_norm(self, x: Value, role: str, *, eps: float, groups: int = 1) -> Value:
        """Normalise the row, or each of ``groups`` equal parts of it."""
        weight = self._declare(role, "weight", (_divided(x.width, groups, role),))
        return self._record(RmsNorm(weight, eps, groups), (x,), x.width)

    def layer_norm(self, x: Value, role: str, *, eps: float, bias: bool = True) -> Value:
        """Normalise the row to mean zero and variance one, then scale and shift it."""
        weight = self._declare(role, "weight", (x.width,))
        offset = self._declare(role, "bias", (x.width,)) if bias else None
        return self._record(LayerNorm(weight, offset, eps), (x,), x.width)

    def rope(
        self,
        x: Value,
        *,
        heads: int,
        theta: float,
        linear: float = 1.0,
        factors: tuple[float, ...] = (),
        turned: int | None = None,
        magnitude: float = 1.0,
        long_factors: tuple[float, ...] = (),
        original: int = 0,
    ) -> Value:
        """Turn every head by its position; ``turned`` elements of it, by default all."""
        head_dim = _divided(x.width, heads, "rope")
        turned = head_dim if turned is None else turned
        half = _divided(turned, 2, "rope")
        if not 0 < turned <= head_dim:
            raise ValueError(f"rope cannot turn {turned} of {head_dim} elements")
        for numbers in (factors, long_factors):
            if len(numbers) not in (0, half):
                raise ValueError(f"rope takes {half} frequency factors, got {len(numbers)}")
        op = Rope(
            heads, head_dim, theta, linear, factors, turned, magnitude, long_factors, original
        )
        return self._record(op, (x,), x.width)

    def attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        *,
        heads: int,
        kv_heads: int,
        scale: float | None = None,
        window: int = 0,
        soft_cap: float = 0.0,
        causal: bool = True,
    ) -> Value:
        """Attend to what came before, or to all; adds the layer's keys and values to ``states``.

        ``scale`` defaults to ``head_dim ** -0.5``; ``window`` and ``soft_cap`` 0 mean none.
        """
        head_dim = _divided(query.width, heads, "attention")
        _divided(heads, kv_heads, "attention")
        if key.width != kv_heads * head_dim or value.width != key.width:
            raise ValueError(f"attention: keys and values must be {kv_heads} x {head_dim} wide")
        if self._layer is None:
            raise ValueError("attention belongs into a layer: its keys and values are kept there")
        if window and not causal:
            raise ValueError("attention: a window only makes sense looking back")
        state = KvState(self._layer, kv_heads, head_dim)
        self.states.append(state)
        scale = head_dim**-0.5 if scale is None else scale
        op = Attention(heads, scale, state, window, soft_cap, causal)
        return self._record(op, (query, key, value), query.width)

    def swiglu(self, gate: Value, up: Value) -> Value:
        """Gate ``up`` by silu of ``gate``."""
        return self._record(SwiGlu(), (gate, up), _same(gate, up, "swiglu"))

    def geglu(self, gate: Value, up: Value) -> Value:
        """Gate ``up`` by gelu of ``gate``."""
        return self._record(GeGlu(), (gate, up), _same(gate, up, "geglu"))

    def gelu(self, x: Value, *, tanh: bool) -> Value:
        """Gate the row by itself; ``tanh`` approximates."""
        return self._record(Gelu(tanh), (x,), x.width)

    def scale(self, x: Value, factor: float) -> Value:
        """Multiply by a constant; nothing is done for 1."""
        return x if factor == 1 else self._record(Scale(factor), (x,), x.width)

    def soft_cap(self, x: Value, cap: float) -> Value:
        """Bound the row by ``cap``; nothing is done for 0, which means none."""
        return self._record(SoftCap(cap), (x,), x.width) if cap else x

    def split(self, x: Value, *widths: int) -> list[Value]:
        """Cut the row into parts of these widths, which add up to it."""
        if sum(widths) != x.width:
            raise ValueError(f"split: parts of {widths} do not add up to {x.width}")
        starts = accumulate(widths[:-1], initial=0)
        cuts = zip(starts, widths, strict=True)
        return [self._record(Slice(start, width), (x,), width) for start, width in cuts]

    def moe(
        self, x: Value, *, experts: int, used: int, inner: int, normalise: bool = True
    ) -> Value:
        """Send the row through ``used`` of ``experts`` gated feed-forwards ``inner`` wide."""
        if not 1 <= used <= experts:
            raise ValueError(f"moe: {used} of {experts} experts cannot be used")
        router = self._declare("ffn_gate_inp", "weight", (experts, x.width))
        gate = self._declare("ffn_gate_exps", "weight", (experts, inner, x.width))
        up = self._declare("ffn_up_exps", "weight", (experts, inner, x.width))
        down = self._declare("ffn_down_exps", "weight", (experts, x.width, inner))
        return self._record(Moe(router, gate, up, down, used, normalise), (x,), x.width)

    def add(self, left: Value, right: Value) -> Value:
        """Sum two values."""
        return self._record(Add(), (left, right), _same(left, right, "add"))


def _divided(total: int, parts: int, what: str) -> int:
    if parts < 1 or total % parts:
        raise ValueError(f"{what}: {total} does not divide into {parts} parts")
    return total // parts


def _same(left: Value, right: Value, what: str) -> int:
    if left.width != right.width:
        raise ValueError(f"{what}: widths {left.width} and {right.width} differ")
    return left.width
