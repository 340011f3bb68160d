"""Eight-bit floats and integers that keep the weight's shape: FP8 and compressed-tensors' W8.

Sources: transformers' ``FineGrainedFP8Config`` (a scale for each block of 128 x 128) and
``FbgemmFp8Config`` (one for each output), compressed-tensors' "float-quantized" and
"int-quantized".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.quantised.parts import FLOATS, Module, modules_with, unsupported
from kvant.errors import FileFormatError
from kvant.files.decoded import DecodedTensor
from kvant.files.raw import RawTensor
from kvant.packing.types import BY_NAME

__all__ = ["fp8", "scaled"]


@dataclass(frozen=True, slots=True)
class _Scaled(DecodedTensor):
    """w = scale * q, with a scale for each block of ``block`` outputs and inputs."""

    weight: RawTensor
    scale: npt.NDArray[np.float32]
    block: tuple[int, int]

    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See the base."""
        q = self.weight.rows(start, stop).astype(np.float32)
        rows = np.arange(start, stop) // self.block[0]
        columns = np.arange(self.shape[1]) // self.block[1]
        return q * self.scale[rows][:, columns]


def scaled(module: Module, dtype: str, origin: str, scale_name: str) -> Any:
    """A weight with one scale, or one for each output or group of inputs."""
    weight = module.part("weight", (dtype,), (None, None))
    outputs, inputs = weight.shape
    scales = module.part(scale_name, FLOATS).read().astype(np.float32)
    if scales.size == 1:
        scales = np.broadcast_to(scales.reshape(1, 1), (1, 1))
    elif scales.ndim == 1:
        scales = scales[:, None]
    if scales.ndim != 2 or outputs % len(scales) or inputs % scales.shape[1]:
        raise FileFormatError(
            f"{weight.path}: {module.path}.{scale_name} should have a scale for each part of "
            f"{[outputs, inputs]}, got {list(scales.shape)}. Fetch all files of one release again."
        )
    block = (outputs // len(scales), inputs // scales.shape[1])
    return _scaled_tensor(module, weight, scales, block, origin)


def _scaled_tensor(
    module: Module,
    weight: RawTensor,
    scales: npt.NDArray[np.float32],
    block: tuple[int, int],
    origin: str,
) -> _Scaled:
    return _Scaled(
        name=f"{module.path}.weight",
        type=BY_NAME["F32"],
        shape=weight.shape,
        path=weight.path,
        offset=weight.offset,
        origin=origin,
        weight=weight,
        scale=np.ascontiguousarray(scales, np.float32),
        block=block,
    )


def fp8(config: Mapping[str, object], tensors: Mapping[str, RawTensor]) -> Iterator[Module | Any]:
    """Every module with an 8-bit float weight."""
    block = config.get("weight_block_size")
    for module in modules_with(tensors, "weight_scale_inv"):
        weight = module.part("weight", ("F8_E4M3",), (None, None))
        sizes = block if isinstance(block, list) else []
        if len(sizes) != 2 or not all(type(n) is int and 0 < n <= 1 << 20 for n in sizes):
            raise unsupported("weight_block_size", block, "two whole numbers")
        expected = (-(-weight.shape[0] // sizes[0]), -(-weight.shape[1] // sizes[1]))
        scale = module.part("weight_scale_inv", FLOATS, expected).read()
        yield module, _scaled_tensor(module, weight, scale, (sizes[0], sizes[1]), "FP8 blocks")
    for module in modules_with(tensors, "weight_scale"):
        _ignore_input_scales(module)
        yield module, scaled(module, "F8_E4M3", "FP8", "weight_scale")


def _ignore_input_scales(module: Module) -> None:
    """Scales of activations matter to kernels that round those; ours have their own."""
    for name in ("input_scale", "input_scale_ub", "activation_scale"):
        module.find(name, FLOATS)
