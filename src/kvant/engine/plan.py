"""The graph lowered to the core's operations: the fold that the engine runs.

What the core does in one operation is recognised here: linears that read one value become one
product; a norm or a gated activation before them happens while their input is rounded; a residual
sum is added as the product is written; normalising and turning the heads happens as keys are
stored. Whatever does not match runs as an operation of its own, so a new architecture works before
it is fast.

Values inside a layer live in buffers that all layers share, by their place in the layer. One value
runs through the layers, the stream; it stays in one buffer from the embedding to the last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kvant._core import Plan
from kvant.graph.build import Graph
from kvant.graph.find import output_head
from kvant.graph.ir import Node, Op, Value, WeightRef
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

__all__ = ["ExpertStack", "LoweredPlan", "WeightSource", "lower"]


class _Map(IntEnum):
    """What the core does to a row by itself; ``Map`` of native/runtime/plan.h."""

    NOTHING = 0
    RMS_NORM = 1
    LAYER_NORM = 2
    SWIGLU = 3
    GEGLU = 4
    GELU_TANH = 5
    GELU_ERF = 6
    SCALE = 7


@dataclass(frozen=True, slots=True)
class _Row:
    """A `_Map` and what it needs, as the core's ``map`` and ``linear`` take it."""

    what: _Map
    src: int
    src2: int = -1
    vector: int = -1
    vector2: int = -1
    number: float = 0.0
    groups: int = 1


@dataclass(frozen=True, slots=True)
class WeightSource:
    """How the lowering gets at weights: ids of what was added to the plan, one for each name."""

    matrix: Callable[[WeightRef], int]
    exact: Callable[[WeightRef], int]
    """A matrix in single precision, whatever it is stored as."""
    vector: Callable[[WeightRef], int]
    table: Callable[[WeightRef], int]


@dataclass(frozen=True, slots=True)
class ExpertStack:
    """The operation of a stack of experts, how many of them a token uses, and whether the stack
    reads what is between an expert's own products (down does)."""

    op: int
    used: int
    inner: bool


@dataclass(slots=True)
class LoweredPlan:
    """What the session needs to know beside the plan itself."""

    stream: int
    result: int
    layers: int
    vocab_size: int
    hidden_size: int
    encodes: bool = False
    """Whether the model ends in states; there is no head then."""
    positions: bool = False
    """Whether the stream depends on positions before the first layer."""
    linear_ops: dict[str, int] = field(default_factory=dict)
    """Canonical name of a linear's weight -> the operation that reads its input."""
    expert_ops: dict[str, ExpertStack] = field(default_factory=dict)
    """Canonical name of a stack of experts -> where it is used."""
    matrices: dict[str, int] = field(default_factory=dict)
    vectors: dict[str, int] = field(default_factory=dict)


def lower(
    graph: Graph, plan: Plan, weights: WeightSource, kv_type: int, longest: int
) -> LoweredPlan:
    """Add the operations of ``graph`` to ``plan``, for texts of up to ``longest`` tokens.

    Raises:
        ValueError: the graph has a shape the core does not run; a mistake in an architecture.
    """
    return _Lowering(graph, plan, weights, kv_type, longest).run()


_MAPPED = (RmsNorm, LayerNorm, SwiGlu, GeGlu, Gelu, Scale)


