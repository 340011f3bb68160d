"""An ONNX model in memory: opened with care, weights apart from inputs, every node with a name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import FileFormatError, NotEnoughMemoryError
from kvant.files.source import open_source, printable, quote, read_exactly
from kvant.onnxtools.apart import APART_FROM, Apart, filled, map_external, set_apart
from kvant.onnxtools.checks import check_structure, check_tensors
from kvant.onnxtools.external import check_external, load_external, tensors
from kvant.onnxtools.inner import all_nodes, check_functions, graphs_of
from kvant.onnxtools.packages import onnx

__all__ = [
    "OnnxModel",
    "Port",
    "copy_of",
    "initializers",
    "name_nodes",
    "open_model",
    "opset",
    "weight_bytes",
]

_PROTOBUF_LIMIT = 2**31 - 1
_LEAST_IR = 7
_LARGE = 1 << 16  # values stored one by one from here on become raw bytes


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: name, NumPy type, and shape with names (or None) where it is free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None
    """None: the model does not say the rank."""

    def told(self) -> str:
        """As a message shows it: ``float32 [batch, 3, 224, 224]``."""
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclass(slots=True)
class OnnxModel:
    """A model that was read, or is being made from one."""

    proto: Any
    name: str
    path: Path | None = None
    files: tuple[Path, ...] = ()
    """What it was read from: the model and its external data."""
    nbytes: int = 0
    """Bytes of those files."""
    notes: list[str] = field(default_factory=list)
    apart: Apart = field(default_factory=dict)
    """Weights that are not in ``proto``, where it is large."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What must be fed: inputs that are no weights."""
        weights = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(_port(v, self.name) for v in self.proto.graph.input if v.name not in weights)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What it gives."""
        return tuple(_port(value, self.name) for value in self.proto.graph.output)

    def replaced(self, proto: Any) -> OnnxModel:
        """The same, with another graph; its weights stand apart if this one's do, or many."""
        apart = dict(self.apart)
        if apart or weight_bytes(proto) >= APART_FROM:
            apart |= set_apart(proto)
        apart = {t.name: apart[t.name] for t in proto.graph.initializer if t.name in apart}
        return OnnxModel(proto, self.name, self.path, self.files, self.nbytes, self.notes, apart)

    def whole(self) -> Any:
        """A copy of the graph with all its weights, to be changed."""
        return filled(copy_of(self.proto), self.apart)

    def values(self, name: str) -> npt.NDArray[Any]:
        """A weight of the outermost graph."""
        if name in self.apart:
            return self.apart[name]
        tensor = initializers(self.proto)[name]
        return np.asarray(onnx().numpy_helper.to_array(tensor))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return weight_bytes(self.proto) + sum(values.nbytes for values in self.apart.values())


def open_model(path: str | Path) -> OnnxModel:
    """Read the model at ``path`` with its external data, and check it.

    Weights that are listed as inputs (as ONNX before IR version 4 demanded) are taken from the
    inputs, so that they are constants to every tool; every node has a name of its own after it.

    Raises:
        InputError: the file cannot be read, is not a sound model, or refers to data outside its
            folder (FileFormatError); needs an operator that ONNX lacks (UnsupportedError).
        NotEnoughMemoryError: its weights do not fit.
        MissingExtraError: onnx is not installed.
    """
    path = Path(path)
    package = onnx()
    with open_source(path) as (fd, size):
        if size > _PROTOBUF_LIMIT:
            raise FileFormatError(
                f"{path}: {size:,} bytes in one file; protobuf ends at 2 GB. Save the model with "
                "external data: onnx.save(model, path, save_as_external_data=True)."
            )
        _check_memory(path, size)
        content = read_exactly(fd, path, 0, size)
    proto = package.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's own kinds differ between its implementations
        raise FileFormatError(
            f"{path}: not an ONNX model, or a truncated one: {printable(_first_line(error), 120)}. "
            "Get or export it again."
        ) from None
    del content
    check_structure(proto, str(path))
    check_functions(proto, str(path))
    check_tensors(proto, str(path))
    external = check_external(proto, path)
    _check_memory(path, size + sum(external.values()))
    _check_by_onnx(path)
    apart = map_external(proto, path) if sum(external.values()) >= APART_FROM else {}
    load_external(proto, path, but=apart)
    check_tensors(proto, str(path))
    files = (path, *external)
    nbytes = size + sum(file.stat().st_size for file in external)
    model = OnnxModel(proto, path.name, path, files, nbytes, apart=apart)
    if not apart and weight_bytes(proto) >= APART_FROM:
        model.apart = set_apart(proto)
    _weights_out_of_inputs(model)
    _free_dimensions(proto)
    name_nodes(proto.graph)
    _raw_values(proto)
    _check_ports(model)
    return model


