"""Products of panels and tiles, of every packing on every usable ISA, against NumPy in double.

Two bounds. With the activations rounded as the tile has them, what is left is the rounding of
sums in single precision: a few units in the last place of the sum of magnitudes, growing with the
number of blocks at most. With the activations as they were, the rounding to 8 bits shows: 1/254 of
a block's largest at most, and less on the whole, as errors cancel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from panel_product import EIGHT_BIT_BLOCK, panel_product, rounded

from kvant import _core
from kvant.packing import all_packings, convert_rows, dequantize, get, native, quantize
from oracles.kernels import BLOCK_PACKINGS, using
from oracles.weights import hand_made, kind

NAMES = tuple(p.name for p in all_packings())
EPS = 2.0**-24


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


def packed_of(name: str, w: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    if name in EIGHT_BIT_BLOCK:
        return quantize(name, w)
    return convert_rows("F32", name, np.ascontiguousarray(w).view(np.uint8), w.shape[1])


def weights_of(name: str, rows: int, columns: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return packed_of(name, kind("gaussian", rows, columns, seed, scale=1.0))


def activations(tokens: int, columns: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Normal, with one column in fifty ten times as large, as models have them."""
    rng = np.random.default_rng([seed, tokens, columns])
    x = rng.standard_normal((tokens, columns))
    return (x * np.where(rng.random(columns) < 0.02, 10, 1)).astype(np.float32)


def columns_of(name: str) -> tuple[int, ...]:
    block = get(name).block
    return (block, 3 * block, 8 * block) if block > 1 else (1, 7, 64, 200)


def magnitudes_of(name: str, packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Of weights; of their parts, where a block's minimum is added to the rest on its own."""
    w = dequantize(name, packed).astype(np.float64)
    if name not in EIGHT_BIT_BLOCK:
        return np.abs(w)
    codes, scales = native.unlayout(name, packed.reshape(-1, get(name).storage.block_bytes))
    least = native.decode(name, np.zeros_like(codes), scales).astype(np.float64).reshape(w.shape)
    return np.abs(least) + np.abs(w - least)


def check(name: str, isa: str, packed: npt.NDArray[np.uint8], x: npt.NDArray[np.float32]) -> None:
    got = panel_product(name, packed, x)
    w = dequantize(name, packed).astype(np.float64)
    tile = rounded(name, x, isa)
    magnitudes = np.abs(tile) @ magnitudes_of(name, packed).T
    # One rounding of each block's sum and one of adding it; of floats, one for each column. Half go
    # up and half go down, so that errors grow with the root of their number.
    roundings = 4 + 2 * np.sqrt(x.shape[1] / EIGHT_BIT_BLOCK.get(name, 1))
    # Products of pairs of bfloat16 take the least floats for zero; others have room for two.
    least = 1.2e-38 * (2 + x.shape[1] * np.abs(w).max() * (name == "BF16"))
    assert (np.abs(got - tile @ w.T) <= roundings * EPS * magnitudes + least).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 16, 19, 32, 33, 47])
def test_every_number_of_tokens(isa: str, name: str, tokens: int) -> None:
    for columns in columns_of(name):
        check(name, isa, weights_of(name, 35, columns), activations(tokens, columns))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 300])
def test_every_number_of_rows(isa: str, name: str, rows: int) -> None:
    columns = columns_of(name)[1]
    for tokens in (1, 12, 40):
        check(name, isa, weights_of(name, rows, columns, rows), activations(tokens, columns))


@pytest.mark.parametrize("name", NAMES)
def test_near_the_exact_product(isa: str, name: str) -> None:
    columns = 1024
    packed, x = weights_of(name, 64, columns), activations(24, columns)
    exact = x.astype(np.float64) @ dequantize(name, packed).astype(np.float64).T
    error = np.linalg.norm(panel_product(name, packed, x) - exact) / np.linalg.norm(exact)
    # Measured: 1.0e-2 for blocks of 32, 2.3e-2 for 256, 1.7e-3 for pairs of bfloat16.
    bound = {32: 1.5e-2, 256: 3e-2}.get(
        EIGHT_BIT_BLOCK.get(name, 0), 4e-3 if name == "BF16" else 1e-6
    )
    assert error < bound


