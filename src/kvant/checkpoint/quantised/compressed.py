"""compressed-tensors, what vLLM and llm-compressor write.

Source: the library's ``compressors`` (pack_quantized, int_quantized, float_quantized). Integers of
"pack-quantized" lie along the inputs with 2^(bits - 1) added; zero points the same along the
outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.quantised.floats import scaled
from kvant.checkpoint.quantised.parts import FLOATS, Module, modules_with, unsupported
from kvant.errors import FileFormatError
from kvant.files.decoded import DecodedTensor
from kvant.files.raw import RawTensor, unpacked
from kvant.packing.types import BY_NAME

__all__ = ["compressed_tensors"]


@dataclass(frozen=True, slots=True)
class _Packed(DecodedTensor):
    """w = scale[out, group] (q - zero[out, group])."""

    bits: int
    weight: RawTensor
    scales: RawTensor
    zeros: RawTensor | None
    groups: RawTensor | None

    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See the base."""
        words = np.ascontiguousarray(self.weight.rows(start, stop))
        q = unpacked(words, self.bits, self.shape[1]).astype(np.float32)
        scales = self.scales.rows(start, stop).astype(np.float32)
        group = np.arange(self.shape[1]) // (self.shape[1] // scales.shape[1])
        if self.groups is not None:
            group = self.groups.read().astype(np.int64)
            if group.min() < 0 or group.max() >= scales.shape[1]:
                raise FileFormatError(
                    f"{self.path}: {self.groups.name!r} should name groups below "
                    f"{scales.shape[1]}, got {group.min()} to {group.max()}."
                )
        half = np.float32(1 << (self.bits - 1))
        if self.zeros is None:
            return (q - half) * scales[:, group]
        packed = np.ascontiguousarray(self.zeros.read().T)
        zeros = unpacked(packed, self.bits, self.shape[0]).T[start:stop].astype(np.float32)
        return (q - zeros[:, group]) * scales[:, group]


def compressed_tensors(
    config: Mapping[str, object], tensors: Mapping[str, RawTensor]
) -> Iterator[Module | Any]:
    """Every quantised module, and its weight."""
    format_ = config.get("format")
    bits = _bits(config)
    match format_:
        case "pack-quantized":
            for module in modules_with(tensors, "weight_packed"):
                yield module, _packed(module, bits)
        case "int-quantized" | "float-quantized" | "naive-quantized":
            dtype = "I8" if format_ == "int-quantized" else "F8_E4M3"
            for module in modules_with(tensors, "weight_scale"):
                for name in ("input_scale", "input_zero_point"):
                    module.find(name, (*FLOATS, "I8", "F8_E4M3"))
                zero = module.find("weight_zero_point", ("I8", "F8_E4M3"))
                if zero is not None and zero.read().any():
                    raise unsupported("weight_zero_point", "not zero", "zero")
                yield module, scaled(module, dtype, f"compressed-tensors {dtype}", "weight_scale")
        case _:
            raise unsupported(
                "format",
                format_,
                "pack-quantized, int-quantized, float-quantized or naive-quantized",
            )


def _bits(config: Mapping[str, object]) -> set[int]:
    """Bits that weights may have."""
    groups = config.get("config_groups")
    found: set[object] = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            found.add(weights.get("num_bits"))
    if not found or not found <= {2, 4, 8}:
        raise unsupported("num_bits", sorted(map(str, found)), "2, 4 or 8")
    return {bits for bits in found if isinstance(bits, int)}


def _packed(module: Module, possible: set[int]) -> _Packed:
    shape = module.part("weight_shape", ("I64", "I32"), (2,)).read()
    outputs, inputs = int(shape[0]), int(shape[1])
    weight = module.part("weight_packed", ("I32",), (outputs, None))
    # Which layers have which bits is said by expressions; the words of a row tell as well.
    words = {_words(inputs, bits): bits for bits in sorted(possible, reverse=True)}
    if inputs < 1 or weight.shape[1] not in words:
        expected = " or ".join(map(str, sorted(words)))
        raise FileFormatError(
            f"{weight.path}: {module.path}.weight_packed should have {expected} columns for "
            f"{inputs} inputs, got {weight.shape[1]}. Fetch all files of one release again."
        )
    bits = words[weight.shape[1]]
    scales = module.part("weight_scale", FLOATS, (outputs, None))
    if inputs % scales.shape[1]:
        raise unsupported("weight_scale", list(scales.shape), f"a part of {inputs} columns")
    zeros = module.find("weight_zero_point", ("I32",), (_words(outputs, bits), scales.shape[1]))
    return _Packed(
        name=f"{module.path}.weight",
        type=BY_NAME["F32"],
        shape=(outputs, inputs),
        path=weight.path,
        offset=weight.offset,
        origin=f"compressed-tensors {bits} bits",
        bits=bits,
        weight=weight,
        scales=scales,
        zeros=zeros,
        groups=module.find("weight_g_idx", ("I32", "I64"), (inputs,)),
    )


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)
