"""Weights in 8, 4 or 2 bits while activations stay in float.

A weight of a MatMul or Gemm becomes a MatMulNBits, of a Gather a GatherBlockQuantized: ONNX
Runtime's fused operators. Other weights (convolutions), and all of them with ``--format qdq``, go
through a standard DequantizeLinear in blocks along each output's weights (opset 21), or with one
scale an output for 8 bits (opset 13). onnxruntime's own weight-only quantiser leaves convolutions
alone, and 8-bit weights in standard operators unquantised without a word.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.errors import DataError
from kvant.files.source import quote
from kvant.onnxtools.apart import filled
from kvant.onnxtools.levels import OnnxOptions
from kvant.onnxtools.model import OnnxModel, copy_of, initializers
from kvant.onnxtools.packages import onnx
from kvant.packing.bits import packed_bits

__all__ = ["Blocks", "block_nodes", "make_blocks", "quantise_rows"]

_MICROSOFT = "com.microsoft"
_LEAST = 256
"""Weights of fewer elements stay: scales and operators would take what is saved."""
_SHRINK = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
_LARGEST, _LARGE = np.float32(3.4028e38), 1e35  # no code times a scale is more: it'd be infinite
_CHUNK = 1 << 18  # values at once: they and what is made of them stay in a cache

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of weights in blocks: value = (code - zero) * scale."""

    codes: Codes
    """[rows, blocks, block], from 0."""
    scales: Floats
    """[rows, blocks]"""
    zeros: Codes
    """[rows, blocks]"""

    def decoded(self, columns: int) -> Floats:
        """The weights as they will be, [rows, columns]."""
        values = (self.codes.astype(np.float32) - self.zeros[..., None]) * self.scales[..., None]
        return np.asarray(values.reshape(len(values), -1)[:, :columns], np.float32)


