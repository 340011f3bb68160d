"""What will be written, to the byte, before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import xxhash

from kvant.arch import RowOrder
from kvant.calibration.importance import Importance
from kvant.checkpoint import Checkpoint, Weight, rotary_row_order
from kvant.errors import UsageError
from kvant.evidence import QUALITY, SOURCE, Making, quality_text
from kvant.export.gguf.keys import (
    CHECKSUMS,
    METADATA,
    SEARCHED,
    TABLE,
    ModelKeys,
    importance_keys,
    metadata_checksum,
    model_metadata,
    recipe_keys,
    split_keys,
    table_checksum,
)
from kvant.files.gguf import (
    DEFAULT_ALIGNMENT,
    TensorSpec,
    Value,
    ValueType,
    array,
    header_bytes,
    header_length,
    metadata_bytes,
    padded,
    split_name,
    string,
    uint64,
)
from kvant.packing import get
from kvant.quant.assign import Assignment, Slot, assign, parse_override
from kvant.quant.recipe import FLOATS, ModelShape, Recipe

__all__ = [
    "ModelKeys",
    "Plan",
    "PlannedTensor",
    "Shard",
    "model_metadata",
    "model_shape",
    "model_slots",
    "plan_export",
]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output: its packing, and where its weights come from."""

    assignment: Assignment
    weight: Weight | None
    values: npt.NDArray[np.float32] | None = None
    row_order: npt.NDArray[np.intp] | None = None
    importance: npt.NDArray[np.float32] | None = None
    """Of each column, where it is known and the tensor is quantised."""

    @property
    def name(self) -> str:
        """Name in the file."""
        return self.assignment.slot.name

    @property
    def spec(self) -> TensorSpec:
        """Name, type and shape as the header says them."""
        storage = get(self.assignment.packing).storage
        return TensorSpec(self.name, storage, self.assignment.slot.shape)

    @property
    def source_type(self) -> str:
        """Storage type in the source."""
        return self.weight.stored.stored_as if self.weight else "F32"

    @property
    def requantised(self) -> bool:
        """Whether weights that were quantised already are quantised once more."""
        return self.source_type not in FLOATS and self.source_type != self.assignment.packing


@dataclass(frozen=True, slots=True)
class Shard:
    """The tensors of one file, its metadata without checksums, and its exact size in bytes."""

    tensors: tuple[PlannedTensor, ...]
    metadata: Mapping[str, Value]
    size: int

    @property
    def offsets(self) -> list[int]:
        """Where each tensor starts in the file."""
        nbytes = [padded(t.spec.nbytes, DEFAULT_ALIGNMENT) for t in self.tensors]
        return list(accumulate(nbytes[:-1], initial=self.size - sum(nbytes)))

    def header(self, checksums: Sequence[int], quality: str | None = None) -> bytes:
        """What stands before the first tensor.

        ``quality`` is what was measured, in a file that has room for it (`Plan.reserved`).
        """
        sums = array(ValueType.UINT64, np.array(checksums, np.uint64))
        keys = {**self.metadata, CHECKSUMS: sums}
        if quality is not None and QUALITY in keys:
            keys[QUALITY] = string(quality)
            keys[METADATA] = uint64(metadata_checksum(keys))
        header, _ = header_bytes(keys, [t.spec for t in self.tensors])
        return header


@dataclass(frozen=True)
class Plan:
    """Everything about an export but the weights."""

    checkpoint: Checkpoint
    recipe: Recipe
    overrides: tuple[str, ...]
    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()
    """What of the source's tokenizer and sampling settings the file does not carry."""

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """All tensors in file order."""
        return tuple(t for s in self.shards for t in s.tensors)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(s.size for s in self.shards)

    @property
    def weights(self) -> int:
        """Number of weights written."""
        return sum(math.prod(t.assignment.slot.shape) for t in self.tensors)

    @property
    def reserved(self) -> bool:
        """Whether the header has room for what is measured once the tensors are written."""
        return QUALITY in self.shards[0].metadata

    @property
    def bits_per_weight(self) -> float:
        """Tensor bits over weights; metadata not counted."""
        return 8 * sum(t.spec.nbytes for t in self.tensors) / self.weights

    def file_names(self, name: str) -> list[str]:
        """What the files are called when the model is called ``name`` (with ``.gguf``)."""
        if len(self.shards) == 1:
            return [name]
        stem = name.removesuffix(".gguf")
        return [split_name(stem, i, len(self.shards)) for i in range(len(self.shards))]


