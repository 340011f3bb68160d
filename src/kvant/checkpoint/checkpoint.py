"""A checkpoint: a model on disk, checked against the graph of its architecture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kvant.arch import Architecture, ModelConfig, RowOrder
from kvant.checkpoint.info import ModelInfo
from kvant.checkpoint.pooling import Pooling
from kvant.checkpoint.weights import Rotary, Weight
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import GgufFile
from kvant.files.source import quote
from kvant.files.tensor import StackedTensor, StoredTensor
from kvant.graph.build import Graph
from kvant.graph.find import rotary_weights
from kvant.graph.ir import WeightRef
from kvant.packing import known

if TYPE_CHECKING:
    from kvant.tokenizer.definition import TokenizerDefinition

__all__ = ["Checkpoint", "StorageCount", "check_layers", "count_storage", "match_weights"]


@dataclass(frozen=True, slots=True)
class StorageCount:
    """How much of a checkpoint is stored as one type."""

    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk whose config is understood and whose weights are all there.

    ``weights`` are in the order the graph uses them, by canonical name. A model with tied
    embeddings has no ``output.weight``: its graph uses ``token_embd.weight`` twice.
    ``ignored`` are config keys without effect, ``unused`` tensors that are not part of the
    computation, ``notes`` sentences for the report.
    """

    path: Path
    format: Literal["hf", "gguf", "onnx"]
    architecture: Architecture
    config: ModelConfig
    graph: Graph
    weights: Mapping[str, Weight]
    info: ModelInfo
    files: tuple[Path, ...]
    ignored: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    gguf: GgufFile | None = field(default=None, repr=False)
    pooling: Pooling | None = None
    """How states become a text's vector, where the checkpoint says so."""

    @property
    def parameters(self) -> int:
        """Number of weights, each stored one counted once."""
        return sum(weight.stored.elements for weight in self.weights.values())

    @property
    def told(self) -> tuple[str, ...]:
        """Sentences for a report: ``notes``, and what of config and tensors was left aside."""
        found = list(self.notes)
        if self.ignored:
            listed = ", ".join(self.ignored[:8]) + (" …" if len(self.ignored) > 8 else "")
            found.append(f"Config keys without effect were ignored: {listed}.")
        if self.unused:
            listed = ", ".join(self.unused[:4]) + (" …" if len(self.unused) > 4 else "")
            found.append(f"Tensors that are not part of the computation were left out: {listed}.")
        return tuple(found)

    def storage(self) -> dict[str, StorageCount]:
        """What the weights are stored as, by type name, most bytes first."""
        return count_storage(weight.stored for weight in self.weights.values())

    def tokenizer(self, *, pre: str | None = None) -> TokenizerDefinition | None:
        """Read the tokenizer; None where the checkpoint has none.

        Args:
            pre: llama.cpp's name of the pre-tokenizer, where the source's cannot be determined.

        Raises:
            InputError: there is one, but it cannot be used.
        """
        if self.gguf is not None:
            if "tokenizer.ggml.model" not in self.gguf.metadata:
                return None
            from kvant.tokenizer.gguf_meta import from_metadata

            return from_metadata(self.gguf)
        from kvant.tokenizer.hf_files import TOKENIZER_FILES

        if not any((self.path / name).exists() for name in TOKENIZER_FILES):
            return None
        from kvant.tokenizer.hf import from_folder

        return from_folder(self.path, self.config.vocab_size, pre=pre)


def count_storage(tensors: Iterable[StoredTensor]) -> dict[str, StorageCount]:
    """How much is stored as what, by type name, most bytes first."""
    groups: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.stored_as, []).append(tensor)
    counts = {
        name: StorageCount(
            sum(map(_parts, group)), sum(t.elements for t in group), sum(t.nbytes for t in group)
        )
        for name, group in groups.items()
    }
    return dict(sorted(counts.items(), key=lambda item: -item[1].nbytes))


def _parts(tensor: StoredTensor) -> int:
    return len(tensor.parts) if isinstance(tensor, StackedTensor) else 1


def check_layers(layers: int, tensors: int, where: str) -> None:
    """Refuse a model with more layers than tensors, before a graph of thousands is traced for it.

    Raises:
        FileFormatError: even one tensor a layer would not be there.
    """
    if layers > tensors:
        raise FileFormatError(
            f"{where}: expected weights for the {layers:,} layers the model says it has, got "
            f"{tensors:,} tensors. Files are missing, or the number of layers is wrong."
        )


def match_weights(
    graph: Graph,
    stored: Mapping[str, StoredTensor],
    other: Mapping[str, str],
    names: Mapping[str, str],
    rows: RowOrder,
    where: str,
) -> dict[str, Weight]:
    """Find every weight the graph declares.

    Args:
        graph: the traced model.
        stored: the container's tensors by their own names.
        other: tensors of types no reader knows: name to type.
        names: canonical name to the container's name.
        rows: the order in which this container has the rows of rotated heads.
        where: names the source in messages.

    Raises:
        FileFormatError: a weight is missing, or has another shape than the config implies.
        UnsupportedError: a weight is of a type kvant cannot decode.
    """
    missing = [ref for ref in graph.weights.values() if names[ref.name] not in stored]
    if missing:
        raise _missing_error(missing, other, names, where)
    heads = rotary_weights(graph)
    weights: dict[str, Weight] = {}
    for ref in graph.weights.values():
        tensor = stored[names[ref.name]]
        if tensor.shape != ref.shape:
            raise FileFormatError(
                f"{tensor.path}: tensor {quote(tensor.name)} should have the shape {ref.shape} by "
                f"the config, got {tensor.shape}. Config and weights are not of one model; fetch "
                "both again."
            )
        if not known(tensor.type.name):
            raise _type_error(tensor.name, tensor.type.name, where)
        rotary = Rotary(heads[ref.name], rows) if ref.name in heads else None
        weights[ref.name] = Weight(ref.name, tensor, rotary)
    return weights


def check_unused(names: list[str], where: str) -> None:
    """Refuse tensors that look like weights of the computation but are not in the graph.

    Raises:
        UnsupportedError: names them.
    """
    if names:
        listed = ", ".join(map(quote, names[:3])) + (" …" if len(names) > 3 else "")
        raise UnsupportedError(
            f"{where}: expected only the weights that the config implies, got {len(names)} more: "
            f"{listed}. They would change what the model computes, and kvant does not know how. "
            "Check that config and weights are of one model."
        )


def _missing_error(
    missing: list[WeightRef], other: Mapping[str, str], names: Mapping[str, str], where: str
) -> FileFormatError | UnsupportedError:
    first = missing[0]
    name = names[first.name]
    if name in other:
        return _type_error(name, other[name], where)
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    hint = "Fetch all files of one release again."
    if first.role == "output":
        hint = "If the model shares it with the embedding, set 'tie_word_embeddings' to true."
    return FileFormatError(
        f"{where}: tensor {name!r} of shape {first.shape}{more} is missing, the config implies it. "
        f"{hint}"
    )


def _type_error(name: str, type_name: str, where: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: tensor {quote(name)} is of type {quote(type_name)}, expected floats or one of "
        "the packings that `kvant formats` lists. Get the checkpoint in one of those."
    )