def quantise_rows(weights: Floats, bits: int, block: int, *, symmetric: bool) -> Blocks:
    """Round ``weights`` [rows, columns] to ``bits`` in blocks along a row.

    Each block's range, from its least to its largest weight and holding zero, is tried whole and
    shrunk in five steps (not at 8 bits, where it gains nothing); the best in squared error stays.
    Rows are padded with zeros.
    """
    rows, columns = weights.shape
    count = -(-columns // block)
    codes = np.empty((rows, count, block), np.uint8)
    scales, zeros = np.empty((rows, count), np.float32), np.empty((rows, count), np.uint8)
    step = max(1, _CHUNK // max(1, count * block))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        padded = np.zeros((len(weights[part]), count * block), np.float32)
        padded[:, :columns] = weights[part]
        values = padded.reshape(-1, count, block)
        codes[part], scales[part], zeros[part] = _best(values, bits, symmetric=symmetric)
    return Blocks(codes, scales, zeros)


def _best(values: Floats, bits: int, *, symmetric: bool) -> tuple[Codes, Floats, Codes]:
    top = 2**bits - 1
    # In double precision, where neither ranges nor squares of large weights overflow.
    low = np.minimum(values.min(-1), 0.0).astype(np.float64)
    high = np.maximum(values.max(-1), 0.0).astype(np.float64)
    least = np.full(low.shape, np.inf)
    best = (
        np.zeros(values.shape, np.uint8),
        np.ones(low.shape, np.float32),
        np.zeros(low.shape, np.uint8),
    )
    middle = 2 ** (bits - 1)
    for shrink in _SHRINK if bits < 8 else _SHRINK[:1]:
        widest = np.maximum(-low / middle, high / (middle - 1)) if symmetric else (high - low) / top
        scale = (widest * shrink).astype(np.float32)
        scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
        zero = np.full_like(scale, middle)
        if not symmetric:
            zero = np.clip(np.rint(-low * shrink / scale), 0, top).astype(np.float32)
        steps = values / scale[..., None] + zero[..., None]
        code = np.clip(np.rint(steps), 0, top)
        wrong = ((code - steps) ** 2).sum(-1) * np.square(scale, dtype=np.float64)
        if scale.max(initial=0) > _LARGE:
            reach = np.abs(code - zero[..., None]).max(-1)
            scale = np.minimum(scale, _LARGEST / np.maximum(reach, 1))
        better = wrong < least
        least = np.where(better, wrong, least)
        best[0][better] = code[better].astype(np.uint8)
        best[1][better] = scale[better]
        best[2][better] = zero[better].astype(np.uint8)
    return best


def block_nodes(model: OnnxModel) -> list[str]:
    """Nodes with a weight that would be quantised, in the graph's order."""
    weights = initializers(model.proto)
    return [node.name for node in model.proto.graph.node if _weight_of(node, weights) is not None]


def _weight_of(node: Any, weights: dict[str, Any]) -> int | None:
    """Which input of ``node`` is a weight to quantise."""
    place = {"Gather": 0}.get(node.op_type, 1)
    if node.op_type not in ("MatMul", "Gemm", "Gather", "Conv", "ConvTranspose"):
        return None
    if node.domain not in ("", "ai.onnx") or len(node.input) <= place:
        return None
    tensor = weights.get(node.input[place])
    kinds = onnx().TensorProto
    if tensor is None or tensor.data_type != kinds.FLOAT or len(tensor.dims) < 2:
        return None
    return place if int(np.prod(tensor.dims)) >= _LEAST else None


def make_blocks(
    model: OnnxModel, bits: int, options: OnnxOptions, keep: Collection[str] = ()
) -> Any:
    """A model with weights in ``bits``.

    Args:
        model: prepared.
        bits: 8, 4 or 2.
        options: format, block, symmetric.
        keep: nodes whose weights stay in float.

    Raises:
        DataError: a weight holds NaN or infinity.
    """
    proto = copy_of(model.proto)
    standard = options.format == "qdq"
    maker = _Maker(model, proto, bits, options, standard)
    for node in list(proto.graph.node):
        place = _weight_of(node, maker.weights)
        if place is None or node.name in keep:
            maker.nodes.append(node)
        else:
            maker.quantise(node, place)
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
        self._fused = False

    def quantise(self, node: Any, place: int) -> None:
        name = node.input[place]
        values = np.asarray(self.model.values(name), np.float32)
        if not np.isfinite(values).all():
            raise DataError(
                f"weight {quote(name)} holds NaN or infinity, which no block of integers can. Keep "
                f"its node in float: --keep-float {quote(node.name)}."
            )
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
        self._dequantised(node, place, name, values)

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

    def _dequantised(self, node: Any, place: int, name: str, values: Floats) -> None:
        """A standard DequantizeLinear of the weight as [outputs, the rest], before the node."""
        first = 0 if node.op_type not in ("MatMul", "Gemm") or values.ndim != 2 else 1
        if node.op_type == "Gemm" and _attribute(node, "transB", 0):
            first = 0
        key = (name, f"dq{first}")
        if key not in self._made:
            moved = np.moveaxis(values, first, 0)
            rows = np.ascontiguousarray(moved.reshape(len(moved), -1))
            self._made[key] = self._standard(f"{name}_dq{first}", rows, values.shape, first)
        copy = type(node)()
        copy.CopyFrom(node)
        copy.input[place] = self._made[key]
        self.nodes.append(copy)

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
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {value.name for value in graph.output} | _names_used(graph)
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        if self._fused:
            _import(self.proto, _MICROSOFT, 1)
        return filled(self.proto, self.model.apart)


def _names_used(graph: Any) -> set[str]:
    used: set[str] = set()
    for node in graph.node:
        used.update(node.input)
        for attribute in node.attribute:
            inner = ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)
            for part in inner:
                used |= _names_used(part) | {value.name for value in part.output}
    return used


def _import(proto: Any, domain: str, version: int) -> None:
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
    return {8: 13, 4: 21, 2: 25}[bits] if standard else 13


def has_standard_weights(model: OnnxModel, options: OnnxOptions) -> bool:
    """Whether some weight will go through DequantizeLinear."""
    if options.format == "qdq":
        return True
    weights = initializers(model.proto)
    return any(
        node.op_type in ("Conv", "ConvTranspose", "Gather", "Gemm")
        or len(weights[node.input[1]].dims) != 2
        for node in model.proto.graph.node
        if _weight_of(node, weights) is not None
    )