def plan_export(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    overrides: Sequence[str] = (),
    split_size: int | None = None,
    model: ModelKeys | None = None,
    making: Making | None = None,
    reserve: bool = False,
    importance: Importance | None = None,
) -> Plan:
    """Decide every tensor's packing and every byte of the header but the checksums.

    Args:
        checkpoint: the model.
        recipe: which packing each tensor gets.
        overrides: ``REGEX=PACKING`` texts that go before the recipe.
        split_size: bytes a file may hold before the next one is begun.
        model: the model's keys if they are known already (`model_metadata`); computing them
            reads the tokenizer.
        making: what decides the codes besides the recipe; by default nothing does.
        reserve: leave room in the header for what will be measured.
        importance: what to weigh errors by, of this model (`calibration.belonging`).

    Raises:
        UsageError: an override or the split size does not suit the model.
        InputError: the tokenizer cannot be carried over.
    """
    parsed = [parse_override(text) for text in overrides]
    sources = {t.slot.name: t for t in _sources(checkpoint)}
    slots = [s.slot for s in sources.values()]
    tensors = [
        PlannedTensor(a, sources[a.slot.name].weight, sources[a.slot.name].values)
        for a in assign(recipe, slots, model_shape(checkpoint), parsed)
    ]
    tensors = [
        replace(
            t,
            row_order=_row_order(checkpoint, t.weight),
            importance=_importance(importance, t.assignment),
        )
        for t in tensors
    ]
    if model is None:
        model = model_metadata(checkpoint)
    keys = recipe_keys(recipe, overrides, {t.assignment.packing for t in tensors}, making)
    if importance is not None and any(t.importance is not None for t in tensors):
        # What names a method of its own says more than that errors were weighed.
        keys |= importance_keys(importance) | (making or Making()).to_metadata()
    keys[SOURCE] = string(_source_of(checkpoint, tensors, model.fingerprint))
    if reserve:
        keys[QUALITY] = string(quality_text(None))
    keys[TABLE] = uint64(table_checksum(t.spec for t in tensors))
    shards = tuple(_shards(tensors, model, keys, split_size))
    return Plan(checkpoint, recipe, tuple(overrides), shards, model.notes)


def _source_of(checkpoint: Checkpoint, tensors: Sequence[PlannedTensor], own: str) -> str:
    """The fingerprint to state: where nothing is rounded, a copy keeps what its source says."""
    if checkpoint.gguf is None or any(t.source_type != t.assignment.packing for t in tensors):
        return own
    return checkpoint.gguf.get_str(SOURCE, own)


def _importance(
    importance: Importance | None, assignment: Assignment
) -> npt.NDArray[np.float32] | None:
    """A tensor's importance, where its packing searches for scales; formulas take none."""
    if importance is None or assignment.packing not in SEARCHED:
        return None
    return importance.for_tensor(assignment.slot.name)


@dataclass(frozen=True, slots=True)
class _Source:
    slot: Slot
    weight: Weight | None = None
    values: npt.NDArray[np.float32] | None = None


def _sources(checkpoint: Checkpoint) -> Iterator[_Source]:
    refs = checkpoint.graph.weights
    for name, weight in checkpoint.weights.items():
        yield _Source(Slot(name, refs[name].role, refs[name].layer, weight.shape), weight)
    for name, values in checkpoint.architecture.extra_tensors(checkpoint.config).items():
        yield _Source(Slot(name, name.split(".")[0], None, values.shape), None, values)


