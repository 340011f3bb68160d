"""Grids of groups: the core against the specification, and both against slow judges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kvant.files.raw import unpacked
from kvant.packing.bits import packed_bits
from kvant.packing.groups import Groups
from kvant.packing.quantise_groups import (
    encode_groups,
    plain_scales,
    quantise_groups,
    search_scales,
)
from kvant.packing.small_floats import E2M1, E4M3, nearest_e2m1, nearest_e4m3, power_above

BITS = (2, 3, 4, 5, 6, 8)
ZEROS = ("bias", "integer", "middle")
TYPES = ("F32", "F16", "BF16")


def weights(groups: int, block: int, seed: int = 0) -> np.ndarray:
    """Gaussian groups of different size; outliers, constants, zeros and tiny ones among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, block)) * rng.uniform(0.01, 3, (groups, 1))
    x[::5, 3] *= 8
    x[1] = 0
    x[2] = 0.7
    x[3] *= 1e-30
    x[4] = np.abs(x[4])
    x[5] = -np.abs(x[5]) - 1
    return x.astype(np.float32)


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("scale", TYPES)
def test_the_core_gives_the_bits_of_the_specification(zero: str, scale: str) -> None:
    rng = np.random.default_rng(1)
    for bits, block in itertools.product(BITS, (16, 32, 64, 128)):
        grid = Groups("x", bits, block, zero, scale)  # type: ignore[arg-type]
        x = weights(37, block)
        w = rng.uniform(0.01, 4, (1, block)).astype(np.float32)
        for found, expected in (
            (plain_scales(grid, x), grid.plain(x)),
            (search_scales(grid, x), grid.search(x)),
            (search_scales(grid, x, w), grid.search(x, np.broadcast_to(w, x.shape))),
        ):
            np.testing.assert_array_equal(found["d"], expected["d"])
            np.testing.assert_array_equal(found["z"], expected["z"])
            codes = encode_groups(grid, x, found)
            np.testing.assert_array_equal(codes, grid.encode(x, expected))
            assert codes.max() <= grid.most


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_a_search_is_never_worse_than_the_formula(zero: str, bits: int) -> None:
    rng = np.random.default_rng(2)
    grid = Groups("x", bits, 64, zero, "BF16")  # type: ignore[arg-type]
    x = rng.standard_normal((400, 64)).astype(np.float32)
    errors = []
    for plain in (True, False):
        codes, scales = quantise_groups(grid, x, plain=plain)
        y = grid.decode(codes, scales.reshape(-1))
        errors.append(np.square(y - x).sum(1))
    assert errors[1].sum() < 0.99 * errors[0].sum()
    # Codes follow by division after the search and by a reciprocal inside it: a tie may differ.
    assert (errors[1] <= errors[0] * 1.0001).mean() > 0.9


@pytest.mark.parametrize("zero", ZEROS)
def test_a_search_comes_near_the_best_there_is(zero: str) -> None:
    """Against every scale and zero of a fine raster, which no search could beat by much."""
    grid = Groups("x", 3, 16, zero, "F32")  # type: ignore[arg-type]
    rng = np.random.default_rng(3)
    x = rng.standard_normal((24, 16)).astype(np.float32)
    w = rng.uniform(0.2, 3, (1, 16)).astype(np.float32)
    found = search_scales(grid, x, w)
    y = grid.decode(encode_groups(grid, x, found), found)
    ours = (w * np.square(y - x)).sum(1)
    best = np.full(len(x), np.inf)
    reach = np.abs(x).max(1)
    for share in np.linspace(0.05, 0.5, 120):
        d = (reach * share).astype(np.float32)
        zeros = np.linspace(-7, 0, 57)[:, None] * d if zero == "bias" else range(8)
        if zero == "middle":
            zeros = [4]
        for sign, z in itertools.product((1, -1), zeros):
            scales = grid.scales(sign * d, np.broadcast_to(np.float32(z), d.shape))
            tried = grid.decode(grid.encode(x, scales), scales)
            best = np.minimum(best, (w * np.square(tried - x)).sum(1))
    assert ours.sum() < 1.12 * best.sum()


def test_importance_matters() -> None:
    grid = Groups("x", 3, 32, "bias", "BF16")
    rng = np.random.default_rng(4)
    x = rng.standard_normal((200, 64)).astype(np.float32)
    importance = np.where(np.arange(64) % 4 == 0, 4, 0.1).astype(np.float32)
    errors = []
    for known in (None, importance):
        codes, scales = quantise_groups(grid, x, known, plain=False)
        y = grid.decode(codes.reshape(-1, 32), scales.reshape(-1)).reshape(x.shape)
        errors.append((importance * np.square(y - x)).sum())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("bits", range(1, 9))
def test_streams_of_bits(bits: int) -> None:
    rng = np.random.default_rng(5)
    for count in (8, 32, 96):
        codes = rng.integers(0, 1 << bits, (7, count)).astype(np.uint8)
        data = packed_bits(codes, bits)
        assert data.shape == (7, count * bits // 8)
        np.testing.assert_array_equal(unpacked(data, bits, count), codes)
        stream = [codes[3, i] >> b & 1 for i in range(count) for b in range(bits)]
        np.testing.assert_array_equal(np.packbits(stream, bitorder="little"), data[3])


@pytest.mark.parametrize("bits", range(1, 9))
def test_streams_are_filled_up_to_bytes(bits: int) -> None:
    rng = np.random.default_rng(6)
    for count in (1, 3, 13):
        codes = rng.integers(0, 1 << bits, (2, 3, count)).astype(np.uint8)
        data = packed_bits(codes, bits)
        assert data.shape == (2, 3, -(-count * bits // 8))
        stream = [codes[1, 2, i] >> b & 1 for i in range(count) for b in range(bits)]
        np.testing.assert_array_equal(np.packbits(stream, bitorder="little"), data[1, 2])
        np.testing.assert_array_equal(packed_bits(codes[1, 2], bits), data[1, 2])


def test_small_floats_against_a_scan_of_all_values() -> None:
    rng = np.random.default_rng(6)
    x = (rng.standard_normal(4000) * np.exp(rng.uniform(-8, 8, 4000))).astype(np.float32)
    x[:3] = 0, -0.0, 1e-30
    for table, nearest in ((E2M1, nearest_e2m1), (E4M3, nearest_e4m3)):
        values = table[~np.isnan(table)]
        found = table[nearest(x)]
        best = np.abs(values[None] - x[:, None]).min(1)
        np.testing.assert_array_equal(np.abs(found - x), best)
        assert (found[:3] == 0).all()
    every = np.arange(256)[~np.isnan(E4M3)]
    np.testing.assert_array_equal(nearest_e4m3(E4M3[every]), every)
    assert list(power_above(np.array([1, 1.01, 0.5, 3, 0], np.float32))) == [
        1,
        2,
        0.5,
        4,
        2.0**-126,
    ]


@pytest.mark.parametrize("levels", ["E2M1", "E4M3"])
def test_small_floats_are_searched(levels: str) -> None:
    grid = Groups("x", 4 if levels == "E2M1" else 8, 32, "none", "BF16", levels)  # type: ignore[arg-type]
    x = weights(64, 32)
    errors = []
    for plain in (True, False):
        codes, scales = quantise_groups(grid, x, plain=plain)
        errors.append(np.square(grid.decode(codes, scales.reshape(-1)) - x).sum())
    assert errors[1] < errors[0]
