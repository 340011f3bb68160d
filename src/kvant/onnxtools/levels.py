"""The levels any ONNX model can be quantised to, and the options that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        if self.activations != "uint8" and level != "int8-static":
            raise UsageError(f"--activations is for int8-static, not {level}.")
        if self.activations == "uint16" and self.format == "qoperator":
            raise UsageError("16-bit activations need --format qdq.")
        return self


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
