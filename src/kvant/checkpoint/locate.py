"""Where a Hugging Face folder has the weights of a graph, experts and bare models included."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from kvant.checkpoint.names import (
    FUSED_EXPERTS,
    MLX_EXPERTS,
    hf_name,
    hf_old_name,
    hf_parts,
    hf_prefix,
    hf_values,
)
from kvant.checkpoint.transforms import canonical
from kvant.errors import FileFormatError
from kvant.files.source import quote
from kvant.files.tensor import StackedTensor, StoredTensor
from kvant.graph.ir import Trace, WeightRef

__all__ = ["Located", "locate"]

_REMEDY = "Config and weights are not of one model; fetch both again."


@dataclass(frozen=True, slots=True)
class Located:
    """Where a folder has what a graph declares.

    ``names`` says the container's name by canonical name; ``made`` are tensors that are not read as
    they lie there (stacks of experts, transposed matrices), by the name given for them there;
    ``used`` are all tensors of the container that are needed. ``bare``: names lack the prefix of
    the model in the model with a head.
    """

    names: Mapping[str, str]
    made: Mapping[str, StoredTensor]
    used: frozenset[str]
    bare: bool


def locate(
    graph: Trace,
    stored: Mapping[str, StoredTensor],
    other: Collection[str],
    architecture: str,
    where: str,
) -> Located:
    """Find the tensors of all weights; those that are missing keep the name they should have.

    ``other`` names tensors of types no reader knows.

    Raises:
        FileFormatError: an expert is missing or has another shape or type than the others.
    """
    names: dict[str, str] = {}
    made: dict[str, StoredTensor] = {}
    used: set[str] = set()
    prefix = hf_prefix(architecture)
    bare = not any(name.startswith(prefix) for name in (*stored, *other))
    for ref in graph.weights.values():
        own = _mlx_name(ref, architecture)
        if own in stored and (own != hf_name(ref, architecture)):
            names[ref.name] = own  # as mlx-lm has it: experts stacked, no matrix transposed
            used.add(own)
            continue
        if len(ref.shape) != 3:
            name = _matrix_name(ref, stored, architecture)
            if bare and name.removeprefix(prefix) in stored:
                name = name.removeprefix(prefix)
            name = _or_old(name, stored, prefix)
            names[ref.name] = name
            used.add(name)
            if name in stored and (values := hf_values(ref, architecture)) != "as they are":
                names[ref.name] = f"{name}, {values}"
                made[names[ref.name]] = canonical(stored[name], values)
            continue
        fused, count, which = FUSED_EXPERTS[ref.role]
        fused = fused.format(layer=ref.layer)
        if fused in stored:
            parts = _unfused(ref, stored[fused], count, which)
            used.add(fused)
        elif unknown := next((n for n in hf_parts(ref, architecture) if n in other), None):
            names[ref.name] = unknown
            continue
        else:
            parts = _gathered(ref, stored, hf_parts(ref, architecture), where)
            used.update(part.name for part in parts)
        names[ref.name] = f"{ref.name} of {len(parts)}"
        made[names[ref.name]] = StackedTensor.of(parts[0].name, parts)
    return Located(names, made, frozenset(used), bare)


def _mlx_name(ref: WeightRef, architecture: str) -> str:
    """What mlx-lm calls a weight, in whose folders it is like this too."""
    name = hf_name(ref, architecture)
    if len(ref.shape) == 3:
        block = name.partition(".experts.")[0]
        return f"{block}.switch_mlp.{MLX_EXPERTS[ref.role]}.weight"
    if architecture == "gpt2":
        return "model." + name.removeprefix(hf_prefix(architecture))
    return name


def _or_old(name: str, stored: Mapping[str, StoredTensor], prefix: str) -> str:
    """The name, or the one it had in early files where only that is there."""
    old = hf_old_name(name)
    found = (n for n in (name, old, old.removeprefix(prefix)) if n in stored)
    return next(found, name)


def _matrix_name(ref: WeightRef, stored: Mapping[str, StoredTensor], architecture: str) -> str:
    """The architecture's own name, or the usual one: transformers 5 holds Mixtral's router so."""
    own = hf_name(ref, architecture)
    router = ref.role == "ffn_gate_inp" and own not in stored and hf_name(ref) in stored
    return hf_name(ref) if router else own


def _unfused(ref: WeightRef, tensor: StoredTensor, count: int, which: int) -> list[StoredTensor]:
    experts, rows, columns = ref.shape
    if tensor.shape != (experts, count * rows, columns):
        raise _shape_error(tensor, (experts, count * rows, columns))
    step = rows * tensor.row_bytes
    return [
        replace(
            tensor, shape=(rows, columns), offset=tensor.offset + (expert * count + which) * step
        )
        for expert in range(experts)
    ]


def _gathered(
    ref: WeightRef, stored: Mapping[str, StoredTensor], names: tuple[str, ...], where: str
) -> list[StoredTensor]:
    parts: list[StoredTensor] = []
    for name in names:
        tensor = stored.get(name)
        if tensor is None:
            raise FileFormatError(
                f"{where}: tensor {name!r} of shape {ref.shape[1:]} is missing, the config implies "
                f"{len(names)} experts in layer {ref.layer}. Fetch all files of one release again."
            )
        if tensor.shape != ref.shape[1:]:
            raise _shape_error(tensor, ref.shape[1:])
        if parts and tensor.type != parts[0].type:
            raise FileFormatError(
                f"{tensor.path}: tensor {quote(name)} is stored as {tensor.type.name}, expected "
                f"{parts[0].type.name} as its first expert. Store the experts of a layer alike."
            )
        parts.append(tensor)
    return parts


def _shape_error(tensor: StoredTensor, expected: tuple[int, ...]) -> FileFormatError:
    return FileFormatError(
        f"{tensor.path}: tensor {quote(tensor.name)} should have the shape {expected} by the "
        f"config, got {tensor.shape}. {_REMEDY}"
    )
