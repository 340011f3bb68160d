"""Graphs within graphs (branches of If, bodies of Loop) and functions of a model's own.

Tools for quantisation see the outermost graph. So functions are put where they are called, and
weights of inner graphs move to the outermost one, where every inner graph sees them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from kvant.errors import UnsupportedError
from kvant.onnxtools.packages import need, onnx

__all__ = [
    "all_nodes",
    "check_functions",
    "graphs_of",
    "hoist_weights",
    "inline_functions",
    "inner_graphs",
    "names_made",
    "names_read",
    "sort_nodes",
    "to_hoist",
]

_LEAST = 256
"""Constants of fewer elements stay where they are: no level changes them."""
MOST_INLINED = 1_000_000_000
"""Bytes that functions may take where they are called."""


def inner_graphs(node: Any) -> Iterator[Any]:
    """Graphs that are attributes of ``node``."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs_of(graph: Any) -> Iterator[Any]:
    """``graph`` and all graphs in it, each before what it holds."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs_of(inner)


def all_nodes(graph: Any) -> Iterator[Any]:
    """Nodes of ``graph`` and of all graphs in it."""
    for part in graphs_of(graph):
        yield from part.node


def names_made(graph: Any) -> set[str]:
    """Values that ``graph`` itself gives names to; they hide those of the graphs around it."""
    names = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    return names | {name for node in graph.node for name in node.output if name}


def names_read(node: Any) -> set[str]:
    """Values that ``node`` needs, those that its inner graphs take from around it included."""
    names = {name for name in node.input if name}
    for inner in inner_graphs(node):
        taken = {value.name for value in inner.output}.union(*map(names_read, inner.node))
        names |= taken - names_made(inner)
    return names


def sort_nodes(graph: Any) -> None:
    """Put every node after what it needs; otherwise the order stays.

    onnxruntime's own sort does not see what inner graphs need.

    Raises:
        ValueError: nodes need each other.
    """
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [
        sorted({makers[name] for name in names_read(node) if name in makers}) for node in graph.node
    ]
    order: list[int] = []
    done = [False] * len(needs)
    for start in range(len(needs)):
        stack = [start]
        while stack:
            here = stack[-1]
            missing = [] if done[here] else [i for i in needs[here] if not done[i]]
            if missing:
                if len(stack) > len(needs):
                    raise ValueError("nodes need each other")
                stack.append(missing[0])
                continue
            stack.pop()
            if not done[here]:
                done[here] = True
                order.append(here)
    nodes = [graph.node[index] for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def inlined_bytes(proto: Any) -> int:
    """Bytes of the nodes of ``proto`` with its functions in place of their calls.

    Each of 30 functions may call the next twice; none calls itself (see `checks`).
    """
    bodies = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Any) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in bodies:
                if key not in sizes:
                    sizes[key] = bodies[key].ByteSize() + size(bodies[key].node)
                total += sizes[key]
            for inner in inner_graphs(node):
                total += size(inner.node)
        return total

    return size(proto.graph.node)


def check_functions(proto: Any, where: str) -> None:
    """Refuse functions that call each other until nothing can hold their nodes.

    Raises:
        UnsupportedError: they are over a gigabyte where they are called; begins with ``where``.
    """
    grown = inlined_bytes(proto) if proto.functions else 0
    if grown > MOST_INLINED:
        raise UnsupportedError(
            f"{where}: its functions take {grown / 1e9:,.0f} GB where they are called, expected at "
            f"most {MOST_INLINED / 1e9:,.0f}. Export the model without functions."
        )


def inline_functions(proto: Any) -> Any:
    """``proto`` with the nodes of its functions in place of their calls."""
    return need("onnx.inliner").inline_local_functions(proto)


def to_hoist(proto: Any) -> bool:
    """Whether `hoist_weights` would move or rename something."""
    return bool(_hidden(proto)) or any(
        (graph is not proto.graph and graph.initializer)
        or any(_weight(node) is not None for node in graph.node)
        for graph in graphs_of(proto.graph)
    )


def _hidden(proto: Any) -> list[tuple[Any, dict[str, str]]]:
    """Inner graphs with values whose names others have, too, and new names for those."""
    taken: set[str] = set()
    everything = {name for graph in graphs_of(proto.graph) for name in names_made(graph)}
    found = []
    for graph in graphs_of(proto.graph):
        made = names_made(graph)
        new = {}
        for name in sorted(made & taken):
            new[name] = _free(name, everything)
            everything.add(new[name])
        taken |= made
        if new:
            found.append((graph, new))
    return found


def _rename_made(graph: Any, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = names.get(name, name)
    _rename(graph, names)


def _weight(node: Any) -> Any:
    """The tensor of a Constant that is large enough to be a weight."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            count = 1
            for size in attribute.t.dims:
                count *= size
            kind = attribute.t.data_type
            return attribute.t if count >= _LEAST and kind == onnx().TensorProto.FLOAT else None
    return None


def hoist_weights(proto: Any) -> Any:
    """Move initializers of inner graphs, and large constants, to the outermost graph.

    Each gets a name that nothing else in the model has, and so do other values of inner graphs,
    which onnxruntime's tools take for those around them; ``proto`` is changed and returned.
    """
    for graph, names in _hidden(proto):
        _rename_made(graph, names)
    taken = {name for graph in graphs_of(proto.graph) for name in names_made(graph)}
    for graph in list(graphs_of(proto.graph)):
        outermost = graph is proto.graph
        given = {value.name for value in graph.output}
        fed = {value.name for value in graph.input}
        moved: dict[str, Any] = {}
        if not outermost:
            free = [t for t in graph.initializer if t.name not in given | fed]
            moved |= {tensor.name: _copied(tensor) for tensor in free}
            kept = [t for t in graph.initializer if t.name in given | fed]
            del graph.initializer[:]
            graph.initializer.extend(kept)
        nodes = []
        for node in graph.node:
            tensor = _weight(node)
            if tensor is None or node.output[0] in given:
                nodes.append(node)
            else:
                moved[node.output[0]] = _copied(tensor)
        if len(nodes) < len(graph.node):
            del graph.node[:]
            graph.node.extend(nodes)
        renamed = {}
        for name, tensor in moved.items():
            tensor.name = name if outermost else _free(name, taken)
            taken.add(tensor.name)
            if tensor.name != name:
                renamed[name] = tensor.name
            proto.graph.initializer.append(tensor)
        _rename(graph, renamed)
    return proto


def _copied(tensor: Any) -> Any:
    copy = type(tensor)()
    copy.CopyFrom(tensor)
    return copy


def _free(name: str, taken: Collection[str]) -> str:
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Within ``graph``, read other names; graphs in it that make the name themselves keep it."""
    if not names:
        return
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
        for inner in inner_graphs(node):
            made = names_made(inner)
            around = {old: new for old, new in names.items() if old not in made}
            for value in inner.output:
                value.name = around.get(value.name, value.name)
            _rename(inner, around)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
