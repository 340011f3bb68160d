"""Wrong calls into the core raise; none reads or writes outside its arrays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from kvant import _core
from kvant.errors import UnsupportedError, UsageError
from kvant.packing import Packing, all_packings, convert_rows, dequantize, native, quantize
from kvant.packing.spec import SCALES
from kvant.packing.types import BY_ID
from oracles.kernels import BLOCK_PACKINGS
from oracles.weights import kind

by_name = pytest.mark.parametrize("packing", BLOCK_PACKINGS, ids=lambda p: p.name)
WRONG = (TypeError, ValueError)


def arrays(packing: Packing, blocks: int = 4) -> dict[str, Any]:
    """Right arguments of every call."""
    return {
        "x": np.ones((blocks, packing.block), np.float32),
        "w": np.ones((blocks, packing.block), np.float32),
        "scales": np.zeros((blocks, SCALES.itemsize), np.uint8),
        "codes": np.zeros((blocks, packing.block), np.uint8),
        "data": np.zeros((blocks, packing.storage.block_bytes), np.uint8),
    }


CALLS = {
    "fit": ("x", "w", "scales"),
    "encode": ("x", "scales", "codes"),
    "decode": ("codes", "scales", "x"),
    "layout": ("codes", "scales", "data"),
    "unlayout": ("data", "codes", "scales"),
}


def spoil(a: Any) -> dict[str, Any]:
    """Everything an array argument must not be."""
    other = np.float32 if a.dtype == np.uint8 else np.uint8
    frozen = a.copy()
    frozen.setflags(write=False)
    return {
        "fewer rows": a[:-1].copy(),
        "more rows": np.concatenate([a, a]),
        "no rows": a[:0],
        "narrower": a[:, :-1].copy(),
        "wider": np.concatenate([a, a], 1),
        "no columns": a[:, :0],
        "flat": a.ravel(),
        "three dimensions": a[None],
        "strided": np.concatenate([a, a])[::2],
        "backwards": a[::-1],
        "columns first": np.asfortranarray(a),
        "another type": a.astype(other),
        "doubles": a.astype(np.float64),
        "signed": a.astype(np.int8),
        "big-endian": a.astype(">f4") if a.dtype == np.float32 else a.astype(">u2"),
        "objects": a.astype(object),
        "a list": a.tolist(),
        "a number": 3,
        "bytes": a.tobytes(),
    }


def raises(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except WRONG:
        return True
    return False


@pytest.mark.parametrize("call", list(CALLS))
@by_name
def test_each_argument_of_each_part(packing: Packing, call: str) -> None:
    good = arrays(packing)
    names = CALLS[call]
    function = getattr(_core, call)
    function(packing.storage.id, *(good[n] for n in names))
    for spoiled in names:
        for how, bad in spoil(good[spoiled]).items():
            arguments = [bad if n == spoiled else good[n] for n in names]
            assert raises(function, packing.storage.id, *arguments), f"{spoiled}: {how}"
        if spoiled != "w":
            with pytest.raises(WRONG):
                function(packing.storage.id, *(None if n == spoiled else good[n] for n in names))


@pytest.mark.parametrize("call", list(CALLS))
@by_name
def test_outputs_must_be_writable(packing: Packing, call: str) -> None:
    good = arrays(packing)
    names = CALLS[call]
    outputs = names[1:] if call == "unlayout" else names[-1:]
    for output in outputs:
        frozen = good[output].copy()
        frozen.setflags(write=False)
        with pytest.raises(WRONG):
            getattr(_core, call)(
                packing.storage.id, *(frozen if n == output else good[n] for n in names)
            )


@by_name
def test_inputs_may_be_read_only(packing: Packing) -> None:
    x = kind("gaussian", 3, packing.block)
    x.setflags(write=False)
    scales = native.fit(packing.name, x)
    assert native.encode(packing.name, x, scales).shape == x.shape


@by_name
def test_no_blocks_at_all(packing: Packing) -> None:
    x = np.empty((0, packing.block), np.float32)
    scales = native.fit(packing.name, x)
    codes = native.encode(packing.name, x, scales)
    data = native.layout(packing.name, codes, scales)
    assert [len(a) for a in (scales, codes, data, *native.unlayout(packing.name, data))] == [0] * 5


@pytest.mark.parametrize("type_id", [*sorted(BY_ID), -1, 5, 99, 2**31 - 1])
def test_types_without_kernels(type_id: int) -> None:
    known = {p.storage.id for p in all_packings()}
    row = np.zeros((1, 1024), np.uint8)
    if type_id not in known:
        with pytest.raises(ValueError, match="does not know"):
            _core.dequantize(type_id, row, np.zeros((1, 256), np.float32))
        with pytest.raises(ValueError, match="does not know"):
            _core.quantize(0, type_id, row, row.copy(), 256, None)
        with pytest.raises(ValueError, match="does not know"):
            _core.quantize(type_id, 0, row, row.copy(), 256, None)
    if type_id not in {p.storage.id for p in BLOCK_PACKINGS}:
        with pytest.raises(ValueError, match="no kernels"):
            _core.fit(type_id, np.zeros((1, 32), np.float32), None, np.zeros((1, 40), np.uint8))


@pytest.mark.parametrize("type_id", ["2", 2.5, None, 2**40, -(2**40)])
def test_type_numbers_of_the_wrong_kind(type_id: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        _core.dequantize(type_id, np.zeros((1, 18), np.uint8), np.zeros((1, 32), np.float32))


@by_name
def test_rows_that_do_not_fit(packing: Packing) -> None:
    storage, n = packing.storage, packing.block * 2
    x = np.zeros((3, n), np.float32)
    data = np.zeros((3, storage.row_bytes(n)), np.uint8)
    raw, w = x.view(np.uint8), np.ones(n, np.float32)
    _core.quantize(0, storage.id, raw, data, n, w)
    for columns in (0, 1, n - 1, n + 1, n // 2, n * 2, 2**62, 2**64 - packing.block):
        with pytest.raises(ValueError, match="row"):
            _core.quantize(0, storage.id, raw, data, columns, None)
    for columns in (-1, 2**64, 1.5, None):
        with pytest.raises((TypeError, OverflowError)):
            _core.quantize(0, storage.id, raw, data, columns, None)  # type: ignore[arg-type]
    for bad in (w[:-1], np.concatenate([w, w]), w.astype(np.float64), w[None], np.ones(2 * n)[::2]):
        with pytest.raises(WRONG):
            _core.quantize(0, storage.id, raw, data, n, bad)
    for how, bad in spoil(data).items():
        if how != "no rows":
            with pytest.raises(WRONG):
                _core.quantize(0, storage.id, raw, bad, n, None)
            with pytest.raises(WRONG):
                _core.dequantize(storage.id, bad, x)
    for bad in spoil(x).values():
        with pytest.raises(WRONG):
            _core.dequantize(storage.id, data, bad)


def test_wrapped_products_do_not_pass() -> None:
    """Row lengths chosen so that bytes computed modulo 2^64 would agree with a small array."""
    data = np.zeros((1, 18), np.uint8)
    for columns in (2**60, 2**61, 2**63, (2**64 // 18 + 1) * 32 % 2**64):
        with pytest.raises(ValueError, match="row"):
            _core.quantize(2, 2, data, data.copy(), columns, None)


@pytest.mark.parametrize("rows", [0, 1, 2**40])
def test_rows_of_no_weights(rows: int) -> None:
    empty = np.zeros((rows, 0), np.uint8)
    assert _core.quantize(0, 2, empty, empty.copy(), 0, None) is None
    assert _core.quantize(0, 2, empty, empty.copy(), 0, np.zeros(0, np.float32)) is None
    assert dequantize("Q4_0", empty).shape == (rows, 0)


def test_hostile_scales_and_codes_do_not_crash() -> None:
    """Bytes that no file holds: what comes out is unspecified, but stays inside its arrays."""
    rng = np.random.default_rng(0)
    for packing in BLOCK_PACKINGS:
        x = rng.standard_normal((9, packing.block)).astype(np.float32)
        x[0, :5] = [np.nan, np.inf, -np.inf, 3e38, -3e38]
        scales = rng.integers(0, 256, (9, 40), dtype=np.uint8).view(SCALES).reshape(9)
        codes = rng.integers(0, 256, x.shape, dtype=np.uint8)
        native.fit(packing.name, x, np.abs(x))
        native.fit(packing.name, x, x)
        encoded = native.encode(packing.name, x, scales)
        if packing.name != "Q8_0":
            assert encoded.max() < 2**packing.bits
        native.layout(packing.name, codes, scales)
        native.decode(packing.name, codes, scales)


def test_names_that_are_no_types() -> None:
    row = np.zeros((1, 1024), np.uint8)
    for name in ("Q8_K", "q4_0", "", "F64", "I8"):
        with pytest.raises(UnsupportedError, match="kvant knows F32, F16"):
            dequantize(name, row)
        with pytest.raises(UnsupportedError):
            convert_rows("F32", name, row, 256)


def test_instruction_sets_are_chosen_by_name() -> None:
    before = _core.current_isa()
    assert not _core.select_isa("avx1024")
    with pytest.raises(UsageError, match="this machine runs"):
        native.use_isa("neon9")
    assert _core.current_isa() == before
    assert all(isinstance(feature, str) for feature in _core.cpu_features())


def test_many_threads_get_the_same_bytes() -> None:
    """The core holds no state between calls, and works with the interpreter lock released."""
    x = kind("gaussian", 64, 1024, seed=41)
    expected = {p.name: quantize(p.name, x).tobytes() for p in all_packings()}
    start = threading.Barrier(4)

    def work(_: int) -> bool:
        start.wait()
        return all(quantize(name, x).tobytes() == data for name, data in expected.items())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