def model_slots(checkpoint: Checkpoint) -> list[Slot]:
    """Every tensor a file of this model has."""
    return [source.slot for source in _sources(checkpoint)]


def model_shape(checkpoint: Checkpoint) -> ModelShape:
    """What a recipe's rules may ask about this model."""
    c = checkpoint.config
    return ModelShape(
        architecture=checkpoint.architecture.gguf_name,
        layers=c.num_hidden_layers,
        queries_per_kv_head=c.num_attention_heads // c.num_key_value_heads,
        tied_output=c.tie_word_embeddings,
        experts=getattr(c, "num_experts", 0),
    )


def _row_order(checkpoint: Checkpoint, weight: Weight | None) -> npt.NDArray[np.intp] | None:
    """Where the rows of one head come from, if this file format has them in another order."""
    wanted: RowOrder = checkpoint.architecture.gguf_rows
    if weight is None or weight.rotary is None or weight.rotary.order == wanted:
        return None
    rows = weight.shape[0] // weight.rotary.heads
    return rotary_row_order(rows, 1, weight.rotary.order, wanted)


def _shards(
    tensors: Sequence[PlannedTensor],
    model: ModelKeys,
    recipe_keys: Mapping[str, Value],
    split_size: int | None,
) -> Iterator[Shard]:
    groups = _groups(tensors, model, recipe_keys, split_size)
    for number, group in enumerate(groups):
        own: dict[str, Value] = {}
        if len(groups) > 1:
            own = split_keys(number, len(groups), len(tensors))
        sums = {CHECKSUMS: array(ValueType.UINT64, np.zeros(len(group), np.uint64))}
        length = len(metadata_bytes({**own, **sums}))
        if number == 0:  # the other shards only say which part they are
            rest = {**recipe_keys, **own}
            checksum = xxhash.xxh64(model.encoded)
            checksum.update(metadata_bytes(rest))
            rest[METADATA] = uint64(checksum.intdigest())
            own = {**model.values, **rest}
            length = len(model.encoded) + len(metadata_bytes({**rest, **sums}))
        yield Shard(tuple(group), own, _file_size(group, length))


def _file_size(tensors: Sequence[PlannedTensor], metadata_length: int) -> int:
    """Exact bytes of a file: header, tensors and padding."""
    header = header_length(metadata_length, [t.spec for t in tensors])
    return header + sum(padded(t.spec.nbytes, DEFAULT_ALIGNMENT) for t in tensors)


def _groups(
    tensors: Sequence[PlannedTensor],
    model: ModelKeys,
    recipe_keys: Mapping[str, Value],
    split_size: int | None,
) -> list[list[PlannedTensor]]:
    """Tensors in order, a new group whenever the next one's file could pass ``split_size``."""
    if split_size is None:
        return [list(tensors)]
    none = {CHECKSUMS: array(ValueType.UINT64, np.zeros(0, np.uint64))}
    later = header_length(len(metadata_bytes({**split_keys(0, 1, 1), **none})), [])
    groups: list[list[PlannedTensor]] = [[]]
    first = metadata_bytes({**recipe_keys, METADATA: uint64(0)})
    filled = later + len(model.encoded) + len(first)
    for tensor in tensors:
        # Its data, its entry and its checksum; rounded up, so a file may end some bytes early.
        nbytes = padded(tensor.spec.nbytes, DEFAULT_ALIGNMENT) + header_length(8, [tensor.spec])
        if groups[-1] and filled + nbytes > split_size:
            groups.append([])
            filled = later
        if filled + nbytes > split_size:
            raise UsageError(
                f"--split-size {split_size} bytes is less than a file with only tensor "
                f"{tensor.name} takes ({filled + nbytes} bytes); a tensor cannot be split. "
                "Allow at least that."
            )
        groups[-1].append(tensor)
        filled += nbytes
    if len(groups) > 65_535:
        raise UsageError(
            f"--split-size {split_size} gives {len(groups)} files, GGUF allows 65535; "
            "use a larger size."
        )
    return groups
