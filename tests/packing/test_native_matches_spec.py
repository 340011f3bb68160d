"""The kernels give the same bits as the NumPy specification, under every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant import _core
from kvant.packing import Packing, all_packings, convert_rows, dequantize, get, native, quantize
from oracles.kernels import BLOCK_PACKINGS, using
from oracles.strategies import blocks_and_importance, codes_and_scales
from oracles.weights import hand_made, importance, kind

by_name = pytest.mark.parametrize("packing", BLOCK_PACKINGS, ids=lambda p: p.name)
every = pytest.mark.parametrize("packing", all_packings(), ids=lambda p: p.name)


def test_the_instruction_sets_end_with_scalar() -> None:
    assert _core.isas()[-1] == "scalar"
    assert _core.current_isa() in _core.isas()


def check_four_parts(packing: Packing, x: Any, w: Any) -> None:
    """Fit, encode, layout, unlayout and decode of ``x``, each on the specification's own input."""
    name = packing.name
    scales = packing.fit(x, w)
    codes = packing.encode(x, scales)
    data = packing.layout(codes, scales)
    read_codes, read_scales = packing.unlayout(data)
    decoded = packing.decode(read_codes, read_scales)
    for isa in _core.isas():
        with using(isa):
            assert native.fit(name, x, w).tobytes() == scales.tobytes(), isa
            assert native.encode(name, x, scales).tobytes() == codes.tobytes(), isa
            assert native.layout(name, codes, scales).tobytes() == data.tobytes(), isa
            native_codes, native_scales = native.unlayout(name, data)
            assert native_codes.tobytes() == read_codes.tobytes(), isa
            assert native_scales.tobytes() == read_scales.tobytes(), isa
            y = native.decode(name, read_codes, read_scales)
            assert y.tobytes() == decoded.astype(np.float32).tobytes(), isa


@pytest.mark.parametrize("case", list(hand_made(32)))
@by_name
def test_hand_made_blocks(packing: Packing, case: str) -> None:
    x = hand_made(packing.block)[case]
    check_four_parts(packing, x, None)
    rng = np.random.default_rng(1)
    for w in (rng.random(x.shape), np.zeros(x.shape), rng.random(x.shape) < 0.2):
        check_four_parts(packing, x, w.astype(np.float32))


@by_name
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_blocks(packing: Packing, data: st.DataObject) -> None:
    check_four_parts(packing, *data.draw(blocks_and_importance(packing.block)))


@by_name
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_encode_and_decode_under_foreign_scales(packing: Packing, data: st.DataObject) -> None:
    """Methods that change the scales after `fit` get the same codes from both."""
    x, _ = data.draw(blocks_and_importance(packing.block, least=-8))
    codes, scales = data.draw(codes_and_scales(packing))
    n = min(len(x), len(scales))
    x, scales, codes = x[:n], scales[:n].copy(), codes[:n]
    with np.errstate(over="ignore", invalid="ignore"):
        encoded = packing.encode(x, scales)
        decoded = packing.decode(codes, scales).astype(np.float32)
    for isa in _core.isas():
        with using(isa):
            assert native.encode(packing.name, x, scales).tobytes() == encoded.tobytes(), isa
            assert native.decode(packing.name, codes, scales).tobytes() == decoded.tobytes(), isa


@by_name
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_bytes(packing: Packing, seed: int) -> None:
    """Codes and scales of every bit pattern, infinite and NaN scales included."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (7, packing.storage.block_bytes), dtype=np.uint8)
    codes, scales = packing.unlayout(data)
    with np.errstate(over="ignore", invalid="ignore"):
        decoded = packing.decode(codes, scales)
    for isa in _core.isas():
        with using(isa):
            native_codes, native_scales = native.unlayout(packing.name, data)
            np.testing.assert_array_equal(native_codes, codes)
            for field in scales.dtype.names or ():
                np.testing.assert_array_equal(native_scales[field], scales[field])
            np.testing.assert_array_equal(native.decode(packing.name, codes, scales), decoded)


# Rows are worked on 2048 weights at a time; these lengths end before, at and after such a run.
@pytest.mark.parametrize("columns", [256, 1792, 2048, 2304, 4608])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal weights", "importance"])
@every
def test_whole_rows(packing: Packing, columns: int, weighted: bool) -> None:
    x = kind("heavy-tailed", 3, columns)
    w = importance(columns) if weighted else None
    spread = None if w is None else np.tile(w, (3, 1)).reshape(-1, packing.block)
    expected = packing.pack(x.reshape(-1, packing.block), spread).reshape(3, -1)
    for isa in _core.isas():
        with using(isa):
            data = quantize(packing.name, x, w)
            assert data.tobytes() == expected.tobytes(), isa
            decoded = dequantize(packing.name, data)
            unpacked = packing.unpack(data.reshape(-1, packing.storage.block_bytes))
            assert decoded.tobytes() == unpacked.astype(np.float32).tobytes(), isa


@pytest.mark.parametrize("source", [p.name for p in all_packings()])
@every
def test_conversion_is_decode_then_pack(packing: Packing, source: str) -> None:
    """A chain of the specification's steps, for every pair of types; row shapes follow."""
    columns = 2560
    origin = get(source)
    data = quantize(source, kind("laplacian", 2, columns))
    x = origin.unpack(data.reshape(-1, origin.storage.block_bytes)).astype(np.float32)
    expected = packing.pack(x.reshape(-1, packing.block)).reshape(2, -1)
    for isa in _core.isas():
        with using(isa):
            got = convert_rows(source, packing.name, data, columns)
            assert got.shape == (2, packing.storage.row_bytes(columns))
            assert got.tobytes() == expected.tobytes(), isa


def test_every_half_and_every_bfloat() -> None:
    bits = np.arange(2**16, dtype="<u2")
    halves = bits.view("<f2").astype(np.float32)
    brains = (bits.astype("<u4") << 16).view("<f4")
    for isa in _core.isas():
        with using(isa):
            row = bits.view(np.uint8)[None]
            np.testing.assert_array_equal(dequantize("F16", row)[0], halves)
            np.testing.assert_array_equal(dequantize("BF16", row)[0], brains)
            finite = np.isfinite(halves)
            back = quantize("F16", halves[finite][None])
            assert back.tobytes() == bits[finite].tobytes(), isa
            finite = np.abs(brains) < np.inf
            back = quantize("BF16", brains[finite][None])
            assert back.tobytes() == bits[finite].tobytes(), isa


@settings(max_examples=200, deadline=None)
@given(value=st.floats(-65504, 65504, width=32), n=st.integers(1, 40))
def test_rounding_to_halves_and_bfloats(value: float, n: int) -> None:
    x = np.full((1, n), value, np.float32)
    for name in ("F16", "BF16"):
        expected = get(name).pack(x.reshape(-1, 1)).tobytes()
        for isa in _core.isas():
            with using(isa):
                assert quantize(name, x).tobytes() == expected, (isa, name)
