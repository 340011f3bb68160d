"""The vocabulary: every op with its meaning and shape rule, the methods that trace it, the folds.

To add an op: a dataclass, a method of ``Graph``, an abstract method of ``Fold``; then every fold
is incomplete (Python will not instantiate it, mypy and a test say so) until it has a handler.
Only ops that some architecture uses are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from kvant.graph.ir import KvState, Node, Op, Trace, Value, WeightRef

__all__ = [
    "Add",
    "Attention",
    "Embedding",
    "Fold",
    "GeGlu",
    "Gelu",
    "Graph",
    "LayerNorm",
    "Linear",
    "Moe",
    "Positions",
    "RmsNorm",
    "Rope",
    "Row",
    "Scale",
    "Slice",
    "SoftCap",
    "SwiGlu",
    "output_head",
    "rotary_weights",
    "run",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Embedding(Op):
    """Row ``token`` of ``weight`` [vocabulary, width]."""

    weight: WeightRef

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """The table."""
        return (self.weight,)

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.embedding(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Positions(Op):
    """Row ``position`` of ``weight`` [positions, width]: learned positions, as GPT-2 has them."""

    weight: WeightRef

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """The table."""
        return (self.weight,)

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.positions(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Row(Op):
    """Row ``index`` of ``weight`` [rows, width], for every token: BERT's kind of segment."""

    weight: WeightRef
    index: int

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """The table."""
        return (self.weight,)

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.row(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """``x @ weight.T + bias`` with ``weight`` [outputs, inputs]."""

    weight: WeightRef
    bias: WeightRef | None

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """The matrix, and the bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.linear(self, inputs[0])


@dataclass(frozen=True, slots=True)
class RmsNorm(Op):
    """``x / sqrt(mean(x^2) + eps) * weight``, over each of ``groups`` equal parts of the row.

    ``groups`` is 1, or the number of heads where every head is normalised by itself with the same
    ``weight`` [width / groups]. Source: Zhang and Sennrich, arXiv 1910.07467.
    """

    weight: WeightRef
    eps: float
    groups: int

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """The gains."""
        return (self.weight,)

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.rms_norm(self, inputs[0])


@dataclass(frozen=True, slots=True)
class LayerNorm(Op):
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` over the row.

    Source: Ba et al., arXiv 1607.06450.
    """

    weight: WeightRef
    bias: WeightRef | None
    eps: float

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """The gains, and what is added where there is that."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.layer_norm(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Rope(Op):
    """Rotary position embedding of the first ``turned`` elements of every head.

    Element i of a head is paired with i + turned / 2. At position p, pair i turns by the angle
    ``p * frequencies[i]`` and grows by ``magnitude``. ``linear`` stretches all positions (Meta's
    position interpolation, arXiv 2306.15595); ``factors`` divide single frequencies (Llama 3.1's
    scaling) and are empty or turned / 2 long. Where a text is made for more than ``original``
    positions, ``long_factors`` take their place (LongRoPE, arXiv 2402.13753).
    Source: Su et al., arXiv 2104.09864, in the half-split order of GPT-NeoX and Hugging Face.
    """

    heads: int
    head_dim: int
    theta: float
    linear: float
    factors: tuple[float, ...]
    turned: int
    magnitude: float = 1.0
    long_factors: tuple[float, ...] = ()
    original: int = 0

    def frequencies(self, length: int) -> npt.NDArray[np.float64]:
        """Radians per position in a text of ``length`` tokens, float64 [turned / 2]."""
        exponents = np.arange(0, self.turned, 2, dtype=np.float64) / self.turned
        factors = self.factors
        if self.long_factors and length > self.original:
            factors = self.long_factors
        divisors = np.asarray(factors or 1.0, np.float64) * self.linear
        result: npt.NDArray[np.float64] = self.theta**-exponents / divisors
        return result

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.rope(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Attention(Op):
    """Softmax attention of ``heads`` queries over the keys and values in ``state``.

    Query head h reads key head ``h // (heads / state.heads)`` (grouped-query attention, arXiv
    2305.13245); scores are multiplied by ``scale``, then with a ``soft_cap`` above 0 become
    ``soft_cap * tanh(score / soft_cap)``. With a ``window`` above 0 a position sees only so many,
    itself and those before it. A ``causal`` position sees itself and those before, otherwise all of
    its text. Inputs: query, key, value.
    """

    heads: int
    scale: float
    state: KvState
    window: int = 0
    soft_cap: float = 0.0
    causal: bool = True

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.attention(self, inputs[0], inputs[1], inputs[2])


@dataclass(frozen=True, slots=True)
class SwiGlu(Op):
    """``silu(gate) * up`` with ``silu(x) = x / (1 + exp(-x))`` (Shazeer, arXiv 2002.05202)."""

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.swiglu(self, inputs[0], inputs[1])


@dataclass(frozen=True, slots=True)
class GeGlu(Op):
    """``gelu(gate) * up``, with gelu by its tanh approximation (Shazeer, arXiv 2002.05202)."""

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.geglu(self, inputs[0], inputs[1])


@dataclass(frozen=True, slots=True)
class Gelu(Op):
    """``x * Phi(x)`` with the normal distribution's ``Phi``.

    Source: Hendrycks and Gimpel, arXiv 1606.08415.
    ``tanh``: by ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`` (``gelu_new``,
    ``gelu_pytorch_tanh``); otherwise exactly, by the error function (``gelu``).
    """

    tanh: bool

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.gelu(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Scale(Op):
    """``factor * x``."""

    factor: float

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.scale(self, inputs[0])


@dataclass(frozen=True, slots=True)
class SoftCap(Op):
    """``cap * tanh(x / cap)``: no number beyond ``cap`` (Gemma 2, arXiv 2408.00118)."""

    cap: float

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.soft_cap(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """``width`` numbers of the row from ``start`` on: a part of what a fused linear gives."""

    start: int
    width: int

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.slice(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Moe(Op):
    """A mixture of gated experts: each token goes through the ``used`` that its router prefers.

    The router's scores over all experts become shares by softmax; the largest ``used`` are kept
    (of equal ones those of lower index), and with ``normalise`` divided by their sum. The result
    is the sum over them of share times ``down @ (silu(gate @ x) * (up @ x))``. Experts of a role
    are one stack of matrices: ``gate`` and ``up`` [experts, inner, width], ``down``
    [experts, width, inner]; ``router`` is [experts, width].
    Source: Shazeer et al., arXiv 1701.06538; Jiang et al., arXiv 2401.04088.
    """

    router: WeightRef
    gate: WeightRef
    up: WeightRef
    down: WeightRef
    used: int
    normalise: bool

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.router.shape[0]

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """The router and the three stacks."""
        return (self.router, self.gate, self.up, self.down)

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.moe(self, inputs[0])


@dataclass(frozen=True, slots=True)
class Add(Op):
    """The sum of two rows of one width."""

    def accept(self, fold: Fold[T], inputs: Sequence[T]) -> T:
        """Dispatch."""
        return fold.add(self, inputs[0], inputs[1])


class Fold(ABC, Generic[T]):
    """One handler for each op; ``T`` is what the fold makes of a value (an array, a name, ...)."""

    @abstractmethod
    def embedding(self, op: Embedding, tokens: T) -> T:
        """Handle ``Embedding``."""

    @abstractmethod
    def positions(self, op: Positions, tokens: T) -> T:
        """Handle ``Positions``."""

    @abstractmethod
    def row(self, op: Row, tokens: T) -> T:
        """Handle ``Row``."""

    @abstractmethod
    def linear(self, op: Linear, x: T) -> T:
        """Handle ``Linear``."""

    @abstractmethod
    def rms_norm(self, op: RmsNorm, x: T) -> T:
        """Handle ``RmsNorm``."""

    @abstractmethod
    def layer_norm(self, op: LayerNorm, x: T) -> T:
        """Handle ``LayerNorm``."""

    @abstractmethod
    def rope(self, op: Rope, x: T) -> T:
        """Handle ``Rope``."""

    @abstractmethod
    def attention(self, op: Attention, query: T, key: T, value: T) -> T:
        """Handle ``Attention``."""

    @abstractmethod
    def swiglu(self, op: SwiGlu, gate: T, up: T) -> T:
        """Handle ``SwiGlu``."""

    @abstractmethod
    def geglu(self, op: GeGlu, gate: T, up: T) -> T:
        """Handle ``GeGlu``."""

    @abstractmethod
    def gelu(self, op: Gelu, x: T) -> T:
        """Handle ``Gelu``."""

    @abstractmethod
    def scale(self, op: Scale, x: T) -> T:
        """Handle ``Scale``."""

    @abstractmethod
    def soft_cap(self, op: SoftCap, x: T) -> T:
        """Handle ``SoftCap``."""

    @abstractmethod
    def slice(self, op: Slice, x: T) -> T:
        """Handle ``Slice``."""

    @abstractmethod
    def moe(self, op: Moe, x: T) -> T:
        """Handle ``Moe``."""

    @abstractmethod
    def add(self, op: Add, left: T, right: T) -> T:
        """Handle ``Add``."""


def run(graph: Trace, fold: Fold[T], tokens: T, *, until: Value | None = None) -> T:
    """Fold ``graph`` over its nodes in order; what no later node needs is dropped at once.

    Returns what the fold made of the value ``until``, or of the graph's output; nodes after
    ``until`` do not run.
    """
    target = graph.output if until is None else until
    values: dict[int, T] = {graph.tokens.id: tokens}
    for node, dying in zip(graph.nodes, graph.last_uses(), strict=True):
        if target.id in values:
            break
        inputs = [values[value.id] for value in node.inputs]
        for value in dying:
            del values[value.id]
        values[node.result.id] = node.op.accept(fold, inputs)
    return values[target.id]


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


def output_head(graph: Trace) -> tuple[Node, list[Node]]:
    """The linear that gives a language model's logits, and what is done to each of them after it.

    Raises:
        ValueError: the graph does not end so; a mistake in an architecture.
    """
    after: list[Node] = []
    for node in reversed(graph.nodes):
        if isinstance(node.op, Linear):
            return node, after[::-1]
        if not isinstance(node.op, (Scale, SoftCap)):
            break
        after.append(node)
    raise ValueError("a language model's graph ends in a linear, scales and soft caps")


def rotary_weights(graph: Trace) -> dict[str, int]:
    """Canonical names of weights (and biases) whose outputs are rotated, with the head count.

    These are the ones whose row order differs between file formats: a linear that feeds a rope.
    """
    found: dict[str, int] = {}
    for node in graph.nodes:
        if not isinstance(node.op, Rope):
            continue
        source = graph.producer(node.inputs[0])
        if source is not None and isinstance(source.op, Linear):
            found.update((weight.name, node.op.heads) for weight in source.op.weights)
    return found


def _divided(total: int, parts: int, what: str) -> int:
    if parts < 1 or total % parts:
        raise ValueError(f"{what}: {total} does not divide into {parts} parts")
    return total // parts


def _same(left: Value, right: Value, what: str) -> int:
    if left.width != right.width:
        raise ValueError(f"{what}: widths {left.width} and {right.width} differ")
    return left.width
