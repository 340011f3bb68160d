"""Is a model's graph sound? What onnx's own checker leaves to whoever runs the model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.source import quote
from kvant.onnxtools.external import bits_of, stored_bytes, tensors
from kvant.onnxtools.packages import onnx

__all__ = ["check_order", "check_structure", "check_tensors"]

_MAX_DEPTH = 40  # graphs within graphs; the deepest of real models is four
_MAX_RANK = 32  # NumPy's is 64, or 32 before its second version; models have eight at most
_MAX_OPSET = 10_000  # 30 or so exist
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def check_structure(proto: Any, where: str) -> None:
    """Refuse a model that is not one, or whose graph cannot be evaluated in its order.

    Raises:
        FileFormatError: it is not a model, or damaged; the message begins with ``where``.
        UnsupportedError: an operator that ONNX does not have at the model's opset.
    """
    if not proto.ir_version or not proto.graph.node or not proto.graph.output:
        raise FileFormatError(
            f"{where}: not an ONNX model: expected a version, nodes and outputs, found "
            f"version {proto.ir_version}, {len(proto.graph.node)} nodes and "
            f"{len(proto.graph.output)} outputs. Name a file that onnx saved."
        )
    _check_names(proto, where)
    if not proto.opset_import:
        raise FileFormatError(f"{where}: names no opset, so its operators have no meaning.")
    _check_functions(proto, where)
    check_order(proto.graph, set(), where)
    _check_operators(proto, where)


def _check_names(proto: Any, where: str) -> None:
    """Names are text; protobuf's fast reader hands out bytes where they are not UTF-8."""
    names = [entry.domain for entry in proto.opset_import]
    names += [text for function in proto.functions for text in (function.name, function.domain)]
    names += [tensor.name for tensor in tensors(proto)]
    graphs = [proto.graph, *_inner_graphs(_nodes_of(proto))]
    for graph in graphs:
        names += [value.name for value in (*graph.input, *graph.output, *graph.value_info)]
    for node in _nodes_of(proto):
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
    for name in names:
        if not isinstance(name, str):
            raise FileFormatError(
                f"{where}: a name is not text: {name[:40]!r}. The file is damaged; get it again."
            )


def _nodes_of(proto: Any) -> Iterable[Any]:
    yield from _all_nodes(proto.graph.node)
    for function in proto.functions:
        yield from _all_nodes(function.node)


def _inner_graphs(nodes: Iterable[Any]) -> Iterable[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def check_order(graph: Any, outer: set[str], where: str, depth: int = 0) -> None:
    """Every value is made once, and before it is used.

    Args:
        graph: a GraphProto.
        outer: names of the graphs around it that are visible at its node.
        where: the beginning of messages.
        depth: graphs around it.
    """
    if depth > _MAX_DEPTH:
        raise FileFormatError(f"{where}: graphs are nested over {_MAX_DEPTH} deep; refused.")
    known = {value.name for value in graph.input} | {value.name for value in graph.initializer}
    known |= {sparse.values.name for sparse in graph.sparse_initializer} | outer
    made = {name for node in graph.node for name in node.output if name}
    seen: set[str] = set()
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise FileFormatError(_unmade(node, name, name in made, where))
        for attribute in node.attribute:
            graphs = ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)
            for inner in graphs:
                check_order(inner, known, where, depth + 1)
        for name in node.output:
            if name and (name in seen or name in known - outer):
                raise FileFormatError(
                    f"{where}: value {quote(name)} is made twice, the second time by "
                    f"{_called(node)}. The file is damaged; export it again."
                )
            seen.add(name)
            known.add(name)
    for output in graph.output:
        if output.name not in known:
            raise FileFormatError(f"{where}: no node makes the output {quote(output.name)}.")


def _unmade(node: Any, name: str, later: bool, where: str) -> str:
    if later:
        return (
            f"{where}: {_called(node)} needs {quote(name)}, which is made from it or after it: the "
            "graph is cyclic or out of order. Export the model again."
        )
    return (
        f"{where}: {_called(node)} needs {quote(name)}, which nothing makes. The file is damaged; "
        "export it again."
    )


def _called(node: Any) -> str:
    return f"node {quote(node.name or '(no name)')} ({printable_type(node)})"


def printable_type(node: Any) -> str:
    """The operator of a node, with its domain where it is not ONNX's own."""
    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    return quote(kind).strip("'")


