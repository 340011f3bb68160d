"""bitsandbytes' four bits: a table of sixteen values, a scale for each block of the flat weight.

Source: bitsandbytes' ``functional.QuantState`` and ``dequantize_4bit``. The scales may be quantised
themselves (a table of 256 values, and an offset).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.quantised.parts import Module, modules_with, unsupported
from kvant.errors import FileFormatError
from kvant.files.config_json import parse_json
from kvant.files.decoded import DecodedTensor
from kvant.files.raw import RawTensor
from kvant.packing.types import BY_NAME

__all__ = ["bitsandbytes"]

_STATE = "weight.quant_state.bitsandbytes__"
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class _Blocks(DecodedTensor):
    """w[i] = table[code[i]] * scale[i // block], over the flat weight."""

    weight: RawTensor
    table: npt.NDArray[np.float32]
    scales: npt.NDArray[np.float32]
    block: int

    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See the base."""
        first, last = start * self.shape[1], stop * self.shape[1]
        data = self.weight.rows(first // 2, -(-last // 2)).reshape(-1)
        codes = np.stack([data >> 4, data & 15], 1).reshape(-1)  # the high half comes first
        codes = codes[first % 2 : first % 2 + last - first]
        scale = self.scales[np.arange(first, last) // self.block]
        return (self.table[codes] * scale).reshape(stop - start, self.shape[1])


def bitsandbytes(
    config: Mapping[str, object], tensors: Mapping[str, RawTensor]
) -> Iterator[Module | Any]:
    """Every quantised module, and its weight."""
    if config.get("load_in_4bit") is not True and config.get("_load_in_4bit") is not True:
        raise unsupported("load_in_4bit", config.get("load_in_4bit"), "true")
    for module in modules_with(tensors, "weight.absmax"):
        yield module, _four_bits(module)


def _four_bits(module: Module) -> _Blocks:
    kind = "fp4" if f"{_STATE}fp4" in module.parts else "nf4"
    raw = module.part(f"{_STATE}{kind}", ("U8",)).read()
    where = f"{module.path}: quant_state"
    state = parse_json(raw.tobytes(), where, 100_000)
    shape = state.get("shape") if isinstance(state, dict) else None
    if (
        not isinstance(state, dict)
        or not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and 0 < n < 1 << 31 for n in shape)
    ):
        raise FileFormatError(f"{where} should have a shape of two sizes. Fetch the file again.")
    count = shape[0] * shape[1]
    block = state.get("blocksize")
    if block not in _BLOCKS:
        raise unsupported("blocksize", block, "a power of two from 32 to 4096")
    weight = module.part("weight", ("U8",), (-(-count // 2), 1))
    blocks = -(-count // block)
    table = module.part("weight.quant_map", ("F32",), (16,)).read()
    scales = _scales(module, state, blocks)
    return _Blocks(
        name=f"{module.path}.weight",
        type=BY_NAME["F32"],
        shape=(shape[0], shape[1]),
        path=weight.path,
        offset=weight.offset,
        origin=f"bitsandbytes {kind.upper()}",
        weight=weight,
        table=table,
        scales=scales,
        block=block,
    )


def _scales(module: Module, state: Mapping[str, object], blocks: int) -> npt.NDArray[np.float32]:
    plain = module.parts["weight.absmax"].dtype == "F32"
    if plain:
        found: npt.NDArray[np.float32] = module.part("weight.absmax", ("F32",), (blocks,)).read()
        return found
    codes = module.part("weight.absmax", ("U8",), (blocks,)).read()
    nested, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if nested not in _BLOCKS or not isinstance(offset, float):
        raise unsupported("nested_blocksize", nested, "a power of two from 32 to 4096")
    groups = -(-blocks // nested)
    absmax = module.part("weight.nested_absmax", ("F32",), (groups,)).read()
    table = module.part("weight.nested_quant_map", ("F32",), (256,)).read()
    out = table[codes] * absmax[np.arange(blocks) // nested] + np.float32(offset)
    return np.asarray(out, np.float32)
