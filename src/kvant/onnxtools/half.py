"""float16 by onnxruntime's converter, with what would overflow kept in float32.

Where the converter fails, or what it made ends ONNX Runtime, weights alone are in float16: they
become float32 when the model is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvant.errors import UnsupportedError
from kvant.files.source import printable
from kvant.onnxtools.inner import all_nodes, sort_nodes
from kvant.onnxtools.model import OnnxModel, initializers
from kvant.onnxtools.packages import need, onnx, onnxruntime
from kvant.onnxtools.ranges import Range, infer_types
from kvant.onnxtools.session import stored

__all__ = ["ends_the_process", "half_nodes", "make_half", "make_half_weights", "overflowing"]

_LARGEST = 65504.0
_FLOAT = 1  # TensorProto.FLOAT
_LEAST = 256


def half_nodes(model: OnnxModel) -> list[str]:
    """Nodes that may stay in float32: all that take or give floats."""
    return [node.name for node in model.proto.graph.node if node.op_type != "Constant"]


def overflowing(model: OnnxModel, ranges: Mapping[str, Range]) -> list[str]:
    """Nodes with weights, or values in ``ranges``, that float16 cannot hold."""
    too_large = {name for name, r in ranges.items() if max(-r.least, r.largest) > _LARGEST}
    package = onnx()
    for name, tensor in initializers(model.proto).items():
        if tensor.data_type == package.TensorProto.FLOAT:
            values = model.values(name)
            if values.size and float(np.abs(values).max()) > _LARGEST:
                too_large.add(name)
    return [
        node.name
        for node in model.proto.graph.node
        if too_large.intersection(node.input) or too_large.intersection(node.output)
    ]


def make_half(model: OnnxModel, keep: Collection[str] = ()) -> Any:
    """A model in float16 whose inputs and outputs keep their types.

    Args:
        model: prepared.
        keep: nodes that stay in float32.

    Raises:
        UnsupportedError: onnxruntime's converter gives up.
    """
    onnxruntime()
    module = need("onnxruntime.transformers.float16")
    proto = model.whole()
    infer_types(proto)
    try:
        # Without its own inference of shapes: that serialises the model, which ends at 2 GB.
        result = module.convert_float_to_float16(
            proto, keep_io_types=True, disable_shape_infer=True, node_block_list=list(keep)
        )
        _without_detours(result)
        sort_nodes(result.graph)  # it appends casts to the end of the list of nodes
        return result
    except Exception as error:
        text = printable(" ".join(str(error).split()), 240)
        raise UnsupportedError(
            f"{model.name}: onnxruntime's float16 converter gave up: "
            f"{type(error).__name__}: {text}."
        ) from None


def make_half_weights(model: OnnxModel, keep: Collection[str] = ()) -> Any:
    """A model whose large weights are in float16 and become float32 when it is loaded.

    Args:
        model: prepared.
        keep: nodes whose weights stay in float32.
    """
    proto = model.whole()
    graph, package = proto.graph, onnx()
    kept = {name for node in all_nodes(graph) if node.name in keep for name in node.input}
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != _FLOAT or np.prod(tensor.dims) < _LEAST or tensor.name in kept:
            continue
        values = package.numpy_helper.to_array(tensor)
        if not np.isfinite(values).all() or np.abs(values).max() > _LARGEST:
            continue
        name = tensor.name
        half = package.numpy_helper.from_array(values.astype(np.float16), name + "_half")
        tensor.CopyFrom(half)
        casts.append(package.helper.make_node("Cast", [half.name], [name], half.name, to=_FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def ends_the_process(proto: Any) -> bool:
    """Whether ONNX Runtime dies of loading the float16 model ``proto``; tried in a process apart.

    onnxruntime 1.32 does so for some models with convolutions and products of what was transposed.
    Without these nothing is tried.
    """
    if not {"Conv", "Transpose", "MatMul"} <= {node.op_type for node in all_nodes(proto.graph)}:
        return False
    with stored(proto) as model, tempfile.TemporaryDirectory(prefix="kvant-onnx-") as folder:
        path = Path(folder) / "half.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        command = [sys.executable, "-c", _LOAD, str(path) if isinstance(model, bytes) else model]
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode < 0  # a signal; what it refuses is said when it is loaded here


_LOAD = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def _without_detours(proto: Any) -> None:
    """Between two nodes in float32 the converter rounds to float16 and back; go straight instead.

    Otherwise just those values overflow for which the nodes were kept in float32.
    """
    graph = proto.graph
    down = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.name.endswith("_cast_to_fp16_node")
    }
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in down and _to(node) == _FLOAT:
            node.input[0] = down[node.input[0]]
    used = {name for node in graph.node for name in node.input}
    used |= {output.name for output in graph.output}
    kept = [node for node in graph.node if node.output[0] not in down or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(kept)


def _to(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "to"), 0)
