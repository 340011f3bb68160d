"""vLLM's levels, and what config.json says of them.

Source: compressed-tensors' ``QuantizationScheme`` and its preset schemes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kvant.export.target import Level
from kvant.packing.groups import Groups, ScaleType

__all__ = ["LEVELS", "SCHEMES", "Format", "Scheme"]

Format = Literal["pack-quantized", "int-quantized", "float-quantized"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the linears of a level are stored; ``group`` None shares a scale over a row.

    ``activations`` says that inputs are rounded too when the model runs, each token by itself.
    """

    name: str
    format: Format
    bits: int
    group: int | None = None
    symmetric: bool = True
    activations: bool = False
    good_for: str = ""

    @property
    def bits_per_weight(self) -> float:
        """With scales of 16 bits; those of rows are too few to count."""
        if self.group is None:
            return float(self.bits)
        return self.bits + (16 if self.symmetric else 16 + self.bits) / self.group

    def grid(self, columns: int, scale: ScaleType) -> Groups:
        """The grid of a matrix with rows of ``columns`` weights."""
        block = self.group or columns
        if self.format == "float-quantized":
            return Groups(self.name, 8, block, "none", scale, "E4M3")
        return Groups(self.name, self.bits, block, "middle" if self.symmetric else "integer", scale)

    def fits(self, columns: int) -> bool:
        """Whether rows are whole groups."""
        return columns % (self.group or 1) == 0

    def config(self, targets: list[str]) -> dict[str, object]:
        """A config group: for which modules, weights and inputs are quantised how."""
        kind = "float" if self.format == "float-quantized" else "int"
        weights = _arguments(
            kind, self.bits, "channel" if self.group is None else "group", symmetric=self.symmetric
        )
        inputs = None
        if self.activations:
            inputs = {**_arguments(kind, 8, "token", symmetric=True), "dynamic": True}
            inputs["observer"] = None
        return {
            "targets": targets,
            "weights": {**weights, "group_size": self.group},
            "input_activations": inputs,
            "output_activations": None,
            "format": self.format,
        }


def _arguments(kind: str, bits: int, strategy: str, *, symmetric: bool) -> dict[str, object]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": None,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }


def _schemes() -> list[Scheme]:
    found = [
        Scheme("w8a16", "pack-quantized", 8, good_for="weights as good as the original"),
        Scheme(
            *("w8a8", "int-quantized", 8),
            activations=True,
            good_for="many requests at once on GPUs with int8",
        ),
        Scheme(
            *("fp8", "float-quantized", 8),
            activations=True,
            good_for="many requests at once on GPUs with FP8",
        ),
    ]
    for group in (128, 64, 32):
        ending = "" if group == 128 else f"-g{group}"
        found.append(
            Scheme(
                *(f"w4a16{ending}", "pack-quantized", 4, group),
                good_for="few requests at once; the fastest kernels",
            )
        )
        found.append(
            Scheme(
                *(f"w4a16-asym{ending}", "pack-quantized", 4, group),
                symmetric=False,
                good_for="a little closer than w4a16",
            )
        )
    return sorted(found, key=lambda s: s.bits_per_weight)


SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in _schemes()}

LEVELS = tuple(
    Level(
        s.name,
        s.bits,
        s.bits_per_weight,
        s.group,
        "low" if s.bits == 4 else "medium",
        s.good_for,
        s.symmetric and not s.activations,
    )
    for s in SCHEMES.values()
)
