"""The graph as text, one node a line; a run of equal layers is shown once."""

from __future__ import annotations

from dataclasses import fields
from itertools import groupby
from typing import Any

from kvant.graph.ir import KvState, Node, Trace, WeightRef

__all__ = ["show"]


def show(graph: Trace) -> str:
    """Write ``graph`` down.

    Within a layer results are numbered from %1; ``x`` is what the node before the layer gave, and
    ``x-n`` what the nth node before that gave, so that equal layers read the same.
    """
    sections = [
        (layer, _section(list(nodes)))
        for layer, nodes in groupby(graph.nodes, key=lambda node: node.layer)
    ]
    lines: list[str] = []
    for _, group in groupby(sections, key=lambda section: (section[0] is None, section[1])):
        same = list(group)
        first, last = same[0][0], same[-1][0]
        if first is None:
            lines += same[0][1]
            continue
        lines.append(f"layer {first}:" if first == last else f"layers {first}-{last}, each:")
        lines += [f"  {line}" for line in same[0][1]]
    return "\n".join(lines) + "\n"


def _section(nodes: list[Node]) -> list[str]:
    start = nodes[0].result.id
    return [_line(node, start) for node in nodes]


def _line(node: Node, start: int) -> str:
    op: Any = node.op  # every op is a dataclass
    inputs = ", ".join(_name(value.id, start) for value in node.inputs)
    call = f"{_name(node.result.id, start)} = {type(op).__name__.lower()}({inputs})"
    said = (field for field in fields(op) if getattr(op, field.name) != field.default)
    attributes = (_attribute(field.name, getattr(op, field.name)) for field in said)
    return " ".join([call, *filter(None, attributes), f"-> {node.result.width}"])


def _name(value_id: int, start: int) -> str:
    if value_id == 0:
        return "tokens"
    if value_id >= start:
        return f"%{value_id - start + 1}"
    before = start - 1 - value_id
    return f"x-{before}" if before else "x"


def _attribute(name: str, value: object) -> str:
    match value:
        case None | ():
            return ""
        case WeightRef():
            return f"{value.role}.{value.part} {list(value.shape)}"
        case KvState():
            return f"kv={value.heads}x{value.head_dim}"
        case float():
            return f"{name}={value:.9g}"
        case tuple():
            return f"{name}=[{value[0]:.6g} ... {value[-1]:.6g}]"
        case _:
            return f"{name}={value}"
