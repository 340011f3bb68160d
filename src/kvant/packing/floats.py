"""F32, F16, BF16: plain floats, blocks of one weight, no scales."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import bf16_to_float, float_to_bf16
from kvant.packing.spec import Bytes, Codes, Floats, Packing, Scales, empty_scales

__all__ = ["BF16", "F16", "F32"]


class _Float(Packing):
    """A float type: the "codes" of a weight are the bytes it is stored as, [n, bytes]."""

    searches = False

    def fit(self, x: Floats, importance: Floats | None = None) -> Scales:
        return empty_scales(len(x))

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        return codes

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        return data, empty_scales(len(data))


class F32(_Float):
    """IEEE single precision."""

    name = "F32"
    bits = 32
    good_for = "references and debugging"
    block_layout = "one single"

    def encode(self, x: Floats, scales: Scales) -> Codes:
        return np.ascontiguousarray(x, "<f4").view(np.uint8).reshape(-1, 4)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        return np.ascontiguousarray(codes).view("<f4").astype(np.float32)


class F16(_Float):
    """IEEE half precision."""

    name = "F16"
    bits = 16
    good_for = "unquantised files for runtimes without bfloat16"
    block_layout = "one half"

    def encode(self, x: Floats, scales: Scales) -> Codes:
        return np.ascontiguousarray(x).astype("<f2").view(np.uint8).reshape(-1, 2)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        return np.ascontiguousarray(codes).view("<f2").astype(np.float32)


class BF16(_Float):
    """bfloat16: single precision's range with 8 bits of mantissa."""

    name = "BF16"
    bits = 16
    good_for = "unquantised files, exactly as most checkpoints are published"
    block_layout = "one bfloat16"

    def encode(self, x: Floats, scales: Scales) -> Codes:
        return float_to_bf16(x).astype("<u2").view(np.uint8).reshape(-1, 2)

    def decode(self, codes: Codes, scales: Scales) -> Floats:
        return bf16_to_float(np.ascontiguousarray(codes).view("<u2").astype(np.uint16))