@pytest.mark.parametrize("name", [p.name for p in BLOCK_PACKINGS])
def test_awkward_weights(isa: str, name: str) -> None:
    block = get(name).block
    for w in hand_made(block).values():
        packed = quantize(name, w)
        if np.isfinite(dequantize(name, packed)).all():
            check(name, isa, packed, activations(3, block))
            check(name, isa, packed, activations(35, block))


@pytest.mark.parametrize("name", [p.name for p in BLOCK_PACKINGS])
def test_any_bytes_are_weights(isa: str, name: str) -> None:
    """Codes and scales at their ends, where integer sums would overflow first."""
    p = get(name)
    rng = np.random.default_rng(p.storage.id)
    packed = rng.integers(0, 256, (48, 4 * p.storage.block_bytes), dtype=np.uint8)
    packed[:16] = np.where(packed[:16] < 128, 0, 255)
    w = dequantize(name, packed)
    ok = (np.isfinite(w) & (np.abs(w) < 1e30)).all(1)
    packed = packed[ok]
    assert len(packed)
    for x in (np.ones((2, 4 * p.block), np.float32), activations(36, 4 * p.block)):
        check(name, isa, packed, np.ascontiguousarray(x))
        check(name, isa, packed, np.ascontiguousarray(np.sign(x)))


@pytest.mark.parametrize("name", NAMES)
def test_awkward_activations(isa: str, name: str) -> None:
    columns = 512
    packed = weights_of(name, 20, columns)
    for scale in (0.0, 1e-42, 1e-38, 1e-20, 1e20):
        with np.errstate(under="ignore"):
            x = (activations(10, columns) * scale).astype(np.float32)
        x[3] = 0
        if scale > 1e-40 or name not in EIGHT_BIT_BLOCK:
            check(name, isa, packed, x)
        else:  # too small for a scale of single precision
            assert np.abs(panel_product(name, packed, x)).max() < 1e-36


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tokens", [1, 4, 12, 36])
def test_what_is_not_finite_is_not_hidden(isa: str, name: str, bad: float, tokens: int) -> None:
    """8-bit codes have no NaN; if one were rounded to a number, nobody would ever know."""
    columns = 512
    packed = weights_of(name, 20, columns)
    clean = activations(tokens, columns)
    expected = panel_product(name, packed, clean)
    for column in (0, 5, 17, 130, 255, 256, 500, 511):
        x = clean.copy()
        x[tokens // 2, column] = bad
        got = panel_product(name, packed, x)
        others = np.arange(tokens) != tokens // 2
        assert not np.isfinite(got[tokens // 2]).any(), column
        assert np.array_equal(got[others], expected[others])


@pytest.mark.parametrize("name", NAMES)
def test_a_token_gets_the_same_bits_in_any_company(isa: str, name: str) -> None:
    """Straight from the panels or unpacked, in tiles of any width, on any number of threads."""
    columns = columns_of(name)[-1]
    packed, x = weights_of(name, 100, columns), activations(70, columns)
    whole = panel_product(name, packed, x)
    for tokens in (1, 2, 3, 4, 5, 6, 7, 8, 9, 23, 32, 33, 50):
        for first in (0, 13):
            rows = slice(first, first + tokens)
            for threads in (1, 3):
                part = panel_product(name, packed, x[rows], threads=threads)
                assert np.array_equal(part, whole[rows])


@pytest.mark.parametrize("name", [p.name for p in BLOCK_PACKINGS])
def test_instruction_sets_agree_but_for_rounding(name: str) -> None:
    packed, x = weights_of(name, 40, 512), activations(37, 512)
    results = []
    for isa in _core.isas():
        with using(isa):
            results.append(panel_product(name, packed, x))
    scale = np.abs(results[0]).max()
    assert all(np.abs(r - results[0]).max() < 1e-6 * scale for r in results)
