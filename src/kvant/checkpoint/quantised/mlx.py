"""MLX folders: integers of 2 to 8 bits with a scale and a bias a group, and the small float modes.

Source: MLX's ``quantize`` and mlx-lm's config: ``{"group_size": 64, "bits": 4, "mode": "affine"}``,
with entries by module path for layers that differ. A module is quantised if it has ``scales``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.quantised.parts import FLOATS, Module, modules_with, unsupported
from kvant.errors import FileFormatError
from kvant.files.decoded import DecodedTensor
from kvant.files.raw import RawTensor, unpacked
from kvant.files.tensor import StackedTensor, StoredTensor
from kvant.packing.small_floats import E2M1, E4M3, E8M0
from kvant.packing.types import BY_NAME

__all__ = ["mlx"]

#: Mode to bits, group and dtype of the scales.
_FLOAT_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


@dataclass(frozen=True, slots=True)
class _Mlx(DecodedTensor):
    """w = scale q + bias for each group of a row."""

    bits: int
    group: int
    mode: str
    weight: RawTensor
    scales: RawTensor
    biases: RawTensor | None

    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See the base."""
        words = np.ascontiguousarray(self.weight.rows(start, stop))
        codes = unpacked(words, self.bits, self.shape[1])
        scales = self.scales.rows(start, stop)
        match self.mode:
            case "affine":
                assert self.biases is not None
                q = codes.astype(np.float32)
                scale = np.repeat(scales.astype(np.float32), self.group, 1)
                bias = np.repeat(self.biases.rows(start, stop).astype(np.float32), self.group, 1)
                return np.asarray(q * scale + bias, np.float32)
            case "mxfp8":
                values, table = E4M3[codes], E8M0
            case _:
                values = E2M1[codes]
                table = E8M0 if self.mode == "mxfp4" else E4M3
        return np.asarray(values * np.repeat(table[scales], self.group, 1), np.float32)


def mlx(config: Mapping[str, object], tensors: Mapping[str, RawTensor]) -> Iterator[Module | Any]:
    """Every quantised module, and its weight."""
    for module in modules_with(tensors, "scales"):
        own = config.get(module.path)
        yield module, _module(module, own if isinstance(own, dict) else config)


def _module(module: Module, settings: Mapping[str, object]) -> StoredTensor:
    mode, bits, group = (settings.get(k) for k in ("mode", "bits", "group_size"))
    mode = "affine" if mode is None else mode
    if mode in _FLOAT_MODES:
        expected = _FLOAT_MODES[str(mode)]
        if (bits, group) != expected:
            raise unsupported(str(mode), (bits, group), f"(bits, group) {expected}")
    elif mode != "affine" or bits not in (2, 3, 4, 5, 6, 8) or group not in (16, 32, 64, 128):
        raise unsupported("mode, bits, group_size", (mode, bits, group), "one that MLX has")
    assert isinstance(bits, int)
    assert isinstance(group, int)
    weight = module.part("weight", ("U32",))
    if len(weight.shape) not in (2, 3):
        raise FileFormatError(
            f"{weight.path}: {module.path}.weight should be a matrix or a stack of them, got "
            f"{list(weight.shape)}. Fetch all files of one release again."
        )
    inputs = weight.shape[-1] * 32 // bits
    if not inputs or inputs % group:
        raise FileFormatError(
            f"{weight.path}: {module.path}.weight has {inputs} columns, expected whole groups of "
            f"{group}. Fetch all files of one release again."
        )
    shape = (*weight.shape[:-1], inputs // group)
    affine = mode == "affine"
    whole = _Mlx(
        name=f"{module.path}.weight",
        type=BY_NAME["F32"],
        shape=(*weight.shape[:-1], inputs),
        path=weight.path,
        offset=weight.offset,
        origin=f"MLX {bits} bits" if affine else f"MLX {mode}",
        bits=bits,
        group=group,
        mode=str(mode),
        weight=weight,
        scales=module.part("scales", FLOATS if affine else ("U8",), shape),
        biases=module.part("biases", FLOATS, shape) if affine else None,
    )
    if len(weight.shape) == 2:
        return whole
    return StackedTensor.of(whole.name, [_expert(whole, e) for e in range(weight.shape[0])])


def _expert(whole: _Mlx, index: int) -> _Mlx:
    return replace(
        whole,
        shape=whole.shape[1:],
        weight=whole.weight.part(index),
        scales=whole.scales.part(index),
        biases=None if whole.biases is None else whole.biases.part(index),
    )
