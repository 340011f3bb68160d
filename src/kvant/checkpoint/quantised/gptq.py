"""GPTQ and AWQ layouts: input-major, integers packed into 32-bit words.

Sources: AutoGPTQ's and GPTQModel's ``QuantLinear.pack`` (words along the inputs; zeros along the
outputs, stored less one in format "gptq", as they are in "gptq_v2"), AutoAWQ's ``WQLinear_GEMM``
(words along the outputs, eight columns to a word in the order 0 2 4 6 1 3 5 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.checkpoint.quantised.parts import (
    FLOATS,
    Module,
    config_number,
    modules_with,
    unsupported,
)
from kvant.errors import FileFormatError
from kvant.files.decoded import DecodedTensor
from kvant.files.raw import RawTensor, unpacked
from kvant.packing.types import BY_NAME

__all__ = ["awq", "gptq"]

_AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_INTEGERS = ("I32", "U32")


@dataclass(frozen=True, slots=True)
class _InputMajor(DecodedTensor):
    """w[out, in] = scale[group(in), out] (q[in, out] - zero[group(in), out])."""

    bits: int
    weight: RawTensor
    zeros: RawTensor | None
    scales: RawTensor
    groups: RawTensor | None
    group_size: int
    zero_offset: int
    interleaved: bool

    def decode(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """See the base."""
        inputs = self.shape[1]
        if self.interleaved:
            q = self._outputs(self.weight, start, stop)
        else:
            words = np.ascontiguousarray(self.weight.columns(start, stop).T)
            q = unpacked(words, self.bits, inputs).T
        scales = self.scales.columns(start, stop)
        zero: Any = np.float32(1 << (self.bits - 1))
        if self.zeros is not None:
            packed = self._outputs(self.zeros, start, stop).astype(np.int32) + self.zero_offset
            # Zero less one is all ones; kernels add the one in the integers' own width.
            zero = (packed & ((1 << self.bits) - 1)).astype(np.float32)
        if self.groups is None:
            group = np.arange(inputs) // self.group_size
        else:
            group = self.groups.read().astype(np.int64)
            if group.min() < 0 or group.max() >= len(scales):
                raise FileFormatError(
                    f"{self.path}: {self.groups.name!r} should name groups below {len(scales)}, "
                    f"got {group.min()} to {group.max()}. Fetch the file again."
                )
        zero = zero[group] if self.zeros is not None else zero
        w = (q.astype(np.float32) - zero) * scales[group].astype(np.float32)
        return np.ascontiguousarray(w.T, np.float32)

    def _outputs(self, tensor: RawTensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Columns of a tensor that is packed along the outputs."""
        # Whole words at both ends; words of three bits repeat after three.
        step, words = (32, 3) if self.bits == 3 else (32 // self.bits, 1)
        first, last = start // step, -(-stop // step)
        packed = np.ascontiguousarray(tensor.columns(first * words, last * words))
        q = unpacked(packed, self.bits, (last - first) * step)
        if self.interleaved:
            q = q.reshape(len(q), -1, 8)[:, :, np.argsort(_AWQ_ORDER)].reshape(len(q), -1)
        return q[:, start - first * step : stop - first * step]


def gptq(config: Mapping[str, object], tensors: Mapping[str, RawTensor]) -> Iterator[Module | Any]:
    """Every quantised module, and its weight."""
    bits = config_number(config, "bits", (2, 3, 4, 8))
    if config.get("checkpoint_format", "gptq") not in ("gptq", "gptq_v2"):
        raise unsupported("checkpoint_format", config.get("checkpoint_format"), "gptq or gptq_v2")
    offset = 1 if config.get("checkpoint_format", "gptq") == "gptq" else 0
    for module in modules_with(tensors, "qweight"):
        weight = module.part("qweight", _INTEGERS, (None, None))
        inputs, outputs = weight.shape[0] * 32 // bits, weight.shape[1]
        size = _group_size(config, inputs)
        groups = -(-inputs // size)
        scales = module.part("scales", FLOATS, (groups, outputs))
        zeros = module.part("qzeros", _INTEGERS, (groups, -(-outputs * bits // 32)))
        yield (
            module,
            _InputMajor(
                name=f"{module.path}.weight",
                type=BY_NAME["F32"],
                shape=(outputs, inputs),
                path=weight.path,
                offset=weight.offset,
                origin=f"GPTQ {bits} bits",
                bits=bits,
                weight=weight,
                zeros=zeros,
                scales=scales,
                groups=module.find("g_idx", _INTEGERS, (inputs,)),
                group_size=size,
                zero_offset=offset,
                interleaved=False,
            ),
        )


def awq(config: Mapping[str, object], tensors: Mapping[str, RawTensor]) -> Iterator[Module | Any]:
    """Every quantised module, and its weight."""
    bits = config_number(config, "bits", (4,))
    if str(config.get("version", "gemm")).lower() != "gemm":
        raise unsupported("version", config.get("version"), "gemm")
    for module in modules_with(tensors, "qweight"):
        weight = module.part("qweight", _INTEGERS, (None, None))
        inputs, outputs = weight.shape[0], weight.shape[1] * 8
        size = _group_size(config, inputs)
        groups = -(-inputs // size)
        yield (
            module,
            _InputMajor(
                name=f"{module.path}.weight",
                type=BY_NAME["F32"],
                shape=(outputs, inputs),
                path=weight.path,
                offset=weight.offset,
                origin="AWQ 4 bits",
                bits=bits,
                weight=weight,
                zeros=module.part("qzeros", _INTEGERS, (groups, outputs // 8)),
                scales=module.part("scales", FLOATS, (groups, outputs)),
                groups=None,
                group_size=size,
                zero_offset=0,
                interleaved=True,
            ),
        )


def _group_size(config: Mapping[str, object], inputs: int) -> int:
    size = config.get("group_size")
    if size == -1:
        return inputs
    if type(size) is not int or not 0 < size <= 1 << 20:
        raise unsupported("group_size", size, "a whole number, or -1")
    return size
