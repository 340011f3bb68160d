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

import numpy as np
import numpy.typing as npt

from kvant._core import Plan
from kvant.graph.ir import Node, Value, WeightRef
from kvant.graph.ops import (
    Add,
    Attention,
    Embedding,
    Graph,
    Linear,
    Moe,
    RmsNorm,
    Rope,
    SwiGlu,
)

__all__ = ["ExpertStack", "LoweredPlan", "WeightSource", "lower"]

_NOTHING, _NORM, _SWIGLU = 0, 1, 2


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
    linear_ops: dict[str, int] = field(default_factory=dict)
    """Canonical name of a linear's weight -> the operation that reads its input."""
    expert_ops: dict[str, ExpertStack] = field(default_factory=dict)
    """Canonical name of a stack of experts -> where it is used."""
    matrices: dict[str, int] = field(default_factory=dict)
    vectors: dict[str, int] = field(default_factory=dict)


def lower(graph: Graph, plan: Plan, weights: WeightSource, kv_type: int) -> LoweredPlan:
    """Add the operations of ``graph`` to ``plan``.

    Raises:
        ValueError: the graph has a shape the core does not run; a mistake in an architecture.
    """
    return _Lowering(graph, plan, weights, kv_type).run()


class _Lowering:
    def __init__(self, graph: Graph, plan: Plan, weights: WeightSource, kv_type: int) -> None:
        self._graph, self._plan, self._weights, self._kv_type = graph, plan, weights, kv_type
        self._users: dict[int, list[Node]] = {}
        for node in graph.nodes:
            for value in dict.fromkeys(node.inputs):
                self._users.setdefault(value.id, []).append(node)
        self._buffers: dict[int, int] = {}  # value -> buffer
        self._shared: dict[tuple[int, int], int] = {}  # (place in the layer, width) -> buffer
        self._place = 0
        self._done: set[int] = set()  # values that need no operation of their own any more
        self._turns: dict[tuple[float, ...], int] = {}
        self._head: Node = graph.nodes[-1]
        self._layer = -1
        self._out = LoweredPlan(-1, -1, graph.layer_count, 0, 0)

    def run(self) -> LoweredPlan:
        head = self._head
        if not isinstance(head.op, Linear):
            raise ValueError("a language model's graph ends in a linear")
        for node in self._graph.nodes[:-1]:
            self._enter(node)
            if node.result.id not in self._done:
                self._lower(node)
        out = self._out
        out.result = self._buffer(head.inputs[0])
        bias = -1 if head.op.bias is None else self._vector(head.op.bias)
        self._plan.head(out.result, self._matrix(head.op.weight), bias)
        out.vocab_size, out.hidden_size = head.result.width, head.inputs[0].width
        return out

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
        elif isinstance(op, RmsNorm):
            if not self._waits(node):
                self._plan.norm(
                    self._layer,
                    self._buffer(node.inputs[0]),
                    self._new(node.result),
                    self._vector(op.weight),
                    op.eps,
                    op.groups,
                )
        elif isinstance(op, SwiGlu):
            if not self._waits(node):
                gate, up = map(self._buffer, node.inputs)
                self._plan.swiglu(self._layer, gate, up, self._new(node.result))
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
        if isinstance(node.op, (SwiGlu, RmsNorm)):
            whole = isinstance(node.op, SwiGlu) or node.op.groups == 1
            if whole and all(isinstance(u.op, Linear) and u is not self._head for u in users):
                return True
        if isinstance(node.op, (Rope, RmsNorm)) and len(users) == 1:
            user = users[0]
            if isinstance(user.op, Attention):
                return node.result in user.inputs[:2]
            return isinstance(node.op, RmsNorm) and isinstance(user.op, Rope) and self._waits(user)
        return False

    # ---- linears --------------------------------------------------------------------------------

    def _linears(self, first: Node) -> None:
        """All linears that read one value, as one operation."""
        value = first.inputs[0]
        group = [
            n
            for n in self._users[value.id]
            if isinstance(n.op, Linear) and n is not self._head and n.layer == first.layer
        ]
        before, src, src2, vector, eps = self._input(value)
        outputs = [self._output(node) for node in group]
        index = self._plan.linear(self._layer, src, src2, before, vector, eps, outputs)
        for node in group:
            self._done.add(node.result.id)
            assert isinstance(node.op, Linear)
            self._out.linear_ops[node.op.weight.name] = index

    def _input(self, value: Value) -> tuple[int, int, int, int, float]:
        """(what to do before, buffer, second buffer, vector, eps) of a linear's input."""
        if value.id in self._buffers:
            return _NOTHING, self._buffers[value.id], -1, -1, 0.0
        node = self._graph.producer(value)
        assert node is not None
        if isinstance(node.op, SwiGlu):
            gate, up = map(self._buffer, node.inputs)
            return _SWIGLU, gate, up, -1, 0.0
        assert isinstance(node.op, RmsNorm)
        return _NORM, self._buffer(node.inputs[0]), -1, self._vector(node.op.weight), node.op.eps

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
        self._plan.linear(self._layer, source, -1, _NOTHING, -1, 0.0, [router])
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
            0,
            0.0,
            q_norm,
            q_eps,
            k_norm,
            k_eps,
            q_rope,
            k_rope,
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
        key = tuple(float(f) for f in op.frequencies)
        if key not in self._turns:
            self._turns[key] = self._plan.add_frequencies(list(key))
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
