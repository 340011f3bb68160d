"""What a file's header says: the model's own keys, how the file was made, and its checksums."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kvant.calibration.imatrix import importance_bytes
from kvant.calibration.importance import Importance
from kvant.checkpoint import Checkpoint, fingerprint
from kvant.checkpoint.pooling import POOLING_KEY, POOLING_TYPES
from kvant.checkpoint.sampling import sampling_of
from kvant.errors import UsageError
from kvant.evidence import Making
from kvant.files.gguf import (
    TensorSpec,
    Value,
    int32,
    metadata_bytes,
    string,
    strings,
    uint16,
    uint32,
)
from kvant.files.tensor import StoredTensor
from kvant.packing import all_packings
from kvant.quant.presets import PRESETS
from kvant.quant.recipe import FLOATS, Recipe
from kvant.version import __version__

__all__ = [
    "CHECKSUMS",
    "METADATA",
    "SEARCHED",
    "TABLE",
    "ModelKeys",
    "importance_keys",
    "metadata_checksum",
    "model_metadata",
    "recipe_keys",
    "split_keys",
    "table_checksum",
]

CHECKSUMS = "kvant.tensor.xxh64"
"""Metadata key: the XXH64 of each tensor's bytes in file order, as llama-gguf-hash computes it."""

TABLE = "kvant.tensor.table"
"""Metadata key: the XXH64 of names, types and shapes of all tensors in order (`table_checksum`).
Where it is not that of the file, another tool wrote the file and only copied our keys."""

METADATA = "kvant.metadata.xxh64"
"""Metadata key: the XXH64 of all other metadata of the (first) file as it is stored, checksums
excepted."""

SEARCHED = frozenset(p.name for p in all_packings() if p.searches)
"""Packings whose scales are searched for, so that importance makes a difference."""

_QUANTISATION_VERSION = 2  # of ggml's block layouts, unchanged since May 2023

# Keys of a GGUF source that do not describe the model but that one file.
_OF_ONE_FILE = re.compile(
    r"split\.|kvant\.|quantize\.|general\.(file_type|quantization_version|alignment)$"
)


@dataclass(frozen=True, slots=True)
class ModelKeys:
    """Metadata that does not depend on the recipe, and its bytes in a header.

    ``fingerprint`` is the source's; ``notes`` say what of the source it does not carry.
    """

    values: Mapping[str, Value]
    encoded: bytes
    fingerprint: str
    notes: tuple[str, ...] = ()


def model_metadata(checkpoint: Checkpoint, *, pre_tokenizer: str | None = None) -> ModelKeys:
    """The keys that do not depend on the recipe: name and origin, sampling, config, tokenizer,
    and the source's fingerprint.

    A GGUF source's own keys are kept as they are, but for those about that one file.

    Raises:
        InputError: the tokenizer cannot be read, or llama.cpp's name of its pre-tokenizer cannot
            be determined and was not given.
        UsageError: it was given for a GGUF file, which has its own.
    """
    if checkpoint.gguf is not None:
        if pre_tokenizer is not None:
            raise UsageError(
                f"{checkpoint.path}: --pre-tokenizer is for Hugging Face folders, got a GGUF file, "
                "whose tokenizer is kept as it is; leave the option out."
            )
        kept = {k: v for k, v in checkpoint.gguf.metadata.items() if not _OF_ONE_FILE.match(k)}
        return _model_keys(kept, fingerprint(checkpoint))
    sampling, notes = sampling_of(checkpoint.path)
    keys = checkpoint.architecture.to_gguf(checkpoint.config)
    keys = {
        "general.architecture": keys["general.architecture"],
        **checkpoint.info.to_gguf(),
        **sampling,
        **keys,
    }
    if checkpoint.pooling is not None:
        key = f"{checkpoint.architecture.gguf_name}.{POOLING_KEY}"
        keys[key] = uint32(POOLING_TYPES[checkpoint.pooling])
    tokenizer = checkpoint.tokenizer(pre=pre_tokenizer)
    if tokenizer is not None:
        from kvant.tokenizer.gguf_meta import to_metadata

        keys.update(to_metadata(tokenizer))
        notes += tokenizer.notes
    return _model_keys(keys, fingerprint(checkpoint), notes)


def _model_keys(values: Mapping[str, Value], source: str, notes: tuple[str, ...] = ()) -> ModelKeys:
    return ModelKeys(values, metadata_bytes(values), source, notes)


def table_checksum(tensors: Iterable[TensorSpec | StoredTensor]) -> int:
    """What ``kvant.tensor.table`` says of these tensors."""
    lines = (f"{t.name} {t.type.name} {'x'.join(map(str, t.shape))}\n" for t in tensors)
    return xxhash.xxh64_intdigest("".join(lines).encode())


def metadata_checksum(metadata: Mapping[str, Value]) -> int:
    """What ``kvant.metadata.xxh64`` says of these keys."""
    kept = {k: v for k, v in metadata.items() if k not in (METADATA, CHECKSUMS)}
    return xxhash.xxh64_intdigest(metadata_bytes(kept))


def recipe_keys(
    recipe: Recipe, overrides: Sequence[str], packings: Set[str], making: Making | None
) -> dict[str, Value]:
    """What a file says of its recipe, and of what decided the codes besides."""
    keys = {
        "general.file_type": uint32(recipe.file_type),
        "kvant.version": string(__version__),
        "kvant.recipe": string(recipe.name),
    }
    if packings - FLOATS:
        keys["general.quantization_version"] = uint32(_QUANTISATION_VERSION)
        searched = bool(packings & SEARCHED)
        keys["kvant.method"] = string("scale search" if searched else "plain formula")
        keys.update((making or Making()).to_metadata())
    if recipe not in PRESETS:  # a preset's name says it all
        keys["kvant.recipe.definition"] = string(json.dumps(recipe.to_json(), sort_keys=True))
    if overrides:
        keys["kvant.recipe.overrides"] = strings(overrides)
    return keys


def importance_keys(importance: Importance) -> dict[str, Value]:
    """What a file says of the importance it was made with: llama.cpp's keys, and a checksum."""
    digest = importance.sha256 or hashlib.sha256(importance_bytes(importance)).hexdigest()
    keys = {
        "kvant.method": string("weighted scale search"),
        "kvant.importance.sha256": string(digest),
        "quantize.imatrix.entries_count": uint32(len(importance.sums)),
        "quantize.imatrix.chunks_count": uint32(importance.chunks),
    }
    if importance.file:
        keys["quantize.imatrix.file"] = string(importance.file)
    if importance.datasets:
        keys["quantize.imatrix.dataset"] = string(Path(importance.datasets[0]).name)
    return keys


def split_keys(number: int, count: int, tensors: int) -> dict[str, Value]:
    """What each of several files says of itself: which it is, of how many."""
    return {
        "split.no": uint16(number),
        "split.count": uint16(count),
        "split.tensors.count": int32(tensors),
    }
