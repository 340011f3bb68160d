"""What a conversion reports: the files, and what became of each tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Artefact", "TensorReport"]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What became of one tensor. ``wanted`` differs from ``packing`` where rows did not fit."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    packing: str
    wanted: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Artefact:
    """Files that were written, or would be (``dry_run``): then ``seconds`` is None."""

    paths: tuple[Path, ...]
    recipe: str
    nbytes: int
    bits_per_weight: float
    parameters: int
    tensors: tuple[TensorReport, ...]
    notes: tuple[str, ...]
    seconds: float | None
    beside: tuple[Path, ...] = ()
    """The evidence and the model card."""

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "paths": [str(p) for p in self.paths],
            "beside": [str(p) for p in self.beside],
            "recipe": self.recipe,
            "bytes": self.nbytes,
            "bpw": self.bits_per_weight,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "source_type": t.source_type,
                    "packing": t.packing,
                    "wanted": t.wanted,
                    "bytes": t.nbytes,
                }
                for t in self.tensors
            ],
        }
