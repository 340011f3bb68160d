"""The parts of a graph: values, declared weights, state kept between tokens, nodes.

A value is one row of numbers for every token; batch and token axes are implicit, because no
operation but attention looks across tokens. So the only shape to know is the row's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = ["KvState", "Node", "Op", "Part", "Trace", "Value", "WeightRef"]

T = TypeVar("T")
Part = Literal["weight", "bias"]


@dataclass(frozen=True, slots=True)
class Value:
    """The result of a node (or the tokens, ``id`` 0): ``width`` numbers for every token."""

    id: int
    width: int


@dataclass(frozen=True, slots=True)
class WeightRef:
    """A weight where it is used: role (GGUF's name for it), layer and shape.

    ``shape`` is row-major; a linear's is (outputs, inputs). ``layer`` is None outside the layers.
    """

    role: str
    part: Part
    layer: int | None
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The canonical name, which is GGUF's: ``blk.0.attn_q.weight``, ``output.weight``."""
        prefix = "" if self.layer is None else f"blk.{self.layer}."
        return f"{prefix}{self.role}.{self.part}"


@dataclass(frozen=True, slots=True)
class KvState:
    """Keys and values a layer keeps for later tokens: ``heads`` of ``head_dim`` numbers each."""

    layer: int
    heads: int
    head_dim: int


class Op(ABC):
    """What a node does. The concrete ops, frozen dataclasses, are in ``graph/ops.py``."""

    __slots__ = ()

    @property
    def weights(self) -> tuple[WeightRef, ...]:
        """The weights the op reads."""
        return ()

    @abstractmethod
    def accept(self, fold: Any, inputs: Sequence[T]) -> T:
        """Call the handler of ``fold`` (an ``ops.Fold``) that is meant for this op."""


@dataclass(frozen=True, slots=True)
class Node:
    """One step: ``op`` applied to ``inputs`` gives ``result``; layer None is outside the layers."""

    op: Op
    inputs: tuple[Value, ...]
    result: Value
    layer: int | None


class Trace:
    """Records nodes in the order they are computed; ``build.Graph`` adds one method for each op."""

    def __init__(self) -> None:
        self.tokens = Value(0, 1)
        self.nodes: list[Node] = []
        self.weights: dict[str, WeightRef] = {}
        self.states: list[KvState] = []
        self.layer_count = 0
        self._layer: int | None = None

    @property
    def output(self) -> Value:
        """The result of the last node: the logits of a language model."""
        return self.nodes[-1].result

    def layers(self, count: int) -> Iterator[int]:
        """Loop over ``count`` layers; what is traced inside the loop belongs to that layer."""
        for layer in range(self.layer_count, self.layer_count + count):
            self._layer = layer
            self.layer_count = layer + 1
            yield layer
        self._layer = None

    def producer(self, value: Value) -> Node | None:
        """The node whose result is ``value``; None for the tokens."""
        return self.nodes[value.id - 1] if value.id else None

    def last_uses(self) -> list[tuple[Value, ...]]:
        """For every node, the values nothing needs once it has run."""
        remaining = {self.output.id}
        dying: list[tuple[Value, ...]] = []
        for node in reversed(self.nodes):
            last = tuple(v for v in dict.fromkeys(node.inputs) if v.id not in remaining)
            remaining.update(v.id for v in last)
            dying.append(last)
        return dying[::-1]

    def _declare(self, role: str, part: Part, shape: tuple[int, ...]) -> WeightRef:
        """A weight of the layer being traced; using one twice (tied embeddings) is allowed."""
        ref = WeightRef(role, part, self._layer, shape)
        known = self.weights.setdefault(ref.name, ref)
        if known != ref:
            raise ValueError(f"{ref.name} is declared with shape {shape} and {known.shape}")
        return ref

    def _record(self, op: Op, inputs: tuple[Value, ...], width: int) -> Value:
        for value in inputs:
            if value.id > len(self.nodes):
                raise ValueError(f"{type(op).__name__} uses a value of another graph")
        result = Value(len(self.nodes) + 1, width)
        self.nodes.append(Node(op, inputs, result, self._layer))
        return result