def _check_functions(proto: Any, where: str) -> None:
    """No function of the model calls itself, directly or through others."""
    bodies = {(f.domain, f.name): f for f in proto.functions}
    state: dict[tuple[str, str], int] = {}  # 1: being visited, 2: done

    def visit(key: tuple[str, str], depth: int) -> None:
        if state.get(key) == 2:
            return
        if state.get(key) == 1 or depth > _MAX_DEPTH:
            raise FileFormatError(f"{where}: function {quote(key[1])} calls itself; refused.")
        state[key] = 1
        for node in _all_nodes(bodies[key].node):
            if (node.domain, node.op_type) in bodies:
                visit((node.domain, node.op_type), depth + 1)
        state[key] = 2

    for key in bodies:
        visit(key, 0)


def _all_nodes(nodes: Iterable[Any]) -> Iterable[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from _all_nodes(graph.node)


def _check_operators(proto: Any, where: str) -> None:
    """Standard operators must exist at the opset; other domains are the runtime's to know."""
    versions = {o.domain: o.version for o in proto.opset_import}
    versions.setdefault("", versions.get("ai.onnx", 0))
    versions.setdefault("ai.onnx", versions[""])
    functions = {(f.domain, f.name) for f in proto.functions}
    odd = [o for o in proto.opset_import if not 0 <= o.version <= _MAX_OPSET]
    if odd:
        raise FileFormatError(
            f"{where}: imports opset {odd[0].version} of domain {quote(odd[0].domain)}, expected 1 "
            f"to {_MAX_OPSET}. The file is damaged; export it again."
        )
    schemas = onnx().defs
    for node in _all_nodes(proto.graph.node):
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in versions or versions[node.domain] < 1:
            raise FileFormatError(
                f"{where}: {_called(node)} is of domain {quote(node.domain)}, of which the model "
                "imports no opset."
            )
        domain = "" if node.domain == "ai.onnx" else node.domain
        known = node.domain not in _STANDARD or schemas.has(
            node.op_type, versions[node.domain], domain
        )
        if not known:
            raise UnsupportedError(
                f"{where}: {_called(node)} is no operator of ONNX at opset "
                f"{versions[node.domain]}. Export the model with standard operators."
            )


def check_tensors(proto: Any, where: str) -> None:
    """The values of every tensor are as many as its shape says. External data are left out.

    Raises:
        FileFormatError: they are not, or a type or shape is nonsense.
    """
    package = onnx()
    for tensor in tensors(proto):
        name = f"{where}: tensor {quote(tensor.name or '(no name)')}"
        if any(d < 0 for d in tensor.dims):
            raise FileFormatError(f"{name} has a negative dimension: {list(tensor.dims)[:8]}.")
        if len(tensor.dims) > _MAX_RANK or tensor.HasField("segment"):
            raise FileFormatError(
                f"{name} has {len(tensor.dims)} dimensions, or is a part of a tensor; expected a "
                f"whole one of at most {_MAX_RANK}. The file is damaged; export it again."
            )
        if tensor.data_type == 0 and not tensor.ByteSize():
            continue  # the empty half of a sparse attribute that is not there
        count = math.prod(tensor.dims)
        if tensor.data_type == package.TensorProto.STRING:
            expected, got, what = count, len(tensor.string_data), "strings"
        else:
            expected = stored_bytes(tensor, name)
            if tensor.data_location == 1:
                continue  # `check_external` holds their lengths against their files, too
            if tensor.HasField("raw_data"):
                got, what = len(tensor.raw_data), "bytes"
            else:
                expected, got, what = *_typed(tensor, count), "values"
        if expected != got:
            raise FileFormatError(
                f"{name} of shape {list(tensor.dims)[:8]} needs {expected:,} {what}, has {got:,}. "
                "The file is damaged; get it again."
            )


def _typed(tensor: Any, count: int) -> tuple[int, int]:
    """Values expected and found in the typed fields, where raw bytes are not used."""
    package = onnx()
    kinds = package.TensorProto
    field = package.helper.tensor_dtype_to_field(tensor.data_type)
    got = len(getattr(tensor, field))
    if tensor.data_type in (kinds.COMPLEX64, kinds.COMPLEX128):
        return 2 * count, got
    bits = bits_of(tensor.data_type, "")
    if bits < 8:  # packed, two or four in one value
        per = 8 // bits
        return -(-count // per), got
    return count, got
