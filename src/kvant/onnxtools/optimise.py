"""Profiles: what is done to a model for processors, CUDA, and NPU-style providers.

Each returns a line for every step, what was undone included. Steps are checked by running the model
(see `prepare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kvant.errors import UsageError
from kvant.files.source import quote
from kvant.onnxtools.model import OnnxModel, copy_of, opset
from kvant.onnxtools.packages import need, onnxruntime
from kvant.onnxtools.prepare import Preparation
from kvant.onnxtools.ranges import infer_types
from kvant.onnxtools.session import Feeds, Session

__all__ = ["PROFILES", "Profile", "fix_shapes", "optimise_for"]

Profile = Literal["cpu", "cuda", "npu"]
PROFILES: Mapping[str, str] = {
    "cpu": "simplified, operators fused for ONNX Runtime on processors",
    "cuda": "simplified, operators fused for ONNX Runtime on NVIDIA's; best with --fp16",
    "npu": "standard operators, fixed shapes, opset 13 to 21; full-integer QDQ with --calibrate",
}
NPU_OPSETS = (13, 21)
"""What QNN, VitisAI and OpenVINO's NPU plug-in all read."""


def optimise_for(
    model: OnnxModel,
    profile: Profile,
    feeds: Feeds | None,
    *,
    half: bool = False,
    threads: int | None = None,
    base: Session | None = None,
    opset_needed: int = NPU_OPSETS[0],
) -> Preparation:
    """Optimise ``model``; the original is not changed.

    Args:
        model: an opened model; for npu with fixed shapes (`fix_shapes`).
        profile: see ``PROFILES``.
        feeds: one run's values to check each step with; None: made up.
        half: it will become float16: no operator is fused that has only float32 on processors.
        threads: processors to use.
        base: ``model`` loaded, where it is.
        opset_needed: the least for npu; 16-bit activations need more.

    Returns:
        the steps' result: ``.model`` and ``.did``.

    Raises:
        UnsupportedError: the opset cannot be reached.
    """
    done = Preparation(model, feeds, threads, base)
    done.simplify()
    if profile == "npu":
        if done.raise_opset(opset_needed):
            done.simplify()  # the converter leaves constants to fold
        done.fuse("basic", "folded and fused within standard operators (onnxruntime, basic)")
        _check_npu(done)
        return done
    if _is_transformer(done.model):
        _fuse_transformer(done, gpu=profile == "cuda")
    if profile == "cpu" and not half:
        # `all` lays out convolutions for this very machine; the file should serve others, too.
        done.fuse("extended", "operators fused (onnxruntime, extended)")
    else:
        # What goes further is made for processors here; CUDA's provider fuses when it loads.
        done.fuse("basic", "folded and fused within standard operators (onnxruntime, basic)")
    return done


def _is_transformer(model: OnnxModel) -> bool:
    kinds = {node.op_type for node in model.proto.graph.node}
    attends = "Softmax" in kinds and "MatMul" in kinds
    normalises = kinds & {"LayerNormalization", "SimplifiedLayerNormalization", "ReduceMean"}
    return attends and bool(normalises | (kinds & {"SkipLayerNormalization"}))


def _fuse_transformer(done: Preparation, *, gpu: bool) -> None:
    """Attention, embedding and skip-normalisation fused by onnxruntime.transformers."""
    onnxruntime()
    optimiser = need("onnxruntime.transformers.optimizer")

    def change(proto: Any) -> Any:
        result = optimiser.optimize_model(
            proto, model_type="bert", num_heads=0, hidden_size=0, opt_level=0, use_gpu=gpu
        )
        result.topological_sort()
        return result.model

    done.step("attention and normalisation fused (onnxruntime.transformers)", change)


def fix_shapes(model: OnnxModel, shapes: Mapping[str, Sequence[int]], *, whole: bool) -> OnnxModel:
    """The model with fixed input shapes; its notes say which.

    Args:
        model: not changed.
        shapes: by input.
        whole: every dimension must be fixed; a free first one becomes 1.

    Raises:
        UsageError: no such input, a shape that contradicts it, or a dimension left free.
    """
    ports = {port.name: port for port in model.inputs}
    for name in shapes:
        if name not in ports:
            known = ", ".join(quote(n) for n in ports)
            raise UsageError(f"--shape: no input {quote(name)}; the model has {known}.")
    fixed = model.replaced(copy_of(model.proto))
    said = []
    for value in fixed.proto.graph.input:
        port = ports.get(value.name)
        if port is None:
            continue
        wanted = _wanted(port.name, port.shape, shapes.get(port.name), port.told(), whole=whole)
        if wanted is None or (port.shape is not None and wanted == list(port.shape)):
            continue
        del value.type.tensor_type.shape.dim[:]
        for size in wanted:
            value.type.tensor_type.shape.dim.add().dim_value = size
        said.append(f"input {quote(port.name)} is {wanted} now, was {port.told()}")
    if said:
        # Shapes inside were inferred for free dimensions; they are inferred again.
        del fixed.proto.graph.value_info[:]
        _free_outputs(fixed.proto)
        infer_types(fixed.proto)
    fixed.notes = [*model.notes, *said]
    return fixed


def _free_outputs(proto: Any) -> None:
    for value in proto.graph.output:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            for dim in value.type.tensor_type.shape.dim:
                if not dim.HasField("dim_value"):
                    dim.ClearField("dim_param")


def _wanted(
    name: str,
    shape: tuple[int | str | None, ...] | None,
    given: Sequence[int] | None,
    told: str,
    *,
    whole: bool,
) -> list[int] | None:
    if given is not None:
        fits = shape is None or (
            len(shape) == len(given)
            and all(not isinstance(d, int) or d == g for d, g in zip(shape, given, strict=True))
        )
        if not fits or any(g < 1 for g in given):
            raise UsageError(
                f"--shape: input {quote(name)} is {told}; {list(given)} does not fit it."
            )
        return list(given)
    if not whole:
        return None
    sizes = [1 if i == 0 and not isinstance(d, int) else d for i, d in enumerate(shape or ())]
    if shape is None or not all(isinstance(d, int) for d in sizes):
        raise UsageError(
            f"input {quote(name)} is {told}; this profile needs fixed shapes. Say which: "
            f"--shape {name}=1,..."
        )
    return [int(d) for d in sizes if isinstance(d, int)]


def _check_npu(done: Preparation) -> None:
    """Say what an NPU's provider would refuse or leave to the processor."""
    proto = done.model.proto
    version = opset(proto)
    if version > NPU_OPSETS[1]:
        done.did.append(
            f"opset {version} is above {NPU_OPSETS[1]}, which NPU providers read; export the model "
            "at an older one"
        )
    foreign = sorted({n.op_type for n in proto.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign:
        done.did.append(f"left to the processor, not standard operators: {', '.join(foreign)}")
    infer_types(proto)
    free = [
        value.name
        for value in (*proto.graph.value_info, *proto.graph.output)
        if any(not d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    ]
    if free:
        done.did.append(
            f"{len(free)} values inside have shapes that depend on data, such as "
            f"{quote(free[0])}: nodes there stay on the processor"
        )
    else:
        done.did.append("every shape is fixed")
