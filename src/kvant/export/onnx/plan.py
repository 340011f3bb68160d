"""Everything about a folder that is decided before a weight is read: graph, layout, jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvant.calibration.importance import Importance
from kvant.checkpoint import Checkpoint
from kvant.checkpoint.open_onnx import COLUMNS_KEY, TENSORS_KEY
from kvant.checkpoint.pooling import Pooling
from kvant.errors import UnsupportedError
from kvant.export.onnx.emit import Emitter, FloatType, Term
from kvant.export.onnx.fused import Fused
from kvant.export.onnx.model import ModelBuilder
from kvant.export.onnx.standard import Standard
from kvant.export.onnx.weights import BlockRows, Job
from kvant.graph.ops import Moe, run
from kvant.packing.groups import Groups

__all__ = ["OnnxPlan", "plan_onnx", "refuse_unsupported"]


@dataclass(frozen=True, slots=True)
class OnnxPlan:
    """A graph and what fills its data file."""

    checkpoint: Checkpoint
    model: bytes
    jobs: tuple[Job, ...]
    data_size: int
    levels: Mapping[str, str]
    grids: Mapping[str, Groups]
    standard: bool
    kind: FloatType


def refuse_unsupported(checkpoint: Checkpoint) -> None:
    """Say at once what cannot be written.

    Raises:
        UnsupportedError: names the architecture and the remedy.
    """
    if any(isinstance(node.op, Moe) for node in checkpoint.graph.nodes):
        raise UnsupportedError(
            f"{checkpoint.path}: {checkpoint.architecture.name} is a mixture of experts, which "
            "kvant does not write as ONNX: its runtimes have no operator for it on processors. "
            "Use --to gguf."
        )


def plan_onnx(
    checkpoint: Checkpoint,
    grids: Mapping[str, Groups],
    *,
    kind: FloatType = "FLOAT",
    standard: bool = False,
    float_activations: bool = False,
    importance: Importance | None = None,
) -> OnnxPlan:
    """Fold the graph.

    Args:
        checkpoint: the model.
        grids: of each weight that is quantised, by canonical name.
        kind: of everything else.
        standard: only operators of the standard.
        float_activations: products with blocks of integers take floats; slow, for comparisons.
        importance: weighs errors.

    Raises:
        UnsupportedError: see `refuse_unsupported`.
        MissingExtraError: the onnx package is not installed.
    """
    refuse_unsupported(checkpoint)
    builder = ModelBuilder(standard=standard)
    emitter = (Standard if standard else Fused)(
        checkpoint, builder, kind=kind, grids=grids, float_activations=float_activations
    )
    builder.input("input_ids", "INT64", ("batch_size", "sequence_length"))
    total = "sequence_length" if emitter.encodes else "total_sequence_length"
    builder.input("attention_mask", "INT64", ("batch_size", total))
    result = run(checkpoint.graph, emitter, Term(1, "input_ids"))
    if emitter.encodes:
        _encoder_outputs(emitter, result, checkpoint.pooling or "mean")
    else:
        shape = ("batch_size", "sequence_length", result.width)
        _output(emitter, emitter.name(result), "logits", shape)
    jobs = tuple(_weighed(job, importance) for job in emitter.jobs.values())
    levels = {
        name: grids[name].name if name in grids else {"FLOAT": "float32"}.get(kind, "float16")
        for name in checkpoint.weights
    }
    metadata = {
        TENSORS_KEY: levels,
        COLUMNS_KEY: sorted(job.name for job in jobs if job.columnwise),
        "kvant.architecture": checkpoint.architecture.name,
    }
    model = builder.finished(checkpoint.info.name, metadata)
    return OnnxPlan(checkpoint, model, jobs, builder.size, levels, grids, standard, kind)


def _weighed(job: Job, importance: Importance | None) -> Job:
    if importance is None or not isinstance(job, BlockRows):
        return job
    return replace(job, importance=importance.for_tensor(job.name))


def _output(emitter: Emitter, source: str, name: str, shape: tuple[int | str, ...]) -> None:
    """An output in float32, whatever the model computes in."""
    b = emitter.b
    b.node("Cast", [source], name, outputs=[name], to=b.type_of("FLOAT"))
    b.output(name, "FLOAT", shape)


def _encoder_outputs(emitter: Emitter, states: Term, pooling: Pooling) -> None:
    b, width = emitter.b, states.width
    shape = ("batch_size", "sequence_length", width)
    _output(emitter, emitter.name(states), "last_hidden_state", shape)
    x = "last_hidden_state"
    if pooling == "cls":
        pooled = b.node("Gather", [x, b.constant(0)], "pooled", axis=1)
    else:
        mask = b.node("Cast", ["attention_mask"], "mask_float", to=b.type_of("FLOAT"))
        mask = b.node("Unsqueeze", [mask, b.constant([2])], "mask_float")
        if pooling == "last":  # the row whose count of ones is the text's whole length
            counted = b.node("CumSum", [mask, b.constant(1)], "counted")
            whole = b.node("ReduceMax", [counted, b.constant([1])], "whole", keepdims=1)
            last = b.node("Cast", [b.node("Equal", [counted, whole], "is_last")], "is_last", to=1)
            mask = b.node("Mul", [last, mask], "mask_float")
        masked = b.node("Mul", [x, mask], "masked")
        summed = b.node("ReduceSum", [masked, b.constant([1])], "summed", keepdims=0)
        count = b.node("ReduceSum", [mask, b.constant([1])], "count", keepdims=0)
        pooled = b.node("Div", [summed, count], "pooled")
    b.node(
        "LpNormalization", [pooled], "sentence_embedding", outputs=["sentence_embedding"], axis=1
    )
    b.output("sentence_embedding", "FLOAT", ("batch_size", width))
