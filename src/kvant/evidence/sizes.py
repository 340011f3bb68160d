"""Bits per weight, over all tensors and by what they are for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["CLASSES", "ClassSize", "SizedTensor", "Sizes", "measure_sizes", "tensor_class"]

CLASSES = ("embedding", "attention", "ffn", "output", "norms", "other")
"""Classes of tensors, in the order of tables. A tied embedding, which is the output matrix too,
counts as embedding; biases count with the norms, as vectors that are never quantised."""


class _Type(Protocol):
    @property
    def name(self) -> str: ...


class SizedTensor(Protocol):
    """What a header knows of a tensor, read or to be written."""

    @property
    def name(self) -> str:
        """Canonical name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major shape."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        ...

    @property
    def type(self) -> _Type:
        """Storage type."""
        ...


@dataclass(frozen=True, slots=True)
class ClassSize:
    """One class of tensors: number of weights, bytes, and tensors by packing."""

    weights: int
    nbytes: int
    packings: Mapping[str, int]

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.nbytes / self.weights if self.weights else 0.0

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "weights": self.weights,
            "bytes": self.nbytes,
            "bpw": self.bpw,
            "packings": dict(self.packings),
        }


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of all files, and of the tensors by class."""

    nbytes: int
    classes: Mapping[str, ClassSize]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(c.weights for c in self.classes.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, metadata and padding not counted."""
        return sum(c.nbytes for c in self.classes.values())

    @property
    def bpw(self) -> float:
        """Tensor bits over weights."""
        return 8 * self.tensor_bytes / self.weights if self.weights else 0.0

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "bytes": self.nbytes,
            "tensor_bytes": self.tensor_bytes,
            "weights": self.weights,
            "bpw": self.bpw,
            "classes": {name: c.to_json() for name, c in self.classes.items()},
        }


def tensor_class(name: str, shape: tuple[int, ...]) -> str:
    """The class of a tensor, by its canonical name and shape."""
    if len(shape) < 2:
        return "norms"
    role = name.removesuffix(".weight").rpartition(".")[2]
    if role.startswith(("token_embd", "position_embd", "token_types")):
        return "embedding"
    if role.startswith("output") or role == "cls":
        return "output"
    if role.startswith("attn"):
        return "attention"
    return "ffn" if role.startswith("ffn") else "other"


def measure_sizes(tensors: Iterable[SizedTensor], nbytes: int) -> Sizes:
    """Add up tensors by class; ``nbytes`` are those of all files."""
    groups: dict[str, list[SizedTensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor_class(tensor.name, tensor.shape), []).append(tensor)
    classes = {
        name: ClassSize(
            sum(math.prod(t.shape) for t in group),
            sum(t.nbytes for t in group),
            dict(sorted(Counter(t.type.name for t in group).items())),
        )
        for name in CLASSES
        if (group := groups.get(name))
    }
    return Sizes(nbytes, classes)
