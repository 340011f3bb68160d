"""A model as it is to be measured: its format, and what is known of it without running it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.checkpoint import Checkpoint, open_checkpoint
from kvant.checkpoint.kind import FORMAT_NAMES, ModelFormat, model_format
from kvant.errors import InputError, KvantError
from kvant.files.config_json import read_json
from kvant.files.decoded import DecodedTensor
from kvant.files.tensor import StackedTensor, StoredTensor
from kvant.runtimes.onnx_names import find_graph, genai_model

if TYPE_CHECKING:
    from kvant.tokenizer.definition import TokenizerDefinition

__all__ = ["Artefact", "open_artefact"]


@dataclass(frozen=True, slots=True)
class Artefact:
    """What lies at a path.

    ``checkpoint`` is None for an ONNX folder whose weights kvant cannot read back (another tool
    wrote it, perhaps); ``refusal`` says why, and its own runtime can still run it.
    """

    path: Path
    format: ModelFormat
    checkpoint: Checkpoint | None
    refusal: KvantError | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.path.name

    @property
    def folder(self) -> Path:
        """Where its tokenizer and configs are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def context(self) -> int | None:
        """Most tokens of a sequence, where that is known."""
        if self.checkpoint is not None:
            return self.checkpoint.config.max_position_embeddings
        return _number(genai_model(self.folder), "context_length") or _number(
            _config(self.folder), "max_position_embeddings"
        )

    @property
    def vocab_size(self) -> int | None:
        """Length of a row of logits, where that is known."""
        if self.checkpoint is not None:
            return self.checkpoint.config.vocab_size
        return _number(genai_model(self.folder), "vocab_size") or _number(
            _config(self.folder), "vocab_size"
        )

    @property
    def dequantised(self) -> bool:
        """Whether its weights are computed when kvant itself runs it, from codes of others."""
        stored = [] if self.checkpoint is None else self.checkpoint.weights.values()
        return any(_decoded(weight.stored) for weight in stored)

    @property
    def quantised(self) -> bool:
        """Whether any weight is stored as something else than floats of 16 bits or more."""
        stored = [] if self.checkpoint is None else self.checkpoint.weights.values()
        floats = ("F32", "F16", "BF16")
        return self.dequantised or any(w.stored.type.name not in floats for w in stored)

    def tokenizer(self) -> TokenizerDefinition | None:
        """Read its tokenizer; None where it has none.

        Raises:
            InputError: there is one, but it cannot be used.
        """
        if self.checkpoint is not None:
            return self.checkpoint.tokenizer()
        from kvant.tokenizer.hf import from_folder
        from kvant.tokenizer.hf_files import TOKENIZER_FILES

        size = self.vocab_size
        if size is None or not any((self.folder / name).exists() for name in TOKENIZER_FILES):
            return None
        return from_folder(self.folder, size)

    def files(self) -> list[Path]:
        """The files its weights are in; of ONNX, the graph too, which is part of the model."""
        if self.checkpoint is not None and self.format == "onnx":
            return sorted(self.checkpoint.files)
        if self.checkpoint is not None:
            return sorted({w.stored.path for w in self.checkpoint.weights.values()})
        graph = find_graph(self.path)
        beside = sorted(graph.parent.glob(f"{graph.name}*")) + sorted(
            graph.parent.glob(f"{graph.stem}*.data")
        )
        return sorted({graph, *(path for path in beside if path.is_file())})

    def nbytes(self) -> int:
        """Size of those files."""
        return sum(path.stat().st_size for path in self.files())

    def bpw(self) -> float | None:
        """Bits a weight in the file, scales and all, where the weights are known."""
        if self.checkpoint is None:
            return None
        stored = [w.stored for w in self.checkpoint.weights.values()]
        return 8 * sum(t.file_bytes for t in stored) / sum(t.elements for t in stored)


def open_artefact(path: Path) -> Artefact:
    """Open what lies at a path.

    Raises:
        InputError: there is nothing, or it is not a model; see `kvant.checkpoint.open_checkpoint`.
    """
    try:
        os.stat(path)  # noqa: PTH116 - as `open` sees it
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path}: no such file or folder. Name a GGUF file, or a folder with a Hugging Face, "
            "MLX, ONNX or compressed-tensors model."
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}. Check the path.") from None
    except ValueError:
        raise InputError(f"{path!r}: no path has zero bytes. Check it.") from None
    kind = model_format(path)
    if kind != "onnx":
        return Artefact(path, kind, open_checkpoint(path))
    find_graph(path)  # or nothing can run it
    try:
        return Artefact(path, kind, open_checkpoint(path))
    except KvantError as error:
        return Artefact(path, kind, None, error)


def describe(artefact: Artefact) -> str:
    """The path and what it is, for messages."""
    return f"{artefact.path} ({FORMAT_NAMES[artefact.format]})"


def _decoded(stored: StoredTensor) -> bool:
    parts = stored.parts if isinstance(stored, StackedTensor) else (stored,)
    return any(isinstance(part, DecodedTensor) and part.quantised for part in parts)


def _config(folder: Path) -> Mapping[str, object]:
    path = folder / "config.json"
    values = read_json(path) if path.exists() else {}
    return values if isinstance(values, dict) else {}


def _number(values: Mapping[str, object], key: str) -> int | None:
    found = values.get(key)
    return found if type(found) is int and found > 0 else None