def _check_memory(path: Path, needed: int) -> None:
    from kvant.engine.load import available_memory

    free = available_memory()
    if needed > free:
        raise NotEnoughMemoryError(
            f"{path}: its weights take {needed / 1e6:,.0f} MB; {free / 1e6:,.0f} MB are free. "
            "Close other programs or use a machine with more memory."
        )


def _check_by_onnx(path: Path) -> None:
    """onnx's checker: attributes, types of fields, names. Reads the files by itself."""
    checker = onnx().checker
    try:
        checker.check_model(str(path))
    except checker.ValidationError as error:
        raise FileFormatError(
            f"{path}: not a valid ONNX model: {printable(_first_line(error), 200)}"
        ) from None
    except Exception as error:
        raise FileFormatError(
            f"{path}: onnx cannot check it: {printable(_first_line(error), 200)}"
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _weights_out_of_inputs(model: OnnxModel) -> None:
    graph = model.proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    listed = len(graph.input) - len(kept)
    if listed:
        del graph.input[:]
        graph.input.extend(kept)
        model.notes.append(f"{listed} weights were listed as inputs; they are constants now")
    model.proto.ir_version = max(model.proto.ir_version, _LEAST_IR)


def name_nodes(graph: Any) -> None:
    """Give every node without a name of its own one, in inner graphs, too."""
    nodes = list(all_nodes(graph))
    taken = Counter(node.name for node in nodes if node.name)
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        name = f"{node.op_type}_{index}"
        while name in taken or name in seen:
            name += "_"
        node.name = name
        seen.add(name)


def _free_dimensions(proto: Any) -> None:
    """A dimension of -1 is a free one: so Paddle writes them, and ONNX Runtime reads them."""
    for graph in graphs_of(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim if _has_shape(value) else ():
                if dim.dim_value < 0:
                    dim.Clear()


def _has_shape(value: Any) -> bool:
    return bool(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"))


def _raw_values(proto: Any) -> None:
    """Large weights that are stored value by value become raw bytes, which can lie in a file."""
    package = onnx()
    for tensor in tensors(proto):
        count = len(tensor.float_data) + len(tensor.int64_data) + len(tensor.int32_data)
        if count >= _LARGE:
            values = package.numpy_helper.to_array(tensor)
            tensor.CopyFrom(package.numpy_helper.from_array(values, tensor.name))


def _check_ports(model: OnnxModel) -> None:
    if not model.inputs:
        raise FileFormatError(f"{model.path}: has no inputs; there is nothing to run it on.")
    _ = model.outputs


def _port(value: Any, where: str) -> Port:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        # Sequences and maps (scikit-learn's probabilities) are compared by no figure of ours.
        return Port(value.name, np.dtype(object), None)
    tensor = value.type.tensor_type
    try:
        dtype = np.dtype(onnx().helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, ValueError, TypeError):
        raise FileFormatError(
            f"{where}: {quote(value.name)} has type {tensor.elem_type}, which ONNX does not have."
        ) from None
    if not tensor.HasField("shape"):
        return Port(value.name, dtype, None)
    shape: list[int | str | None] = []
    for dim in tensor.shape.dim:
        shape.append(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None))
    return Port(value.name, dtype, tuple(shape))


def initializers(proto: Any) -> dict[str, Any]:
    """The weights of the outermost graph, by name."""
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def copy_of(proto: Any) -> Any:
    """A model of the same content, to be changed."""
    copy = onnx().ModelProto()
    copy.CopyFrom(proto)
    return copy


def opset(proto: Any) -> int:
    """Version of the standard operators."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)


def weight_bytes(proto: Any) -> int:
    """Bytes of all stored tensors, without asking protobuf (which counts to 2 GB only)."""
    return sum(
        len(t.raw_data) + 4 * (len(t.float_data) + len(t.int32_data)) + 8 * len(t.int64_data)
        for t in tensors(proto)
    )
