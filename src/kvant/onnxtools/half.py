"""float16 by onnxruntime's converter, with what would overflow kept in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from kvant.errors import UnsupportedError
from kvant.files.source import printable
from kvant.onnxtools.inner import sort_nodes
from kvant.onnxtools.model import OnnxModel, initializers
from kvant.onnxtools.packages import need, onnx, onnxruntime
from kvant.onnxtools.ranges import Range, infer_types

__all__ = ["half_nodes", "make_half", "overflowing"]

_LARGEST = 65504.0
_FLOAT = 1  # TensorProto.FLOAT


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
