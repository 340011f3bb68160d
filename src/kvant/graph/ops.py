"""The vocabulary: every op with its meaning, and the folds over them.

To add an op: a dataclass, a method of ``Graph`` (build.py), a method of ``Fold``; then every fold
is incomplete (Python will not instantiate it, mypy and a test say so) until it has a handler.
Only ops that some architecture uses are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from kvant.graph.ir import KvState, Op, Trace, Value, WeightRef

__all__ = [
    "Add",
    "Attention",
    "Embedding",
    "Fold",
    "GeGlu",
    "Gelu",
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
