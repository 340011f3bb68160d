"""A mixture found for a budget becomes a recipe with a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from kvant.errors import UsageError
from kvant.packing import get
from kvant.quant.assign import Slot, assign
from kvant.quant.presets import PRESETS
from kvant.quant.recipe import FLOATS, ModelShape, Recipe

__all__ = ["mixture_recipe"]


def mixture_recipe(tensors: Mapping[str, str], slots: Sequence[Slot], shape: ModelShape) -> Recipe:
    """The recipe that gives each matrix the packing ``tensors`` says.

    Its name is ``kvant-3.50bpw``, after the bits per weight of all tensors; ``base`` is the packing
    most weights have; ``file_type``, which has no number for mixtures, is that of the preset
    nearest in size among those built on a packing the mixture has.

    Raises:
        UsageError: no matrix has a packing.
    """
    elements: Counter[str] = Counter()
    bits = weights = 0.0
    for slot in slots:
        packing = tensors[slot.name] if slot.is_matrix and slot.name in tensors else "F32"
        if slot.is_matrix:
            elements[packing] += slot.elements
        weights += slot.elements
        bits += slot.elements * get(packing).bits_per_weight
    if not elements:
        raise UsageError("The model has no weight matrix, so there is nothing to quantise.")
    base = max(sorted(elements), key=lambda p: (p not in FLOATS, elements[p]))
    nearest = _nearest_preset(set(elements), bits, slots, shape, base)
    return Recipe(
        name=f"kvant-{bits / weights:.2f}bpw",
        base=base,
        good_for="the least divergence in so many bytes, as measured on this model",
        file_type=nearest.file_type,
        precision_class=get(base).precision_class,
        tensors=dict(tensors),
    )


def _nearest_preset(
    packings: Iterable[str], bits: float, slots: Sequence[Slot], shape: ModelShape, base: str
) -> Recipe:
    """The preset a file is labelled as where only presets have a number."""
    fitting = [p for p in PRESETS if p.base in packings]
    if not fitting:  # of packings no preset is built on
        fitting = [p for p in PRESETS if p.precision_class == get(base).precision_class]

    def distance(preset: Recipe) -> float:
        assigned = assign(preset, slots, shape)
        size = sum(a.slot.elements * get(a.packing).bits_per_weight for a in assigned)
        return abs(size - bits)

    return min(fitting, key=distance)
