"""int8 for weights and activations, by onnxruntime's quantisers with ranges of our own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kvant.errors import UnsupportedError
from kvant.files.source import printable
from kvant.onnxtools.blocks import FOLDABLE, block_nodes, import_domain, make_blocks
from kvant.onnxtools.inner import all_nodes, graphs_of, names_made, names_read, sort_nodes
from kvant.onnxtools.levels import OnnxOptions
from kvant.onnxtools.model import OnnxModel, initializers
from kvant.onnxtools.packages import need, onnx, onnxruntime
from kvant.onnxtools.ranges import Range, as_tensors_data, infer_types

__all__ = ["dynamic_nodes", "make_dynamic", "make_static", "static_nodes", "unranged_nodes"]


_COMPUTING = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_MOVING = (
    *("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Slice"),
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Pad", "Resize"),
)
"""What follows its neighbours: it moves codes, or takes the largest or mean of some."""


def static_nodes(model: OnnxModel, options: OnnxOptions) -> list[str]:
    """Names of nodes that static quantisation may change, in the graph's order.

    Those that compute: what only moves data follows its neighbours.
    """
    computing = set(_COMPUTING)
    if _everything(options):
        computing |= {"Add", "Mul", "Softmax", "Sigmoid", "Concat", "AveragePool", "Where", "Clip"}
        computing |= {"GlobalAveragePool", "Resize", "InstanceNormalization", "LeakyRelu"}
        computing |= {"LayerNormalization", "BatchNormalization"}
    return [node.name for node in model.proto.graph.node if node.op_type in computing]


def _everything(options: OnnxOptions) -> bool:
    """Sums, products and functions of activations in 8 bits, too.

    In float operators between QuantizeLinear and DequantizeLinear that costs time and gains none,
    and outputs: a file classifier made so agreed with its original on 15 % of files, and on 98 %
    without. Devices without float units need it, and integer operators have kernels for it.
    """
    return options.full_integer or options.format == "qoperator"


def _idle(proto: Any, keep: Collection[str]) -> list[str]:
    """Nodes that move floats: quantised, they would round what no integer operator takes.

    An activation is part of the operator before it; others must have integers on both sides.
    """
    nodes = proto.graph.node
    computing = {n.name for n in nodes if n.op_type in _COMPUTING and n.name not in keep}
    moving = {n.name for n in nodes if n.op_type in _MOVING and n.name not in keep}
    made: set[str] = set()  # values that are integers, as far as what makes them goes
    after = set()
    for node in nodes:
        if node.name in computing or (node.name in moving and made.intersection(node.input)):
            made.update(node.output)
            after.add(node.name)
    taken: set[str] = set()
    before = set()
    for node in reversed(nodes):
        if node.name in computing or (node.name in moving and taken.intersection(node.output)):
            taken.update(node.input)
            before.add(node.name)
    activations = {n.name for n in nodes if n.op_type in ("Relu", "Clip")}
    return sorted(moving - (after & (before | activations)))


_UNRANGED = (*FOLDABLE, "MatMul", "Gemm", "Gather")


def unranged_nodes(model: OnnxModel, options: OnnxOptions) -> list[str]:
    """Nodes of which static quantisation changes weights only; none where all must be integers.

    Ranges of what they take are not measured in inner graphs; LSTM, GRU and embeddings have no
    integer form.
    """
    if _everything(options):
        return []
    outermost = {n.name for n in model.proto.graph.node if n.op_type in _COMPUTING}
    return [name for name in block_nodes(model, _UNRANGED) if name not in outermost]


def dynamic_nodes(model: OnnxModel) -> list[str]:
    """Names of nodes that dynamic quantisation may change: those with constant weights."""
    weights = {tensor.name for tensor in model.proto.graph.initializer}
    return [
        node.name
        for node in all_nodes(model.proto.graph)
        if node.op_type in (*_DYNAMIC, *FOLDABLE) and weights.intersection(node.input)
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
    operators, float_too = {*_COMPUTING, *_MOVING}, [*keep, *_idle(proto, keep)]
    if _everything(options):
        float_too = list(keep)
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
        float_too,
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
        made = _finished(quantiser)
    except Exception as error:
        raise _gave_up(model, error, options.format or "qdq") from None
    if not unranged_nodes(model, options):
        return made
    return make_blocks(model.replaced(made), 8, OnnxOptions(block=64), keep, _UNRANGED)


_TYPES = {"uint8": "QUInt8", "int8": "QInt8", "uint16": "QUInt16"}


_DYNAMIC = ("MatMul", "Gemm", "LSTM", "Attention", "EmbedLayerNormalization", "Gather")
"""What onnxruntime has fast dynamic kernels for. Its ConvInteger takes 1.3 to 4 times as long as
a convolution in float, so weights of convolutions are in 8 bits and their activations in float."""


def make_dynamic(model: OnnxModel, options: OnnxOptions, keep: Collection[str] = ()) -> Any:
    """A model with weights in int8 whose activations are quantised at each run.

    Args:
        model: prepared.
        options: per channel, reduced range.
        keep: nodes that stay in float.

    Raises:
        UnsupportedError: onnxruntime's quantiser gives up.
    """
    proto = _annotated(model)
    graph = proto.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    try:
        proto = _dynamic(proto, options, keep)
        for graph in list(graphs_of(proto.graph))[1:]:
            if any(node.op_type in _DYNAMIC for node in graph.node):
                alone, added = _alone(proto, graph, types)
                made = _dynamic(alone, options, keep).graph
                _put_back(proto, graph, made, added)
    except Exception as error:
        raise _gave_up(model, error, "dynamic") from None
    _drop_unused(proto)
    return make_blocks(model.replaced(proto), 8, OnnxOptions(block=64), keep, FOLDABLE)


def _dynamic(proto: Any, options: OnnxOptions, keep: Collection[str]) -> Any:
    """``proto``, whose outermost graph alone is changed."""
    onnxruntime()
    package = need("onnxruntime.quantization")
    module = need("onnxruntime.quantization.onnx_quantizer")
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
        sorted(_DYNAMIC),
        # Types of values in inner graphs are not inferred.
        {"MatMulConstBOnly": True, "DefaultTensorType": onnx().TensorProto.FLOAT},
    )
    quantiser.quantize_model()
    return _finished(quantiser)


def _alone(proto: Any, graph: Any, types: Mapping[str, int]) -> tuple[Any, set[str]]:
    """An inner graph as a model of its own, with what it takes from around it; and those names."""
    package = onnx()
    alone = package.ModelProto(ir_version=proto.ir_version)
    alone.opset_import.extend(proto.opset_import)
    alone.graph.CopyFrom(graph)
    made = names_made(graph)
    taken = set[str]().union(*map(names_read, graph.node)) - made
    for tensor in proto.graph.initializer:
        if tensor.name in taken:
            alone.graph.initializer.add().CopyFrom(tensor)
            taken.remove(tensor.name)
    around = set(taken)
    for name in sorted(around):  # of values of graphs between, types are not known
        kind = types.get(name, package.TensorProto.FLOAT)
        alone.graph.input.append(package.helper.make_tensor_value_info(name, kind, None))
    need("onnxruntime.quantization.quant_utils").add_infer_metadata(alone)
    return alone, around


def _put_back(proto: Any, graph: Any, made: Any, around: set[str]) -> None:
    """Replace an inner graph by what was made of it alone; its weights go to the outermost."""
    left = {tensor.name for tensor in proto.graph.initializer}
    before = names_made(graph)
    taken = {name for part in graphs_of(proto.graph) for name in names_made(part)}
    renamed: dict[str, str] = {}
    for node in made.node:
        for index, name in enumerate(node.output):
            if name and name not in before and name in taken:
                renamed[name] = node.output[index] = f"{name}_{len(taken)}"
            taken.add(node.output[index])
    for tensor in made.initializer:
        if tensor.name in left:
            continue
        name = tensor.name
        while tensor.name in taken:
            tensor.name += "_"
        renamed[name] = tensor.name
        taken.add(tensor.name)
        proto.graph.initializer.add().CopyFrom(tensor)
    for node in made.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    if any(node.domain == "com.microsoft" for node in made.node):
        import_domain(proto, "com.microsoft", 1)
    inputs = [value for value in made.input if value.name not in around]
    del made.input[:], made.initializer[:]
    made.input.extend(inputs)
    graph.CopyFrom(made)


def _drop_unused(proto: Any) -> None:
    graph = proto.graph
    used = {v.name for part in graphs_of(graph) for v in part.output}
    used |= {name for node in all_nodes(graph) for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


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
    proto = quantiser.model.model
    sort_nodes(proto.graph)
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
