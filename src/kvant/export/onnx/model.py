"""A graph while it grows: nodes, initializers, and where each initializer lies in the data file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.open_onnx import DATA_FILE, MODEL_FILE
from kvant.export.onnx.package import onnx_package
from kvant.version import __version__

__all__ = ["DATA_FILE", "MODEL_FILE", "Blob", "Dim", "ModelBuilder"]

_OPSET = 23
_OPSET_INT2 = 25
_IR = 11
_IR_INT2 = 13
_ALIGN_SMALL, _ALIGN_LARGE, _LARGE = 64, 4096, 1 << 16
"""Large tensors begin at a page, so that they can be mapped one by one."""

Dim = int | str


@dataclass(frozen=True, slots=True)
class Blob:
    """A stretch of the data file: an initializer of ``shape``, ``nbytes`` from ``offset`` on."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class ModelBuilder:
    """Collects a model. Types are names of ``onnx.TensorProto``: ``FLOAT``, ``FLOAT16``, ..."""

    def __init__(self, *, standard: bool) -> None:
        self._onnx = onnx_package()
        self.standard = standard
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._values: list[Any] = []
        self._names: dict[str, int] = {}
        self._microsoft = False
        self.blobs: dict[str, Blob] = {}
        self.size = 0
        """Bytes of the data file so far."""
        self.int2 = False
        """Whether a tensor of two bits needs a newer opset."""

    # ---- nodes ------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name nothing has yet."""
        count = self._names.get(hint, 0)
        self._names[hint] = count + 1
        return f"{hint}_{count}" if count else hint

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        hint: str,
        *,
        outputs: Sequence[str] | None = None,
        microsoft: bool = False,
        **attributes: Any,
    ) -> str:
        """Add a node; returns its first output, called ``hint`` unless ``outputs`` are given."""
        names = list(outputs) if outputs is not None else [self.fresh(hint)]
        self._microsoft |= microsoft
        self._nodes.append(
            self._onnx.helper.make_node(
                op,
                list(inputs),
                names,
                name=self.fresh(f"{hint}/{op}"),
                domain="com.microsoft" if microsoft else "",
                **attributes,
            )
        )
        return names[0]

    def choose(self, condition: str, pairs: Sequence[tuple[str, str]], hint: str) -> list[str]:
        """Where ``condition`` holds the first name of each pair, otherwise the second."""
        make = self._onnx.helper

        def branch(label: str, sources: Sequence[str]) -> Any:
            names = [f"{hint}.{label}.{i}" for i in range(len(sources))]
            nodes = [
                make.make_node("Identity", [s], [n]) for s, n in zip(sources, names, strict=True)
            ]
            outs = [make.make_tensor_value_info(n, self.type_of("FLOAT"), None) for n in names]
            if self._initializers[sources[0]].data_type != self.type_of("FLOAT"):
                kind = self._initializers[sources[0]].data_type
                outs = [make.make_tensor_value_info(n, kind, None) for n in names]
            return make.make_graph(nodes, f"{hint}.{label}", [], outs)

        outputs = [self.fresh(f"{hint}.{i}") for i in range(len(pairs))]
        self._nodes.append(
            make.make_node(
                "If",
                [condition],
                outputs,
                name=self.fresh(f"{hint}/If"),
                then_branch=branch("then", [a for a, _ in pairs]),
                else_branch=branch("else", [b for _, b in pairs]),
            )
        )
        return outputs

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """A small constant inside the graph; equal ones are one."""
        array = np.asarray(values, dtype)
        text = "_".join(str(v) for v in array.reshape(-1).tolist()) or "empty"
        name = f"const_{array.dtype}_{array.ndim}d_{text}"
        if name not in self._initializers:
            self._initializers[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def input(self, name: str, kind: str, shape: Sequence[Dim]) -> str:
        """Declare an input."""
        make = self._onnx.helper.make_tensor_value_info
        self._inputs.append(make(name, self.type_of(kind), list(shape)))
        return name

    def output(self, name: str, kind: str, shape: Sequence[Dim]) -> None:
        """Declare an output, which some node gives."""
        make = self._onnx.helper.make_tensor_value_info
        self._outputs.append(make(name, self.type_of(kind), list(shape)))

    def type_of(self, kind: str) -> int:
        """The number of a type's name."""
        return int(getattr(self._onnx.TensorProto, kind))

    # ---- weights ----------------------------------------------------------------------------

    def blob(self, name: str, kind: str, shape: Sequence[int], nbytes: int) -> Blob:
        """An initializer in the data file; asked for again, the one there is."""
        if name in self.blobs:
            return self.blobs[name]
        align = _ALIGN_LARGE if nbytes >= _LARGE else _ALIGN_SMALL
        offset = -(-self.size // align) * align
        self.size = offset + nbytes
        return self._place(Blob(name, kind, tuple(shape), offset, nbytes))

    def view(self, name: str, of: Blob, shape: Sequence[int], kind: str | None = None) -> Blob:
        """A second initializer that lies where another does, in another shape."""
        if name in self.blobs:
            return self.blobs[name]
        return self._place(Blob(name, kind or of.type, tuple(shape), of.offset, of.nbytes))

    def _place(self, blob: Blob) -> Blob:
        tensor = self._onnx.TensorProto(
            name=blob.name,
            dims=blob.shape,
            data_type=self.type_of(blob.type),
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        where = {"location": DATA_FILE, "offset": blob.offset, "length": blob.nbytes}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        self.blobs[blob.name] = blob
        self._initializers[blob.name] = tensor
        return blob

    # ---- all of it --------------------------------------------------------------------------

    def finished(self, name: str, metadata: Mapping[str, object]) -> bytes:
        """The model file's bytes."""
        helper = self._onnx.helper
        # What the model is for comes before the cache.
        outputs = sorted(self._outputs, key=lambda o: o.name.startswith("present."))
        graph = helper.make_graph(
            self._nodes, name, self._inputs, outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", _OPSET_INT2 if self.int2 else _OPSET)]
        if self._microsoft:
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=_IR_INT2 if self.int2 else _IR,
            producer_name="kvant",
            producer_version=__version__,
        )
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
        helper.set_model_props(model, texts)
        data: bytes = model.SerializeToString(deterministic=True)
        return data


def nbytes_of(shape: Sequence[int], bits: int) -> int:
    """Bytes of a packed tensor."""
    return -(-math.prod(shape) * bits // 8)
