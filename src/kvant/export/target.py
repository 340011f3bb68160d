"""What a target is: a folder below this one, whose module ``target`` has a ``TARGET`` that writes.

A target writes a folder of files that a runtime loads as it is: quantised at one of its levels, or
unquantised. GGUF, a single file with recipes of its own, is older than this and stays beside it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from kvant.calibration.importance import Importance
from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.packing.groups import Groups
from kvant.packing.spec import PrecisionClass
from kvant.quant.candidate import Candidate
from kvant.quant.methods import Quantised
from kvant.quant.presets import PRESETS

__all__ = [
    "TARGETS",
    "Choices",
    "Dtype",
    "Layerwise",
    "Level",
    "Progress",
    "Target",
    "TargetOptions",
    "TargetResult",
    "TensorLevel",
    "find_level",
    "find_target",
]

TARGETS = ("hf", "mlx", "onnx", "vllm")
"""Folders that have a target; a new one is one word here."""

Dtype = Literal["float32", "float16", "bfloat16"]

Progress = Callable[[int, int, str], None]
"""Called with weights done, weights in all, and the tensor at hand."""

Layerwise = Callable[[Mapping[str, Groups]], Iterator[tuple[str, Quantised]]]
"""Quantises linears by what they are fed, layer by layer: given the grid of each by canonical name,
yields name and codes, in the model's order. Not every name it is given comes back: what is not
yielded (embeddings, stacked experts) the target quantises by itself."""


@dataclass(frozen=True, slots=True)
class Level:
    """One way a target stores weights.

    ``bits`` are those of a code; ``bits_per_weight`` counts scales too; ``group`` weights of a row
    share a scale, None where that is a whole row, or nothing is grouped. ``fast``: the target's
    common runtimes run it at the speed its bytes allow; searches take these unless told otherwise.
    """

    name: str
    bits: int
    bits_per_weight: float
    group: int | None
    precision_class: PrecisionClass
    good_for: str
    fast: bool = True


@dataclass(frozen=True, slots=True)
class Choices:
    """What a search may choose from.

    Attributes:
        candidates: of each tensor by canonical name, fewest bytes first; where there are several,
            the last leaves it as floats.
        together: names of tensors that have to get the same.
        plain: scales follow the format's own formula unless importance is given.
    """

    candidates: Mapping[str, tuple[Candidate, ...]]
    together: tuple[tuple[str, ...], ...] = ()
    plain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """What a user may say about how a model is written.

    Attributes:
        dtype: of everything that is not quantised, scales included; None takes the source's own,
            bfloat16 where that is quantised.
        importance: weighs errors while scales are searched; None takes the target's plain formula.
        layerwise: chooses the codes of linears by what they are fed; set at efforts above "fast".
        overrides: ``REGEX=LEVEL`` texts that go before the level.
        mixture: levels (or ``float``) by canonical name, which go before the level too, but after
            the overrides.
        threads: processors to use; the bytes do not depend on it.
        max_memory: most bytes for hidden states and buffers, where the target has a choice.
        split_size: bytes a weights file may hold before the next is begun; None for the target's
            own.
        verify: read back what was written and compare it with the source before it appears; the
            result's notes say what was found, and by which bound.
        force: replace an existing folder.
        dry_run: decide everything, write nothing.
        progress: see `Progress`.
        settings: what only one target knows, by name; a target refuses names it does not know.
    """

    dtype: Dtype | None = None
    importance: Importance | None = None
    layerwise: Layerwise | None = None
    overrides: tuple[str, ...] = ()
    mixture: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    max_memory: int | None = None
    split_size: int | None = None
    verify: bool = True
    force: bool = False
    dry_run: bool = False
    progress: Progress | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorLevel:
    """What became of one tensor: by its canonical name, stored as ``level`` in ``nbytes``."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    level: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TargetResult:
    """A folder that was written.

    ``files`` are all of it, ``nbytes`` their sizes together, ``bits_per_weight`` those of the
    weights alone; ``notes`` are sentences a user should read. ``seconds`` is None for a dry run.
    """

    path: Path
    files: tuple[Path, ...]
    nbytes: int
    bits_per_weight: float
    tensors: tuple[TensorLevel, ...]
    notes: tuple[str, ...]
    seconds: float | None


class Target(Protocol):
    """A format of folders."""

    @property
    def name(self) -> str:
        """What ``--to`` calls it."""
        ...

    def levels(self) -> Sequence[Level]:
        """The levels it can quantise to, fewest bits first; none for a target of floats."""
        ...

    def choices(
        self, checkpoint: Checkpoint, levels: Sequence[str], options: TargetOptions
    ) -> Choices:
        """What each tensor may be stored as, of these levels; decided without reading a weight.

        Raises:
            UsageError, UnsupportedError: as `write`.
        """
        ...

    def write(
        self, checkpoint: Checkpoint, out: Path, level: str | None, options: TargetOptions
    ) -> TargetResult:
        """Write ``checkpoint`` to the folder ``out``; unquantised where ``level`` is None.

        Whatever the target cannot hold is refused before a weight is read. The folder appears
        under its name when it is whole and on disk.

        Raises:
            UsageError: no such level, or an option that does not suit the model.
            UnsupportedError: the target's runtimes do not compute this model.
            InputError: the source's weights are not usable.
            OutputError: the folder exists, no space, no permission.
        """
        ...


def find_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"There is no target {name!r}; choose gguf, {', '.join(TARGETS)}.")
    try:
        module = importlib.import_module(f"kvant.export.{name}.target")
    except ModuleNotFoundError as missing:
        if missing.name not in (f"kvant.export.{name}", f"kvant.export.{name}.target"):
            raise
        raise UsageError(f"This installation of kvant has no target {name!r}.") from None
    target: Target = module.TARGET
    return target


def find_level(target: Target, name: str) -> Level:
    """The level of ``target`` called ``name``, in any case.

    Raises:
        UsageError: there is none.
    """
    levels = target.levels()
    for level in levels:
        if level.name == name.lower():
            return level
    if not levels:
        raise UsageError(
            f"Target {target.name} holds floats only; use `kvant convert --to {target.name}`."
        )
    of_gguf = any(recipe.name == name.upper() for recipe in PRESETS)
    hint = f" {name} is a recipe for GGUF files: leave --to {target.name} out." if of_gguf else ""
    raise UsageError(
        f"Target {target.name} has no level {name!r}; choose "
        f"{', '.join(x.name for x in levels)}.{hint}"
    )
