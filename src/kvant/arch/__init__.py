"""Architectures: one small file each, found by its name.

A file ``x.py`` here is the architecture ``x``: its ``model_type`` in config.json and its
``general.architecture`` in GGUF. It defines

- ``Config``, a ``DecoderConfig`` with the fields it reads;
- ``trace(config) -> Graph``, the computation;
- ``HF_CLASSES``, the class names of transformers it computes;
- ``GGUF_ROWS``, in which order GGUF files have the rows of rotated heads: ``"half"`` as in
  Hugging Face's files, or ``"interleaved"``.

Files whose name starts with an underscore are shared parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvant.arch._config import DecoderConfig
from kvant.arch._rope import ROPE_FACTORS, Rope
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import GgufFile, Value, string
from kvant.files.source import quote
from kvant.graph.ops import Graph

__all__ = [
    "ROPE_FACTORS",
    "Architecture",
    "DecoderConfig",
    "Rope",
    "RowOrder",
    "architecture",
    "architecture_names",
    "find_gguf",
    "find_hf",
]

RowOrder = Literal["half", "interleaved"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture file, as an object."""

    name: str
    config: type[DecoderConfig]
    trace: Callable[[Any], Graph]
    hf_classes: tuple[str, ...]
    gguf_rows: RowOrder

    def from_hf(self, values: Mapping[str, object], where: str) -> tuple[DecoderConfig, list[str]]:
        """The config in a config.json's object, and the keys of it that were ignored.

        Raises:
            FileFormatError: a value is missing, of the wrong type or out of bounds.
            UnsupportedError: a value or key kvant does not know would change the computation.
        """
        return self.config.from_hf(values, where)

    def from_gguf(self, file: GgufFile) -> tuple[DecoderConfig, list[str]]:
        """The config in a GGUF file, and the keys ignored; raises as ``from_hf``."""
        return self.config.from_gguf(file, self.name)

    def to_gguf(self, config: DecoderConfig) -> dict[str, Value]:
        """The GGUF metadata that says architecture and config."""
        return {"general.architecture": string(self.name), **config.to_gguf(self.name)}

    def extra_tensors(self, config: DecoderConfig) -> dict[str, npt.NDArray[np.float32]]:
        """Tensors a GGUF file has besides the weights: the divisors of rope frequencies."""
        factors = config.rope.factors
        return {ROPE_FACTORS: np.array(factors, np.float32)} if factors else {}


def architecture_names() -> tuple[str, ...]:
    """The names of all architectures, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name[0] != "_"))


def architecture(name: str) -> Architecture:
    """The architecture in the file ``name``, which must be one of ``architecture_names``."""
    module = importlib.import_module(f"{__name__}.{name}")
    return Architecture(name, module.Config, module.trace, module.HF_CLASSES, module.GGUF_ROWS)


def find_hf(values: Mapping[str, object], where: str) -> Architecture:
    """The architecture a config.json names.

    Raises:
        FileFormatError: it names none.
        UnsupportedError: kvant does not know it.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise FileFormatError(
            f"{where}: expected a 'model_type', got none. This is not the config.json of a "
            "transformers model; name the model's folder."
        )
    found = _find(model_type, where)
    classes = values.get("architectures")
    if classes is None:
        return found
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise FileFormatError(
            f"{where}: 'architectures' should be a list of names, got {quote(str(classes), 60)}. "
            "Correct it, or fetch the file again."
        )
    if not classes or any(name not in found.hf_classes for name in classes):
        named = ", ".join(quote(name, 60) for name in classes[:3]) or "none"
        raise UnsupportedError(
            f"{where}: the model class should be {' or '.join(found.hf_classes)}, got {named}. "
            "kvant converts language models that end in logits over the vocabulary."
        )
    return found


def find_gguf(file: GgufFile) -> Architecture:
    """The architecture a GGUF file names.

    Raises:
        FileFormatError: it names none.
        UnsupportedError: kvant does not know it.
    """
    return _find(file.get_str("general.architecture"), str(file.path))


def _find(name: str, where: str) -> Architecture:
    names = architecture_names()
    if name not in names:
        raise UnsupportedError(
            f"{where}: the architecture should be one of {', '.join(names)}, got "
            f"{quote(name, 60)}. kvant does not compute it yet."
        )
    return architecture(name)
