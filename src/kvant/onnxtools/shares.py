"""What a model's numbers are stored as."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from kvant.onnxtools.external import tensors
from kvant.onnxtools.packages import onnx

__all__ = ["element_shares", "stored_bytes"]


def element_shares(proto: Any) -> dict[str, float]:
    """Share of stored bytes by type, largest first: ``{"int8": 0.96, "float32": 0.04}``.

    Codes that a fused operator packs into bytes count as ``uint8``.
    """
    names = onnx().TensorProto.DataType
    counts: Counter[str] = Counter()
    for tensor in tensors(proto):
        if tensor.data_type:
            label = names.Name(tensor.data_type).lower()
            counts["float32" if label == "float" else label] += _bytes_of(tensor)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common() if count}


def _bytes_of(tensor: Any) -> int:
    if tensor.raw_data:
        return len(tensor.raw_data)
    kinds = onnx().TensorProto
    if tensor.data_type == kinds.STRING:
        return sum(map(len, tensor.string_data))
    size = int(onnx().helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return int(math.prod(tensor.dims)) * size


def stored_bytes(proto: Any) -> int:
    """Bytes the model takes on disk, without asking protobuf beyond its 2 GB."""
    from kvant.onnxtools.model import weight_bytes
    from kvant.onnxtools.save import EXTERNAL_FROM, externalised

    if weight_bytes(proto) < EXTERNAL_FROM:
        return int(proto.ByteSize())
    with externalised(proto, "weights", lambda data, offset: None):
        structure = int(proto.ByteSize())
    return structure + weight_bytes(proto)