class _Lowering:
    def __init__(
        self, graph: Graph, plan: Plan, weights: WeightSource, kv_type: int, longest: int
    ) -> None:
        self._graph, self._plan, self._weights, self._kv_type = graph, plan, weights, kv_type
        self._longest = longest
        self._users: dict[int, list[Node]] = {}
        for node in graph.nodes:
            for value in dict.fromkeys(node.inputs):
                self._users.setdefault(value.id, []).append(node)
        self._buffers: dict[int, int] = {}  # value -> buffer
        self._shared: dict[tuple[int, int], int] = {}  # (place in the layer, width) -> buffer
        self._views: dict[tuple[int, int, int], int] = {}  # (buffer, start, width) -> view
        self._place = 0
        self._done: set[int] = set()  # values that need no operation of their own any more
        self._turns: dict[tuple[float, ...], int] = {}
        self._head: Node | None = None
        self._after_head: list[Node] = []
        if not graph.encodes:
            self._head, self._after_head = output_head(graph)
        self._layer = -1
        self._out = LoweredPlan(-1, -1, graph.layer_count, 0, 0)

    def run(self) -> LoweredPlan:
        head, out = self._head, self._out
        for node in self._graph.nodes:
            if node is head:
                break
            self._enter(node)
            if node.result.id not in self._done:
                self._lower(node)
        if head is None:
            return self._end_in_states()
        assert isinstance(head.op, Linear)
        out.result = self._buffer(head.inputs[0])
        bias = -1 if head.op.bias is None else self._vector(head.op.bias)
        factor, cap = self._end()
        self._plan.head(out.result, self._matrix(head.op.weight), bias, factor, cap)
        out.vocab_size, out.hidden_size = head.result.width, head.inputs[0].width
        return out

    def _end_in_states(self) -> LoweredPlan:
        out, first = self._out, self._graph.nodes[0]
        assert isinstance(first.op, Embedding)
        out.result = self._buffer(self._graph.output)
        if out.result != out.stream:
            raise ValueError("what an encoder gives is its stream")
        out.encodes, out.vocab_size = True, first.op.weight.shape[0]
        out.hidden_size = self._graph.output.width
        return out

    def _end(self) -> tuple[float, float]:
        """What logits are multiplied with, and their bound after that, or 0."""
        factor, cap = 1.0, 0.0
        for node in self._after_head:
            if isinstance(node.op, SoftCap) and not cap:
                cap = node.op.cap
            elif isinstance(node.op, Scale) and not cap:
                factor *= node.op.factor
            else:
                raise ValueError("logits are scaled, then bounded, and nothing else")
        return factor, cap

    def _enter(self, node: Node) -> None:
        """Follow the layers; what crosses from one to the next is the stream and nothing else."""
        layer = self._graph.layer_count if node.layer is None else node.layer
        if node.layer is None and self._layer < 0:
            layer = -1
        if layer != self._layer:
            self._layer, self._place = layer, 0
        for value in node.inputs:
            source = self._graph.producer(value)
            if source is None or source.layer == node.layer or value.id not in self._buffers:
                continue
            if self._buffers[value.id] != self._out.stream:
                raise ValueError("only the residual stream may cross from layer to layer")

    def _lower(self, node: Node) -> None:
        op = node.op
        if isinstance(op, Embedding):
            self._out.stream = self._plan.add_buffer(node.result.width)
            self._buffers[node.result.id] = self._out.stream
            self._plan.embed(self._weights.table(op.weight), self._out.stream)
        elif isinstance(op, Linear):
            self._linears(node)
        elif isinstance(op, Attention):
            self._attention(node, op)
        elif isinstance(op, Positions):
            self._out.positions = True
            self._plan.positions(self._weights.table(op.weight), self._new(node.result))
        elif isinstance(op, Row):
            table = self._weights.table(op.weight)
            self._plan.positions(table, self._new(node.result), op.index)
        elif isinstance(op, Slice):
            self._slice(node, op)
        elif isinstance(op, _MAPPED):
            if not self._waits(node):
                self._map(node)
        elif isinstance(op, Rope):
            if not self._waits(node):
                self._rope(node, op)
        elif isinstance(op, Moe):
            self._moe(node, op)
        elif isinstance(op, Add):
            self._add(node)
        else:
            raise ValueError(f"the engine has no operation for {type(op).__name__}")

    # ---- what is done as part of a later operation ----------------------------------------------

    def _waits(self, node: Node) -> bool:
        """Whether all users of a node's result do the node's work themselves."""
        users = self._users.get(node.result.id, [])
        if isinstance(node.op, _MAPPED) and not isinstance(node.op, Scale):
            whole = not isinstance(node.op, RmsNorm) or node.op.groups == 1
            plain = [isinstance(u.op, Linear) and u is not self._head for u in users]
            if whole and plain and all(plain):
                return True
        if len(users) != 1 or not isinstance(node.op, (Rope, RmsNorm)):
            return False
        user = users[0]
        if isinstance(node.op, RmsNorm) and not self._by_heads(node.op, user):
            return False
        if isinstance(user.op, Attention):
            return node.result in user.inputs[:2]
        return isinstance(node.op, RmsNorm) and isinstance(user.op, Rope) and self._waits(user)

    def _by_heads(self, norm: RmsNorm, user: Node) -> bool:
        """Whether a norm before a rope or attention is one of every head by itself."""
        if isinstance(user.op, Rope):
            return norm.groups == user.op.heads
        if isinstance(user.op, Attention):
            return norm.weight.shape[0] == user.op.state.head_dim
        return False

    # ---- rows by themselves ---------------------------------------------------------------------

    def _row(self, node: Node) -> _Row:
        """A node that maps rows, as the core has it."""
        op: Op = node.op
        src = self._buffer(node.inputs[0])
        match op:
            case RmsNorm():
                gains = self._vector(op.weight)
                return _Row(_Map.RMS_NORM, src, -1, gains, -1, op.eps, op.groups)
            case LayerNorm():
                shift = -1 if op.bias is None else self._vector(op.bias)
                return _Row(_Map.LAYER_NORM, src, -1, self._vector(op.weight), shift, op.eps)
            case SwiGlu():
                return _Row(_Map.SWIGLU, src, self._buffer(node.inputs[1]))
            case GeGlu():
                return _Row(_Map.GEGLU, src, self._buffer(node.inputs[1]))
            case Gelu():
                return _Row(_Map.GELU_TANH if op.tanh else _Map.GELU_ERF, src)
            case Scale():
                return _Row(_Map.SCALE, src, number=op.factor)
            case _:
                raise ValueError(f"{type(op).__name__} does not map rows")

    def _map(self, node: Node) -> None:
        """As an operation of its own; in place where that keeps a changed stream in its buffer."""
        r = self._row(node)
        source = node.inputs[0]
        streams = r.src == self._out.stream and self._layer < self._graph.layer_count
        stays = isinstance(node.op, Scale) or (
            streams and isinstance(node.op, (RmsNorm, LayerNorm))
        )
        if stays and self._users[source.id] == [node]:
            target = self._buffers[node.result.id] = r.src
        else:
            target = self._new(node.result)
        self._plan.map(
            self._layer, r.what, r.src, r.src2, target, r.vector, r.vector2, r.number, r.groups
        )

    def _slice(self, node: Node, op: Slice) -> None:
        """A view: no operation."""
        source = self._buffer(node.inputs[0])
        key = (source, op.start, op.width)
        if key not in self._views:
            self._views[key] = self._plan.add_view(*key)
        self._buffers[node.result.id] = self._views[key]

    # ---- linears --------------------------------------------------------------------------------

    def _linears(self, first: Node) -> None:
        """All linears that read one value, as one operation."""
        value = first.inputs[0]
        group = [
            n
            for n in self._users[value.id]
            if isinstance(n.op, Linear) and n is not self._head and n.layer == first.layer
        ]
        r = self._input(value)
        outputs = [self._output(node) for node in group]
        index = self._plan.linear(
            self._layer, r.what, r.src, r.src2, r.vector, r.vector2, r.number, outputs
        )
        for node in group:
            self._done.add(node.result.id)
            assert isinstance(node.op, Linear)
            self._out.linear_ops[node.op.weight.name] = index

    def _input(self, value: Value) -> _Row:
        """A linear's input, and what is done to it before."""
        if value.id in self._buffers:
            return _Row(_Map.NOTHING, self._buffers[value.id])
        node = self._graph.producer(value)
        assert node is not None
        return self._row(node)

    def _output(self, node: Node) -> tuple[int, int, int, bool]:
        assert isinstance(node.op, Linear)
        bias = -1 if node.op.bias is None else self._vector(node.op.bias)
        matrix = self._matrix(node.op.weight)
        return matrix, bias, *self._target(node)

    def _target(self, node: Node) -> tuple[int, bool]:
        """The buffer of a node's result, and whether it is added to what the buffer holds."""
        users = self._users.get(node.result.id, [])
        if len(users) == 1 and isinstance(users[0].op, Add):
            add = users[0]
            other = add.inputs[0] if add.inputs[1] == node.result else add.inputs[1]
            if other.id in self._buffers and self._users[other.id][-1] is add:
                self._buffers[add.result.id] = self._buffers[other.id]
                self._done.add(add.result.id)
                return self._buffers[other.id], True
        return self._new(node.result), False

    # ---- experts --------------------------------------------------------------------------------

    def _moe(self, node: Node, op: Moe) -> None:
        """The router as a linear, exact: a choice of experts must not hang on its rounding."""
        source = self._buffer(node.inputs[0])
        scores = self._room(op.experts)
        router = (self._weights.exact(op.router), -1, scores, False)
        self._plan.linear(self._layer, _Map.NOTHING, source, -1, -1, -1, 0.0, [router])
        gate, up, down = (self._matrix(ref) for ref in (op.gate, op.up, op.down))
        index = self._plan.moe(
            self._layer, source, scores, *self._target(node), gate, up, down, op.used, op.normalise
        )
        for ref in op.weights[1:]:
            self._out.expert_ops[ref.name] = ExpertStack(index, op.used, ref is op.down)

    # ---- attention ------------------------------------------------------------------------------

    def _attention(self, node: Node, op: Attention) -> None:
        q, q_norm, q_eps, q_rope = self._heads(node.inputs[0])
        k, k_norm, k_eps, k_rope = self._heads(node.inputs[1])
        state = self._plan.add_state(op.state.heads, op.state.head_dim, self._kv_type)
        self._plan.attention(
            self._layer,
            q,
            k,
            self._buffer(node.inputs[2]),
            self._new(node.result),
            state,
            op.heads,
            op.scale,
            op.window,
            op.soft_cap,
            q_norm,
            q_eps,
            k_norm,
            k_eps,
            q_rope,
            k_rope,
            op.causal,
        )

    def _heads(self, value: Value) -> tuple[int, int, float, int]:
        """(buffer, norm's vector, eps, frequencies) of queries or keys."""
        norm, eps, turn = -1, 0.0, -1
        if value.id not in self._buffers:
            node = self._graph.producer(value)
            assert node is not None
            if isinstance(node.op, Rope):
                turn = self._frequencies(node.op)
                value = node.inputs[0]
        if value.id not in self._buffers:
            node = self._graph.producer(value)
            assert node is not None
            assert isinstance(node.op, RmsNorm)
            norm, eps = self._vector(node.op.weight), node.op.eps
            value = node.inputs[0]
        return self._buffer(value), norm, eps, turn

    def _rope(self, node: Node, op: Rope) -> None:
        source = node.inputs[0]
        if self._users[source.id] != [node]:
            raise ValueError("a value that is turned in place is used elsewhere")
        buffer = self._buffers[node.result.id] = self._buffer(source)
        turn = self._frequencies(op)
        self._plan.rope(self._layer, buffer, turn, op.heads, op.head_dim)

    def _frequencies(self, op: Rope) -> int:
        frequencies = [float(f) for f in op.frequencies(self._longest)]
        key = (op.magnitude, *frequencies)
        if key not in self._turns:
            self._turns[key] = self._plan.add_frequencies(frequencies, op.magnitude)
        return self._turns[key]

    # ---- the rest -------------------------------------------------------------------------------

    def _add(self, node: Node) -> None:
        left, right = node.inputs
        a, b = self._buffer(left), self._buffer(right)
        if b == self._out.stream:
            a, b, left = b, a, right
        in_place = self._users[left.id][-1] is node
        if a == self._out.stream and not in_place:
            raise ValueError("the residual stream is read again after it has gone on")
        target = a if in_place else self._new(node.result)
        self._buffers[node.result.id] = target
        self._plan.add(self._layer, a, b, target)

    def _buffer(self, value: Value) -> int:
        if value.id not in self._buffers:
            raise ValueError("a value is read that no operation has computed")
        return self._buffers[value.id]

    def _new(self, value: Value) -> int:
        self._buffers[value.id] = self._room(value.width)
        return self._buffers[value.id]

    def _room(self, width: int) -> int:
        """A buffer for this place in the layer."""
        key = (self._place, width)
        self._place += 1
        if key not in self._shared:
            self._shared[key] = self._plan.add_buffer(width)
        return self._shared[key]

    def _matrix(self, ref: WeightRef) -> int:
        found = self._out.matrices[ref.name] = self._weights.matrix(ref)
        return found

    def _vector(self, ref: WeightRef) -> int:
        found = self._out.vectors[ref.name] = self._weights.vector(ref)
        return found


def as_vector(values: npt.NDArray[np.float32]) -> list[float]:
    """A norm's gains or a bias as the core takes them."""
    return [float(v) for v in values.reshape(-1)]
