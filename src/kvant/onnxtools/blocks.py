"""Weights in 8, 4 or 2 bits while activations stay in float.

A weight of a MatMul or Gemm becomes a MatMulNBits, of a Gather a GatherBlockQuantized: ONNX
Runtime's fused operators. Other weights (convolutions, LSTM, GRU) are decoded when the model is
loaded (see `folded`). With ``--format qdq`` all of them go through a standard DequantizeLinear in
blocks along each output's weights (opset 21), or with one scale an output for 8 bits (opset 13).
onnxruntime's own weight-only quantiser leaves convolutions alone, and 8-bit weights in standard
operators unquantised without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import DataError
from kvant.files.source import quote
from kvant.onnxtools.apart import filled
from kvant.onnxtools.folded import Decoder
from kvant.onnxtools.inner import all_nodes, graphs_of, inner_graphs, names_made
from kvant.onnxtools.levels import OnnxOptions
from kvant.onnxtools.model import OnnxModel, copy_of, initializers
from kvant.onnxtools.packages import onnx
from kvant.onnxtools.rows import Floats, quantise_rows
from kvant.packing.bits import packed_bits

__all__ = [
    "FOLDABLE",
    "block_nodes",
    "import_domain",
    "make_blocks",
    "opset_needed",
]

_MICROSOFT = "com.microsoft"
_LEAST = 256
"""Weights of fewer elements stay: scales and operators would take what is saved."""
_DECODING = 1000
"""Bytes that the operators take which decode a weight in blocks, more than for one in 8 bits."""
_PLACES: Mapping[str, Sequence[int]] = {
    **dict.fromkeys(("MatMul", "Gemm", "Conv", "ConvTranspose"), (1,)),
    "Gather": (0,),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
}
"""Which inputs of an operator are weights."""
FOLDABLE = ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN")
"""Operators that onnxruntime's quantisers leave in float, or make slower than that."""


def block_nodes(model: OnnxModel, kinds: Collection[str] = tuple(_PLACES)) -> list[str]:
    """Nodes of ``kinds`` with a weight that would be quantised, in the graphs' order."""
    weights = initializers(model.proto)
    nodes = all_nodes(model.proto.graph)
    return [n.name for n in nodes if n.op_type in kinds and _weights_of(n, weights)]


def _weights_of(node: Any, weights: Mapping[str, Any]) -> list[int]:
    """Which inputs of ``node`` are weights to quantise."""
    if node.op_type not in _PLACES or node.domain not in ("", "ai.onnx"):
        return []
    kinds = onnx().TensorProto
    found = []
    for place in _PLACES[node.op_type]:
        tensor = weights.get(node.input[place]) if place < len(node.input) else None
        if tensor is None or tensor.data_type != kinds.FLOAT or len(tensor.dims) < 2:
            continue
        if int(np.prod(tensor.dims)) >= _LEAST:
            found.append(place)
    return found


def make_blocks(
    model: OnnxModel,
    bits: int,
    options: OnnxOptions,
    keep: Collection[str] = (),
    kinds: Collection[str] = tuple(_PLACES),
) -> Any:
    """A model with weights in ``bits``.

    Args:
        model: prepared.
        bits: 8, 4 or 2.
        options: format, block, symmetric.
        keep: nodes whose weights stay in float.
        kinds: types of nodes whose weights are quantised.

    Raises:
        DataError: a weight holds NaN or infinity.
    """
    proto = copy_of(model.proto)
    standard = options.format == "qdq"
    maker = _Maker(model, proto, bits, options, standard)
    maker.change(proto.graph, maker.weights, lambda n: n.op_type in kinds and n.name not in keep)
    return maker.finished()


