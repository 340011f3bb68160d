"""Decoding is bit-exact with gguf's dequantisers and ggml's, whatever the bytes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kvant import _core
from kvant.packing import Packing, all_packings, dequantize, quantize
from oracles.ggml import Ggml
from oracles.kernels import using

pytestmark = pytest.mark.parity
by_name = pytest.mark.parametrize("packing", all_packings(), ids=lambda p: p.name)


def random_rows(packing: Packing) -> Any:
    """Rows of random bytes: every code and integer scale, halves of every kind as scales."""
    rng = np.random.default_rng(packing.storage.id)
    row_bytes = packing.storage.row_bytes(256 * 8)
    return rng.integers(0, 256, (6 * 32, row_bytes), dtype=np.uint8)


def patterned_rows(packing: Packing) -> Any:
    """Rows of one repeated byte each: all 256 of them."""
    return np.repeat(np.arange(256, dtype=np.uint8)[:, None], packing.storage.row_bytes(512), 1)


def numbered(gguf: ModuleType, packing: Packing) -> Any:
    """gguf's name for a type; skips those its release does not know yet."""
    if packing.name not in gguf.GGMLQuantizationType.__members__:
        pytest.skip(f"this gguf does not know {packing.name}")
    return gguf.GGMLQuantizationType[packing.name]


def assert_same_bits(ours: Any, theirs: Any) -> None:
    """Equal bit for bit, signed zeros included; any NaN is as good as another."""
    number = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), ~number)
    assert ours[number].tobytes() == theirs[number].tobytes()


@pytest.mark.parametrize("rows", [random_rows, patterned_rows])
@by_name
def test_gguf(packing: Packing, rows: Any, gguf: ModuleType) -> None:
    data = rows(packing)
    kind = numbered(gguf, packing)
    try:
        with np.errstate(all="ignore"):
            theirs = gguf.quants.dequantize(data, kind)
    except NotImplementedError:
        pytest.skip(f"this gguf does not decode {packing.name}")
    with np.errstate(all="ignore"):
        spec = packing.unpack(data.reshape(-1, packing.storage.block_bytes))
    theirs = np.asarray(theirs, np.float32)
    assert_same_bits(spec.reshape(theirs.shape).astype(np.float32), theirs)
    for isa in _core.isas():
        with using(isa):
            assert_same_bits(dequantize(packing.name, data), theirs)


@pytest.mark.parametrize("rows", [random_rows, patterned_rows])
@by_name
def test_ggml(packing: Packing, rows: Any, ggml: Ggml) -> None:
    if packing.name == "F32":
        pytest.skip("ggml has no function that copies floats")
    data = rows(packing)
    assert_same_bits(dequantize(packing.name, data), ggml.dequantize(packing.name, data))


@by_name
def test_our_own_rows(packing: Packing, gguf: ModuleType) -> None:
    x = np.random.default_rng(3).standard_normal((5, 1024)).astype(np.float32)
    data = quantize(packing.name, x)
    try:
        theirs = gguf.quants.dequantize(data, numbered(gguf, packing))
    except NotImplementedError:
        pytest.skip(f"this gguf does not decode {packing.name}")
    assert_same_bits(dequantize(packing.name, data), np.asarray(theirs, np.float32))


@by_name
def test_the_same_table_of_sizes(packing: Packing, gguf: ModuleType) -> None:
    kind = numbered(gguf, packing)
    storage = packing.storage
    assert (kind.value, *gguf.GGML_QUANT_SIZES[kind]) == (
        storage.id,
        storage.block,
        storage.block_bytes,
    )
