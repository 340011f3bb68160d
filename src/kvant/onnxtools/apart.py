"""Weights of large models kept apart from the graph, so that a copy of the graph is small.

Every tool copies the model it is given, some several times; ten times 2 GB is more than most
machines have. So the graph of a large model holds references only, its weights are arrays (mapped
from files where they lie in some), and a tool that needs values is given a copy with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.onnxtools.external import reference
from kvant.onnxtools.packages import onnx

__all__ = ["APART_FROM", "Apart", "filled", "is_apart", "map_external", "set_apart"]

Array = npt.NDArray[Any]
Apart = Mapping[str, Array]
APART_FROM = 256_000_000
"""Bytes of weights from which they are kept apart."""
_SMALL = 1 << 16
_EXTERNAL = 1


def is_apart(tensor: Any) -> bool:
    """Whether the values of ``tensor`` are elsewhere."""
    return bool(tensor.data_location == _EXTERNAL)


def _dtype(tensor: Any) -> np.dtype[Any] | None:
    """NumPy's type of a weight that may stand apart: one that NumPy and ONNX Runtime both have."""
    kinds = onnx().TensorProto
    plain = {kinds.FLOAT, kinds.FLOAT16, kinds.INT8, kinds.UINT8, kinds.INT64, kinds.INT32}
    if tensor.data_type not in plain:
        return None
    found: np.dtype[Any] = np.dtype(onnx().helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return found


def set_apart(proto: Any) -> dict[str, Array]:
    """Take the large weights of the outermost graph out of ``proto``; returns them by name."""
    found: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        dtype = _dtype(tensor)
        values = tensor.raw_data
        if dtype is None or len(values) < _SMALL:
            continue
        found[tensor.name] = np.frombuffer(values, dtype).reshape(tuple(tensor.dims))
        tensor.ClearField("raw_data")
        _refer(tensor)
    return found


def map_external(proto: Any, path: Path) -> dict[str, Array]:
    """Map the external weights of the model at ``path``; references were checked before."""
    found: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        dtype = _dtype(tensor)
        if not is_apart(tensor) or dtype is None:
            continue
        file, offset, _ = reference(tensor, path)
        shape = tuple(tensor.dims)
        if math.prod(shape) * dtype.itemsize < _SMALL:
            continue
        found[tensor.name] = np.memmap(file, dtype, "r", offset, shape)
        _refer(tensor)
    return found


def _refer(tensor: Any) -> None:
    """Mark the tensor as external; ONNX Runtime wants a place, and is given the values instead."""
    tensor.data_location = _EXTERNAL
    del tensor.external_data[:]
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "apart"


def filled(proto: Any, apart: Apart) -> Any:
    """Put the values of weights that stand apart back into ``proto``, which is returned."""
    for tensor in proto.graph.initializer:
        if is_apart(tensor) and tensor.name in apart:
            tensor.raw_data = np.ascontiguousarray(apart[tensor.name]).tobytes()
            tensor.data_location = 0
            del tensor.external_data[:]
    return proto
