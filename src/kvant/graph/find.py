"""Parts of a traced model that whoever folds it asks for."""

from __future__ import annotations

from kvant.graph.ir import Node, Trace
from kvant.graph.ops import Linear, Rope, Scale, SoftCap

__all__ = ["output_head", "rotary_weights"]


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
