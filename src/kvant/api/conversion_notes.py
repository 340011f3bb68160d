"""Sentences a user should read about a GGUF file: what gave way, and what was lost before."""

from __future__ import annotations

from collections import Counter

from kvant.export.gguf.keys import SEARCHED
from kvant.export.gguf.plan import Plan, PlannedTensor
from kvant.quant.assign import NEED_IMPORTANCE

__all__ = ["importance_notes", "plan_notes"]

_FLOAT_TYPES = ("F32", "F16", "BF16")


def importance_notes(plan: Plan) -> tuple[str, ...]:
    """Quantised matrices that the importance makes no difference to."""
    matrices = [t for t in plan.tensors if t.assignment.slot.is_matrix]
    quantised = [t for t in matrices if t.assignment.packing not in _FLOAT_TYPES]
    notes = []
    formulas = [t for t in quantised if t.assignment.packing not in SEARCHED]
    if formulas:
        kinds = ", ".join(sorted({t.assignment.packing for t in formulas}))
        notes.append(
            f"{len(formulas)} tensors are {kinds}, which follows a formula: the importance changes "
            "nothing there."
        )
    unknown = [t.name for t in quantised if t.importance is None and t not in formulas]
    if unknown:
        listed = ", ".join(unknown[:4]) + (" …" if len(unknown) > 4 else "")
        notes.append(f"Without importance, so all columns count alike: {listed}.")
    return tuple(notes)


def _loses_digits(tensor: PlannedTensor) -> bool:
    change = (tensor.source_type, tensor.assignment.packing)
    if tensor.requantised:  # a scale times a code takes up to 24 bits
        return change[1] in ("F16", "BF16")
    return change in (("F32", "F16"), ("F32", "BF16"), ("F16", "BF16"))


def _needs_importance(tensor: PlannedTensor) -> bool:
    """Whether it has so few bits that importance decides; an embedding has none."""
    slot = tensor.assignment.slot
    return tensor.assignment.packing in NEED_IMPORTANCE and slot.layer is not None


def plan_notes(plan: Plan) -> tuple[str, ...]:
    """What gave way in the plan, and what was lost before kvant came."""
    notes = [*plan.checkpoint.told, *plan.notes]
    moved = Counter(
        (t.assignment.wanted, t.assignment.packing, t.assignment.slot.shape[-1])
        for t in plan.tensors
        if t.assignment.fell_back
    )
    for (wanted, packing, row), count in moved.items():
        notes.append(
            f"{count} tensor{'s' if count > 1 else ''} with rows of {row} weights got {packing} "
            f"instead of {wanted}, whose blocks do not divide the row."
        )
    again = sorted({t.source_type for t in plan.tensors if t.requantised})
    if again and plan.recipe.quantised:
        notes.append(
            f"The source is quantised already ({', '.join(again)}): quantising it again adds "
            "to that loss. Use the original checkpoint if you can."
        )
    if again and not plan.recipe.quantised:
        notes.append(
            f"The source is quantised ({', '.join(again)}): this file is larger and cannot regain "
            "what that lost."
        )
    rounded = sorted({t.source_type for t in plan.tensors if _loses_digits(t)})
    if rounded and not plan.recipe.quantised:
        keeps_all = "f16" if rounded == ["F16"] else "f32"
        notes.append(
            f"Weights stored as {', '.join(rounded)} are rounded to {plan.recipe.name}, which "
            f"keeps fewer digits; `kvant convert --dtype {keeps_all}` keeps all."
        )
    blind = [t for t in plan.tensors if _needs_importance(t) and t.importance is None]
    if blind:
        kinds = ", ".join(sorted({t.assignment.packing for t in blind}))
        notes.append(
            f"{len(blind)} tensors are {kinds} without importance, so quality is poor: `kvant "
            "calibrate SRC` collects it, and `kvant quantize --importance FILE` uses it."
        )
    if "tokenizer.ggml.model" not in plan.shards[0].metadata:
        notes.append("The source has no tokenizer; the file has none either and cannot chat.")
    return tuple(notes)
