"""Architectures: one small file each, found by its name.

A file ``x.py`` here is the architecture ``x``. It defines

- ``Config``, a ``ModelConfig`` with the fields it reads;
- ``trace(config) -> Graph``, the computation;
- ``HF_CLASSES``, the class names of transformers it computes;
- ``GGUF_ROWS``, in which order GGUF files have the rows of rotated heads: ``"half"`` as in
  Hugging Face's files, or ``"interleaved"``;

and where they differ from its name

- ``HF_TYPE``, its ``model_type`` in config.json;
- ``GGUF_NAME``, its ``general.architecture``; where two share one, ``claims(file) -> bool`` of the
  more special says whether a file is its own.

Files whose name starts with an underscore are shared parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kvant.arch._config import ModelConfig
from kvant.arch._rope import Rope
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.gguf import GgufFile, Value, string
from kvant.files.source import quote
from kvant.graph.build import Graph

__all__ = [
    "Architecture",
    "ModelConfig",
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
    config: type[ModelConfig]
    trace: Callable[[Any], Graph]
    hf_classes: tuple[str, ...]
    gguf_rows: RowOrder
    hf_type: str
    gguf_name: str
    claims: Callable[[GgufFile], bool] | None = None

    def from_hf(self, values: Mapping[str, object], where: str) -> tuple[ModelConfig, list[str]]:
        """The config in a config.json's object, and the keys of it that were ignored.

        Raises:
            FileFormatError: a value is missing, of the wrong type or out of bounds.
            UnsupportedError: a value or key kvant does not know would change the computation.
        """
        return self.config.from_hf(values, where)

    def from_gguf(self, file: GgufFile) -> tuple[ModelConfig, list[str]]:
        """The config in a GGUF file, and the keys ignored; raises as ``from_hf``."""
        return self.config.from_gguf(file, self.gguf_name)

    def to_gguf(self, config: ModelConfig) -> dict[str, Value]:
        """The GGUF metadata that says architecture and config."""
        return {"general.architecture": string(self.gguf_name), **config.to_gguf(self.gguf_name)}

    def to_hf(self, config: ModelConfig) -> dict[str, object]:
        """The content of a config.json that says architecture and config.

        Raises:
            UnsupportedError: a value that a config.json has no place for.
        """
        named = {"architectures": [self.hf_classes[0]], "model_type": self.hf_type}
        return {**named, **config.to_hf()}

    def extra_tensors(self, config: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
        """Tensors a GGUF file has besides the weights, such as divisors of rope frequencies."""
        return config.tensors()


def architecture_names() -> tuple[str, ...]:
    """The names of all architectures, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name[0] != "_"))


def architecture(name: str) -> Architecture:
    """The architecture in the file ``name``, which must be one of ``architecture_names``."""
    module = importlib.import_module(f"{__name__}.{name}")
    return Architecture(
        name,
        module.Config,
        module.trace,
        module.HF_CLASSES,
        module.GGUF_ROWS,
        getattr(module, "HF_TYPE", name),
        getattr(module, "GGUF_NAME", name),
        getattr(module, "claims", None),
    )


def _all() -> list[Architecture]:
    return [architecture(name) for name in architecture_names()]


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
    known = {a.hf_type: a for a in _all()}
    if model_type not in known:
        raise _unknown(model_type, known, where)
    found = known[model_type]
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
    name = file.get_str("general.architecture")
    same = [a for a in _all() if a.gguf_name == name]
    if not same:
        raise _unknown(name, {a.gguf_name for a in _all()}, str(file.path))
    special = (a for a in same if a.claims is not None and a.claims(file))
    return next(special, None) or next(a for a in same if a.claims is None)


def _unknown(name: str, known: Iterable[str], where: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: the architecture should be one of {', '.join(sorted(known))}, got "
        f"{quote(name, 60)}. kvant does not compute it yet."
    )
