"""A mixture of a target's levels, one for each tensor, and its file.

A file is one JSON object with ``format``, ``target``, ``name`` and ``tensors``, an object of levels
by canonical name. What it does not name gets the level most weights have.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvant.checkpoint import Checkpoint
from kvant.errors import InputError
from kvant.files.config_json import read_json
from kvant.files.source import quote, show
from kvant.quant.candidate import FLOAT

__all__ = ["FORMAT", "LevelMixture", "mixture_text", "read_mixture"]

FORMAT = "kvant levels 1"
_MAX_BYTES = 16_000_000
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class LevelMixture:
    """Levels (or `FLOAT`) of tensors by canonical name, for one target."""

    target: str
    name: str
    levels: Mapping[str, str]

    def usual(self, checkpoint: Checkpoint) -> str | None:
        """The level of most weights; None where all stay floats.

        Raises:
            InputError: it names a tensor the model does not have.
        """
        counts: Counter[str] = Counter()
        for name, level in self.levels.items():
            weight = checkpoint.weights.get(name)
            if weight is None:
                raise InputError(
                    f"{checkpoint.path}: has no tensor {quote(name)}, which the recipe "
                    f"{self.name} names; it belongs to another model."
                )
            if level != FLOAT:
                counts[level] += weight.stored.elements
        return max(sorted(counts), key=lambda level: counts[level]) if counts else None

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {"target": self.target, "name": self.name, "tensors": dict(self.levels)}


def mixture_text(mixture: LevelMixture) -> str:
    """The content of its file: indented, ending in a newline."""
    content = {"format": FORMAT, **mixture.to_json()}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_mixture(path: str | os.PathLike[str], target: str) -> LevelMixture:
    """Read a file for ``target``; whether its levels are the target's is not looked at.

    Raises:
        FileFormatError: not JSON, or beyond all bounds.
        InputError: no such file; JSON that is no mixture of levels, or is for another target.
    """
    what, data = str(Path(path)), read_json(path, _MAX_BYTES)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = show(data.get("format") if isinstance(data, dict) else data)
        raise InputError(
            f"{what}: expected a recipe of the format {FORMAT!r}, got {got}. "
            f"`kvant quantize SRC --to {target} --bpw X --save-recipe FILE` writes one."
        )
    if data.get("target") != target:
        raise InputError(
            f"{what}: is a recipe for the target {show(data.get('target'))}, expected {target!r}."
        )
    name, tensors = data.get("name"), data.get("tensors")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or "/" in name:
        raise InputError(f"{what}: name: expected a short text without '/', got {show(name)}.")
    if not isinstance(tensors, dict) or not all(isinstance(v, str) for v in tensors.values()):
        raise InputError(
            f"{what}: tensors: expected an object of names and levels, got {show(tensors)}."
        )
    return LevelMixture(target, name, tensors)