class _Maker:
    """Collects the nodes and weights of the new graph."""

    def __init__(
        self, model: OnnxModel, proto: Any, bits: int, options: OnnxOptions, standard: bool
    ) -> None:
        self.model = model
        self.proto, self.bits, self.options, self.standard = proto, bits, options, standard
        self.weights = initializers(proto)
        self.nodes: list[Any] = []
        self._made: dict[tuple[str, str], str] = {}
        self._decoders: list[Any] = []
        self._scope = self._scopes = 0  # of graphs in the outermost, which is 0
        self._fused = False

    def change(self, graph: Any, weights: Mapping[str, Any], wanted: Callable[[Any], bool]) -> None:
        """Quantise the weights of ``graph`` and of the graphs in it, where ``wanted``."""
        around, self.nodes = (self.nodes, self._scope), []
        for node in list(graph.node):
            for inner in inner_graphs(node):
                self._scopes += 1
                self._scope = self._scopes
                hidden = names_made(inner)
                self.change(inner, {k: t for k, t in weights.items() if k not in hidden}, wanted)
                self._scope = around[1]
            places = _weights_of(node, weights) if wanted(node) else []
            if not places:
                self.nodes.append(node)
            elif len(places) == 1:
                self.quantise(node, places[0])
            else:
                for place in places:
                    node.input[place] = self._decoded(node, place)
                self.nodes.append(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        self.nodes = around[0]

    def quantise(self, node: Any, place: int) -> None:
        name = node.input[place]
        values = self._finite(node, name)
        if not self.standard and values.ndim == 2:
            if node.op_type == "MatMul":
                self._matmul(node, name, values, node.output[0])
                return
            if node.op_type == "Gemm" and self._plain_gemm(node, name, values):
                return
            axis = _attribute(node, "axis", 0)
            wide = values.shape[1] % self.options.block == 0
            if node.op_type == "Gather" and axis == 0 and wide and self.bits in (4, 8):
                self._gather(node, name, values)
                return
        node.input[place] = self._decoded(node, place)
        self.nodes.append(node)

    def _plain_gemm(self, node: Any, name: str, values: Floats) -> bool:
        scaled = _attribute(node, "alpha", 1.0) != 1.0 or _attribute(node, "beta", 1.0) != 1.0
        if scaled or _attribute(node, "transA", 0):
            return False
        matrix = values.T if _attribute(node, "transB", 0) else values
        bias = len(node.input) > 2 and node.input[2]
        product = node.output[0] + "_product" if bias else node.output[0]
        self._matmul(node, name, matrix, product)
        if bias:
            make = onnx().helper.make_node
            self.nodes.append(
                make("Add", [product, node.input[2]], list(node.output), node.name + "_bias")
            )
        return True

    def _matmul(self, node: Any, name: str, matrix: Floats, output: str) -> None:
        """MatMulNBits: B is [N, blocks, block * bits / 8], low bits first."""
        inner, outer = matrix.shape
        block, bits = self.options.block, self.bits
        form = "nbits" if matrix.flags.c_contiguous else "nbits_t"
        inputs = [node.input[0]]
        if (name, form) not in self._made:
            found = quantise_rows(
                np.ascontiguousarray(matrix.T), bits, block, symmetric=self.options.symmetric
            )
            self._store(f"{name}_{form}", packed_bits(found.codes, bits))
            self._store(f"{name}_{form}_scales", found.scales)
            if not self.options.symmetric:
                self._store(f"{name}_{form}_zeros", packed_bits(found.zeros, bits))
            self._made[name, form] = f"{name}_{form}"
        stem = self._made[name, form]
        inputs += [stem, stem + "_scales"]
        if not self.options.symmetric:
            inputs.append(stem + "_zeros")
        # Level 4 lets kernels round activations to int8, block by block: two to fifty times as fast
        # on a processor at 2048 x 2048, for an output error of 0.005 (4-bit weights have 0.08).
        sizes = {"K": inner, "N": outer, "bits": bits, "block_size": block, "accuracy_level": 4}
        self._add("MatMulNBits", inputs, [output], node.name, _MICROSOFT, **sizes)

    def _gather(self, node: Any, name: str, table: Floats) -> None:
        """GatherBlockQuantized: uint8 codes [rows, columns * bits / 8], scales [rows, blocks]."""
        block, bits = self.options.block, self.bits
        if (name, "gather") not in self._made:
            found = quantise_rows(table, bits, block, symmetric=self.options.symmetric)
            packed = packed_bits(found.codes, bits)
            self._store(f"{name}_gather", packed.reshape(len(table), -1))
            self._store(f"{name}_gather_scales", found.scales)
            if not self.options.symmetric:
                self._store(f"{name}_gather_zeros", packed_bits(found.zeros, bits))
            self._made[name, "gather"] = f"{name}_gather"
        stem = self._made[name, "gather"]
        inputs = [stem, node.input[1], stem + "_scales"]
        if not self.options.symmetric:
            inputs.append(stem + "_zeros")
        sizes = {"gather_axis": 0, "quantize_axis": 1, "bits": bits, "block_size": block}
        self._add("GatherBlockQuantized", inputs, list(node.output), node.name, _MICROSOFT, **sizes)

    def _decoded(self, node: Any, place: int) -> str:
        """The weight in float, made from codes of it as [outputs, the rest]."""
        name = node.input[place]
        values = self._finite(node, name)
        first = 0 if node.op_type not in ("MatMul", "Gemm") or values.ndim != 2 else 1
        if node.op_type == "Gemm" and _attribute(node, "transB", 0):
            first = 0
        if node.op_type in ("LSTM", "GRU", "RNN"):
            first = 1  # [directions, gates, inputs]
        # What is decoded at each run is decoded in the branch that runs.
        key = (name, f"dq{first}" + (f"_{self._scope}" if self.standard and self._scope else ""))
        if key not in self._made:
            moved = np.moveaxis(values, first, 0)
            rows = np.ascontiguousarray(moved.reshape(len(moved), -1))
            make = self._standard if self.standard else self._folded
            self._made[key] = make(f"{name}_{key[1]}", rows, values.shape, first)
        return self._made[key]

    def _finite(self, node: Any, name: str) -> Floats:
        values = np.asarray(self.model.values(name), np.float32)
        if not np.isfinite(values).all():
            raise DataError(
                f"weight {quote(name)} holds NaN or infinity, which no block of integers can. Keep "
                f"its node in float: --keep-float {quote(node.name)}."
            )
        return values

    def _folded(self, stem: str, rows: Floats, shape: tuple[int, ...], first: int) -> str:
        """A weight that is decoded when the model is loaded, for all graphs."""
        columns, per = rows.shape[1], 8 // self.bits
        symmetric = self.options.symmetric
        block = -(-min(self.options.block, columns) // per) * per
        bytes_of_block = block // per + 4 + (0 if symmetric else 1)
        size = len(rows) * -(-columns // block) * bytes_of_block + _DECODING
        # Small kernels take less with a byte a weight, and are better so.
        bits = self.bits if size < len(rows) * (columns + 5) else 8
        block = block if bits < 8 else min(self.options.block, columns)
        found = quantise_rows(rows, bits, block, symmetric=symmetric)
        decoder = Decoder(stem, bits, self._store, self._decoders)
        zeros = None if symmetric else found.zeros
        return decoder.blocks(packed_bits(found.codes, bits), found.scales, zeros, shape, first)

    def _standard(self, stem: str, rows: Floats, shape: tuple[int, ...], first: int) -> str:
        columns = rows.shape[1]
        block = columns if self.bits == 8 else min(self.options.block, columns)
        found = quantise_rows(rows, self.bits, block, symmetric=True)
        codes = found.codes.reshape(len(rows), -1)[:, :columns]
        signed = codes.astype(np.int16) - 2 ** (self.bits - 1)
        package = onnx()
        kind = {8: "INT8", 4: "INT4", 2: "INT2"}[self.bits]
        kind_number = getattr(package.TensorProto, kind)
        order = [1, 0] if first else [0, 1]
        value = signed.transpose(order) if len(shape) == 2 else signed
        self._store_as(stem, np.ascontiguousarray(value), kind_number)
        scales = found.scales[:, 0] if self.bits == 8 else found.scales.transpose(order)
        self._store(stem + "_scales", np.ascontiguousarray(scales))
        axis = (1 if first else 0) if self.bits == 8 else (0 if first else 1)
        more = {} if self.bits == 8 else {"block_size": block}
        flat = stem + "_value" if len(shape) == 2 else stem + "_flat"
        inputs = [stem, stem + "_scales"]
        self._add("DequantizeLinear", inputs, [flat], stem + "_dequantize", "", axis=axis, **more)
        if len(shape) == 2:
            return flat
        self._store(stem + "_shape", np.asarray(shape, np.int64))
        self._add("Reshape", [flat, stem + "_shape"], [stem + "_value"], stem + "_reshape", "")
        return stem + "_value"

    def _add(
        self, kind: str, inputs: list[str], outputs: list[str], name: str, domain: str, **more: int
    ) -> None:
        self._fused |= domain == _MICROSOFT
        self.nodes.append(
            onnx().helper.make_node(kind, inputs, outputs, name, domain=domain or None, **more)
        )

    def _store(self, name: str, values: npt.NDArray[Any]) -> None:
        tensor = onnx().numpy_helper.from_array(np.ascontiguousarray(values), name)
        self.proto.graph.initializer.append(tensor)

    def _store_as(self, name: str, values: npt.NDArray[np.int16], kind: int) -> None:
        """Signed codes, packed low bits first where under a byte (ONNX's IR, TensorProto)."""
        package = onnx()
        tensor = package.TensorProto(name=name, data_type=kind, dims=values.shape)
        flat = (values.reshape(-1) & (2**self.bits - 1)).astype(np.uint8)
        tensor.raw_data = packed_bits(flat, self.bits).tobytes()
        self.proto.graph.initializer.append(tensor)

    def finished(self) -> Any:
        """The new model, without the weights that nothing uses any more."""
        graph = self.proto.graph
        nodes = [*self._decoders, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        used = {v.name for part in graphs_of(graph) for v in part.output}
        used |= {name for node in all_nodes(graph) for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        if self._fused:
            import_domain(self.proto, _MICROSOFT, 1)
        return filled(self.proto, self.model.apart)


def import_domain(proto: Any, domain: str, version: int) -> None:
    """Let ``proto`` use operators of ``domain``."""
    if not any(entry.domain == domain for entry in proto.opset_import):
        entry = proto.opset_import.add()
        entry.domain, entry.version = domain, version


def _attribute(node: Any, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(attribute.f if attribute.type == 1 else attribute.i)
    return default


def opset_needed(bits: int, *, standard: bool) -> int:
    """The least opset: standard blocks and 4-bit types came with 21, 2-bit ones with 25."""
    return {8: 13, 4: 21, 2: 25}[bits] if standard else 11
