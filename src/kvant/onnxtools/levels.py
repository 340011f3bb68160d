"""The levels any ONNX model can be quantised to, and the options that go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from kvant.errors import UsageError
from kvant.files.source import quote
from kvant.onnxtools.thresholds import Method

__all__ = ["LEVELS", "OnnxOptions", "level_named"]

LEVELS: Mapping[str, str] = {
    "float16": "weights and activations in half precision; inputs and outputs stay as they are",
    "int8-weights": "weights in 8 bits, activations in float",
    "int8-dynamic": "weights in 8 bits, activations quantised at each run; needs no data",
    "int8-static": "weights and activations in 8 bits, ranges from calibration data",
    "int4": "weights in 4 bits, in blocks",
    "int2": "weights in 2 bits, in blocks",
}
"""Name and what it is."""

WEIGHT_BITS = {"int8-weights": 8, "int4": 4, "int2": 2}

_STATIC, _INTEGER, _WEIGHTS = ("int8-static",), ("int8-static", "int8-dynamic"), tuple(WEIGHT_BITS)
_SERVES: Mapping[str, tuple[str, Sequence[str]]] = {
    "format": ("--format", (*_STATIC, *_WEIGHTS)),
    "per_channel": ("--no-per-channel", _INTEGER),
    "calibration": ("--calibration", _STATIC),
    "percentile": ("--percentile", _STATIC),
    "activations": ("--activations", _STATIC),
    "reduce_range": ("--reduce-range", _INTEGER),
    "block": ("--block", _WEIGHTS),
    "symmetric": ("--symmetric", _WEIGHTS),
    "full_integer": ("full_integer", _STATIC),
}
"""By option: what a user calls it, and the levels that it changes."""


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """How a level is made. Defaults are what measured best over the test models."""

    format: Literal["qdq", "qoperator"] | None = None
    """static: QuantizeLinear/DequantizeLinear around float operators (default), or integer ones.
    Weights: standard DequantizeLinear, or fused MatMulNBits (default)."""
    per_channel: bool = True
    """A scale for each output channel of a weight, not one for all."""
    calibration: Method = "minmax"
    percentile: float = 99.99
    activations: Literal["uint8", "int8", "uint16"] = "uint8"
    reduce_range: bool = False
    """Weights in 7 bits: x86 processors without VNNI add pairs of products in 16 bits."""
    block: int = 32
    """Weights that share a scale, for levels in blocks: 16 to 256, a power of two."""
    symmetric: bool = False
    """No zero points for blocks."""
    full_integer: bool = False
    """Quantise every operator that can be, for processors without float units."""

    def checked(self, level: str) -> OnnxOptions:
        """These options.

        Raises:
            UsageError: a combination that makes no sense for ``level``.
        """
        if self.block not in (16, 32, 64, 128, 256):
            raise UsageError(f"--block is 16, 32, 64, 128 or 256, got {self.block}.")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"--percentile is above 50, at most 100, got {self.percentile}.")
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        for option, levels in (_SERVES[name] for name in given):
            if level not in levels:
                raise UsageError(f"{option} is for {', '.join(levels)}, not {level}.")
        if "percentile" in given and self.calibration != "percentile":
            raise UsageError("--percentile is for --calibration percentile.")
        if self.format == "qoperator" and level in WEIGHT_BITS:
            raise UsageError(f"--format qoperator is for int8-static, not {level}.")
        if "block" in given and level == "int8-weights" and self.format == "qdq":
            raise UsageError(
                "--block is not for int8-weights with --format qdq: a scale serves a whole output."
            )
        if self.activations == "uint16" and self.format == "qoperator":
            raise UsageError("16-bit activations need --format qdq.")
        return self

    @property
    def codes(self) -> int:
        """How many codes an activation has."""
        return 65536 if self.activations == "uint16" else 256

    @property
    def activations_opset(self) -> int:
        """The least opset with activations in that many bits."""
        return 21 if self.activations == "uint16" else 13


def level_named(name: str) -> str:
    """The level called ``name``, in any case.

    Raises:
        UsageError: there is none.
    """
    found = name.lower()
    if found not in LEVELS:
        raise UsageError(
            f"unknown level {quote(name)} for an ONNX model; expected one of {', '.join(LEVELS)}."
        )
    return found
