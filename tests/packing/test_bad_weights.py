"""Weights that a target cannot hold are found, named by row and column, and nothing is decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant import _core
from kvant.packing import (
    BadWeight,
    Packing,
    all_packings,
    convert_rows,
    dequantize,
    get,
    native,
    quantize,
)
from oracles.kernels import BLOCK_PACKINGS, using

every = pytest.mark.parametrize("target", [p.name for p in all_packings()])
ROWS, COLUMNS = 3, 2560  # more than one run of 2048 weights
LARGEST = {"F32": np.float32(3.4028235e38), "BF16": np.uint32(0x7F7F7FFF).view(np.float32)}


def expect(source: str, target: str, data: Any, row: int, column: int, value: float) -> None:
    for w in (None, np.ones(COLUMNS, np.float32)):
        for isa in _core.isas():
            with using(isa), pytest.raises(BadWeight) as caught:
                convert_rows(source, target, data, COLUMNS, w)
            assert (caught.value.row, caught.value.column) == (row, column), isa
            np.testing.assert_equal(caught.value.value, value)


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@every
def test_not_finite(source: str, target: str) -> None:
    for row, column in ((0, 0), (0, 2047), (1, 2048), (2, 2559), (1, 77)):
        for value in (np.nan, np.inf, -np.inf):
            x = np.ones((ROWS, COLUMNS), np.float32)
            x[row, column] = value
            x[2, 2559] = value  # a later one does not hide an earlier one
            data = get(source).pack(x.reshape(-1, 1)).reshape(ROWS, -1)
            expect(source, target, data, row, column, value)


@pytest.mark.parametrize("source", ["F32", "BF16"])
@every
def test_beyond_what_the_target_holds(source: str, target: str) -> None:
    x = np.zeros((ROWS, COLUMNS), np.float32)
    x[1, 300], x[0, 5] = -1e5, 65000
    data = get(source).pack(x.reshape(-1, 1)).reshape(ROWS, -1)
    if target in LARGEST:
        assert np.isfinite(dequantize(target, convert_rows(source, target, data, COLUMNS))).all()
    else:
        expect(source, target, data, 1, 300, dequantize(source, data)[1, 300])


@every
def test_the_largest_weights_are_taken_and_decode_to_finite(target: str) -> None:
    limit = LARGEST.get(target, np.float32(65504))
    x = np.zeros((ROWS, COLUMNS), np.float32)
    x[0, 3], x[1, 4], x[2, :] = limit, -limit, limit
    assert np.isfinite(dequantize(target, quantize(target, x))).all()
    if target != "F32":
        x[1, 4] = -np.nextafter(limit, np.float32(np.inf))
        expect("F32", target, x.view(np.uint8), 1, 4, float(x[1, 4]))


@every
@pytest.mark.parametrize(
    "packing", [p for p in BLOCK_PACKINGS if p.name not in ("MXFP4", "NVFP4")], ids=lambda p: p.name
)
def test_scales_of_a_packed_source(packing: Packing, target: str) -> None:
    """A quantised file with infinity or NaN for a scale: the first weight it spoils is named."""
    for bits in (0x7C00, 0xFC00, 0x7E00, 0x7D01, 0xFFFF):
        spoil_a_scale(packing, target, bits)


def spoil_a_scale(packing: Packing, target: str, bits: int) -> None:
    columns = 16 * packing.block
    data = quantize(packing.name, np.ones((ROWS, columns), np.float32))
    places = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208, "TQ1_0": 52, "TQ2_0": 64}
    position = places.get(packing.name, 0)
    place = 3 * packing.storage.block_bytes + position
    if packing.name == "IQ1_M":  # four bits of it above the scales in each of four words
        at = 3 * packing.storage.block_bytes + 48
        words = data[1, at : at + 8].view("<u2")
        words[:] = (words & 0xFFF) | (bits >> np.array([0, 4, 8, 12]) & 15) << 12
    else:
        data[1, place : place + 2] = np.array([bits], "<u2").view(np.uint8)
    with np.errstate(invalid="ignore"):
        decoded = dequantize(packing.name, data)
    first = np.flatnonzero(~np.isfinite(decoded))[0]
    with pytest.raises(BadWeight) as caught:
        convert_rows(packing.name, target, data, columns)
    assert caught.value.row * columns + caught.value.column == first
    assert caught.value.row == 1
    assert 3 * packing.block <= caught.value.column < 4 * packing.block


@every
def test_a_power_of_two_that_is_too_large(target: str) -> None:
    data = quantize("MXFP4", np.ones((ROWS, 256), np.float32))
    data[1, 3 * 17] = 255  # times 2^127: beyond single precision from the second level on
    with np.errstate(over="ignore"):
        decoded = dequantize("MXFP4", data)
    first = np.flatnonzero(~np.isfinite(decoded))[0]
    expect_first = (1, 3 * 32) if target not in LARGEST else divmod(int(first), 256)
    with pytest.raises(BadWeight) as caught:
        convert_rows("MXFP4", target, data, 256)
    assert (caught.value.row, caught.value.column) == expect_first


@settings(max_examples=200, deadline=None)
@given(
    bits=st.integers(0, 2**32 - 1),
    place=st.integers(0, 2 * 2304 - 1),
    target=st.sampled_from(all_packings()),
)
def test_any_float_is_refused_or_kept_finite(bits: int, place: int, target: Packing) -> None:
    x = np.full(2 * 2304, 0.5, np.float32)
    x[place] = np.array([bits], np.uint32).view(np.float32)[0]
    value = x[place]
    held = np.isfinite(value) and abs(value) <= LARGEST.get(target.name, np.float32(65504))
    if held:
        assert np.isfinite(dequantize(target.name, quantize(target.name, x.reshape(2, -1)))).all()
        return
    with pytest.raises(BadWeight) as caught:
        quantize(target.name, x.reshape(2, -1))
    assert caught.value.row * 2304 + caught.value.column == place


def test_decoding_alone_judges_nothing() -> None:
    """Readers that only look may see what is there."""
    x = np.array([[1, np.inf, np.nan, -np.inf]], np.float32)
    np.testing.assert_array_equal(dequantize("F32", x.view(np.uint8)), x)
    half = x.astype("<f2").view(np.uint8)
    np.testing.assert_array_equal(dequantize("F16", half), x)


def test_the_message_names_the_weight() -> None:
    assert str(native.BadWeight(3, 7, float("nan"))) == "weight [3, 7] is nan"
