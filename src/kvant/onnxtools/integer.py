"""int8 for weights and activations, by onnxruntime's quantisers with ranges of our own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kvant.errors import UnsupportedError
from kvant.files.source import printable
from kvant.onnxtools.levels import OnnxOptions
from kvant.onnxtools.model import OnnxModel, initializers
from kvant.onnxtools.packages import need, onnxruntime
from kvant.onnxtools.ranges import Range, as_tensors_data, infer_types

__all__ = ["dynamic_nodes", "make_dynamic", "make_static", "static_nodes"]


def static_nodes(model: OnnxModel) -> list[str]:
    """Names of nodes that static quantisation may change, in the graph's order.

    Those that compute: what only moves data follows its neighbours.
    """
    computing = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Softmax", "Sigmoid"}
    computing |= {"Concat", "AveragePool", "GlobalAveragePool", "Resize", "InstanceNormalization"}
    computing |= {"LayerNormalization", "BatchNormalization", "LeakyRelu", "Clip", "Where"}
    return [node.name for node in model.proto.graph.node if node.op_type in computing]


def dynamic_nodes(model: OnnxModel) -> list[str]:
    """Names of nodes that dynamic quantisation may change: those with constant weights."""
    kinds = {"Conv", "MatMul", "Gemm", "LSTM", "Attention", "EmbedLayerNormalization", "Gather"}
    weights = {tensor.name for tensor in model.proto.graph.initializer}
    return [
        node.name
        for node in model.proto.graph.node
        if node.op_type in kinds and weights.intersection(node.input)
    ]


def make_static(
    model: OnnxModel,
    ranges: Mapping[str, Range],
    options: OnnxOptions,
    keep: Collection[str] = (),
) -> Any:
    """A model with weights and activations in int8.

    Args:
        model: prepared (opset 13 or later, names unique).
        ranges: of its values, from `measure_ranges`.
        options: format, types, per channel.
        keep: nodes that stay in float.

    Raises:
        UnsupportedError: onnxruntime's quantiser gives up.
    """
    onnxruntime()
    package = need("onnxruntime.quantization")
    registry = need("onnxruntime.quantization.registry")
    proto = _annotated(model)
    operators = set(registry.QLinearOpsRegistry) | set(registry.QDQRegistry)
    extra: dict[str, object] = {}
    if options.full_integer:
        operators |= {node.op_type for node in proto.graph.node}
        # What QNN's configuration in onnxruntime sets, too: such devices refuse empty ranges.
        extra |= {"ForceQuantizeNoInputCheck": True, "MinimumRealRange": 1e-4}
    activation = getattr(package.QuantType, _TYPES[options.activations])
    if options.activations == "int8":
        extra["ActivationSymmetric"] = True
    settings = (options.per_channel, options.reduce_range)
    rest = (
        package.QuantType.QInt8,
        activation,
        as_tensors_data(ranges),
        list[str](),  # all nodes
        list(keep),
        sorted(operators),
        extra,
    )
    try:
        if options.format == "qoperator":
            module = need("onnxruntime.quantization.onnx_quantizer")
            mode = package.QuantizationMode.QLinearOps
            quantiser = module.ONNXQuantizer(proto, *settings, mode, True, *rest)
        else:
            module = need("onnxruntime.quantization.qdq_quantizer")
            quantiser = module.QDQQuantizer(proto, *settings, *rest)
        quantiser.quantize_model()
        return _finished(quantiser)
    except Exception as error:
        raise _gave_up(model, error, options.format or "qdq") from None


_TYPES = {"uint8": "QUInt8", "int8": "QInt8", "uint16": "QUInt16"}


def make_dynamic(
    model: OnnxModel,
    options: OnnxOptions,
    keep: Collection[str] = (),
) -> Any:
    """A model with weights in int8 whose activations are quantised at each run.

    Raises:
        UnsupportedError: onnxruntime's quantiser gives up.
    """
    onnxruntime()
    package = need("onnxruntime.quantization")
    registry = need("onnxruntime.quantization.registry")
    module = need("onnxruntime.quantization.onnx_quantizer")
    proto = _annotated(model)
    try:
        quantiser = module.ONNXQuantizer(
            proto,
            options.per_channel,
            options.reduce_range,
            package.QuantizationMode.IntegerOps,
            False,
            package.QuantType.QInt8,
            package.QuantType.QUInt8,
            None,
            [],
            list(keep),
            sorted(registry.IntegerOpsRegistry),
            {"MatMulConstBOnly": True},
        )
        quantiser.quantize_model()
        return _finished(quantiser)
    except Exception as error:
        raise _gave_up(model, error, "dynamic") from None


def _annotated(model: OnnxModel) -> Any:
    """A copy with inferred shapes, marked so that onnxruntime does not infer them again."""
    utilities = need("onnxruntime.quantization.quant_utils")
    proto = model.whole()
    _flatten_biases(proto)
    infer_types(proto)
    utilities.add_infer_metadata(proto)
    return proto


def _flatten_biases(proto: Any) -> None:
    """Biases [1, n] of Gemm become [n], which is the same: the quantiser trips over the former."""
    weights = initializers(proto)
    for node in proto.graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3:
            continue
        bias = weights.get(node.input[2])
        if bias is None or len(bias.dims) != 2 or bias.dims[0] != 1:
            continue
        flat = proto.graph.initializer.add()
        flat.CopyFrom(bias)
        flat.name = f"{node.name}_bias"
        del flat.dims[0]
        node.input[2] = flat.name


def _finished(quantiser: Any) -> Any:
    quantiser.model.topological_sort()
    proto = quantiser.model.model
    # Its marks for itself say nothing to others.
    kept = [p for p in proto.metadata_props if p.key != "onnx.infer"]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    return proto


def _gave_up(model: OnnxModel, error: Exception, how: str) -> Exception:
    text = printable(" ".join(f"{error}".split()).rstrip("."), 240)
    return UnsupportedError(
        f"{model.name}: onnxruntime's quantiser ({how}) gave up: {type(error).__name__}: {text}. "
        "Keep the node it names in float (--keep-float), or try another level or --format."
    )
