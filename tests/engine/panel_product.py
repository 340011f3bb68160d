"""A weight times activations through the core's plan, and what NumPy says it should be.

The plan is the least there can be: one linear, whose input is given and whose output is the result.
Up to four tiles, 32 tokens, are multiplied straight from the panels; more are multiplied from
panels that were unpacked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvant import _core
from kvant.packing import convert_rows, dequantize, get
from oracles.kernels import BLOCK_PACKINGS

__all__ = ["EIGHT_BIT_BLOCK", "panel_product", "rounded"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: Columns under one scale of the activations, by packing; others multiply floats.
EIGHT_BIT_BLOCK = {p.name: 256 if p.block == 256 else 32 for p in BLOCK_PACKINGS}


def panel_product(
    name: str, packed: npt.NDArray[np.uint8], x: F32, *, threads: int = 1, step: int = 512
) -> F32:
    """Packed rows [rows, row bytes] of ``name`` times ``x`` [tokens, columns]: [tokens, rows]."""
    count, columns = x.shape
    plan = _core.Plan(threads, step)
    source, result = plan.add_buffer(columns), plan.add_buffer(len(packed))
    weight = _core.Weight.of_array(get(name).storage.id, columns, packed)
    plan.linear(0, 0, source, -1, -1, -1, 0.0, [(plan.add_weight(weight), -1, result, False)])
    plan.finish(-(-count // _core.KV_BLOCK), source, result, 0)
    out = np.full((count, len(packed)), np.nan, np.float32)
    found = plan.step(
        np.zeros(count, np.int32),
        np.array([[0, count, 0]], np.int64),
        np.arange(-(-count // _core.KV_BLOCK), dtype=np.int32)[None],
        np.arange(count, dtype=np.int32),
        0,
        0,
        np.ascontiguousarray(x),
        None,
        out,
        None,
        [],
    )
    assert found == (False, -1)
    return out


def rounded(name: str, x: F32, isa: str) -> F64:
    """``x`` [tokens, columns] as a tile of the packing has it."""
    if name == "BF16" and isa == "avx512vnni" and "avx512bf16" in _core.cpu_features():
        halves = convert_rows("F32", "BF16", x.view(np.uint8), x.shape[1])
        return dequantize("BF16", halves).astype(np.float64)
    if name not in EIGHT_BIT_BLOCK:
        return x.astype(np.float64)
    blocks = x.reshape(len(x), -1, EIGHT_BIT_BLOCK[name])
    d = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(d > 0, np.float32(1) / d, np.float32(0))
    inverse = np.where(inverse < np.float32(3e38), inverse, np.float32(0))
    codes = np.rint(np.clip(blocks * inverse, -127, 127))
    return (codes.astype(np.float64) * d).reshape(x.shape)
