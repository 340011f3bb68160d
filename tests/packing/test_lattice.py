"""What only the codebook packings have: tables of points, groups, signs that must be even."""

from __future__ import annotations

from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kvant import _core
from kvant.packing import get, native, quantize_weighed
from kvant.packing.lattice import LatticeGrid, points_of
from kvant.packing.lattice_layout import LatticePacking
from oracles.kernels import LATTICE_PACKINGS, using
from oracles.weights import importance, kind

by_name = pytest.mark.parametrize("packing", LATTICE_PACKINGS, ids=lambda p: p.name)


def unit(grid: LatticeGrid) -> int:
    """Weights that are encoded together."""
    return 8 if grid.signs == "even" else grid.group


@pytest.mark.parity
@by_name
def test_the_points_are_the_formats(packing: LatticePacking, gguf: ModuleType) -> None:
    table = getattr(gguf.quants, packing.grid.table)
    table.init_grid()
    theirs = table.grid.reshape(table.grid_shape)
    levels = np.unique(theirs)
    ours = points_of(packing.grid.table, packing.grid.group)
    np.testing.assert_array_equal(levels[ours], theirs)
    scale = 8 if packing.grid.signs == "none" else 1  # levels are in eighths there
    np.testing.assert_array_equal(scale * levels, packing.grid.levels)


@by_name
def test_points_ascend(packing: LatticePacking) -> None:
    """They are found by their levels, so no two may be the same."""
    points = np.array(_core.grid_points(packing.storage.id))
    assert (np.diff(points) > 0).all()


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "importance"])
@by_name
def test_groups_alone_are_groups_in_blocks(packing: LatticePacking, weighted: bool) -> None:
    """Error feedback goes group by group; it gets the codes that whole blocks get."""
    grid, n = packing.grid, unit(packing.grid)
    x = kind("laplacian", 3, 256, seed=41)
    w = np.tile(importance(256, 42), (3, 1)) if weighted else None
    scales = native.fit(packing.name, x, w)
    s = scales["d"][:, None] * np.float32(grid.unit) * scales["sub"].astype(np.float32)
    per = grid.sub // n
    spread = np.ascontiguousarray(np.repeat(s[:, : 256 // grid.sub], per, 1).ravel())
    low = np.repeat(scales["submin"][:, : 256 // grid.sub], per, 1).ravel()
    expected = grid.encode(x, scales, w)
    for isa in _core.isas():
        with using(isa):
            codes = native.encode_groups(
                packing.name,
                x.reshape(-1, n),
                spread,
                low,
                None if w is None else w.reshape(-1, n),
            )
            assert codes.reshape(x.shape).tobytes() == expected.tobytes(), isa


def best_by_trying(grid: LatticeGrid, a: Any, w: Any, s: float) -> float:
    """Least weighted error of eight weights, over every point and every allowed sign: slow."""
    points = np.array(grid.levels)[points_of(grid.table, grid.group)]
    signs = np.array(list(product((1, -1), repeat=8)))
    if grid.signs == "even":
        signs = signs[(signs < 0).sum(1) % 2 == 0]
    best = np.inf
    for sign in signs:
        y = (a * sign).reshape(-1, 1, grid.group) - s * points
        best = min(best, ((y**2 * w.reshape(-1, 1, grid.group)).sum(2).min(1)).sum())
    return float(best)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_encoding_is_almost_the_best_there_is(name: str) -> None:
    """Against every point and sign there is; only points near the rounded weights are tried."""
    packing = get(name)
    assert isinstance(packing, LatticePacking)
    rng = np.random.default_rng(43)
    x = rng.standard_normal((40, 8)).astype(np.float32)
    w = np.exp(rng.standard_normal(x.shape)).astype(np.float32)
    scale = np.float32(2.2 / max(packing.grid.levels))
    low, n = np.zeros(40 * 8, np.uint8), unit(packing.grid)
    groups = x.size // n
    codes = native.encode_groups(
        name, x.reshape(-1, n), np.full(groups, scale), low[:groups], w.reshape(-1, n)
    )
    levels = packing.grid._book()[codes.reshape(x.shape)]
    ours = ((x - scale * levels) ** 2 * w).sum(1)
    best = np.array(
        [best_by_trying(packing.grid, *row, float(scale)) for row in zip(x, w, strict=True)]
    )
    assert (ours >= best * (1 - 1e-4)).all(), "the judge is beaten, so it is no judge"
    assert ours.sum() <= 1.01 * best.sum()


@by_name
def test_codes_that_are_no_point_are_refused(packing: LatticePacking) -> None:
    points = points_of(packing.grid.table, packing.grid.group)
    missing = next(
        np.array(levels)
        for levels in product(range(len(packing.grid.levels)), repeat=packing.grid.group)
        if not (points == levels).all(1).any()
    )
    codes = np.tile(missing.astype(np.uint8), (1, 256 // packing.grid.group))
    scales = native.fit(packing.name, np.ones((1, 256), np.float32))
    with pytest.raises(ValueError, match="no point"):
        packing.layout(codes, scales)


@by_name
def test_energy_can_be_kept(packing: LatticePacking) -> None:
    x = kind("gaussian", 16, 512, seed=44)
    w = np.tile(importance(512, 45), (16, 1))
    for keep, least, most in ((False, 0.6, 0.999), (True, 0.999, 1.001)):
        data = quantize_weighed(packing.name, x, w, keep_energy=keep)
        y = native.dequantize(packing.name, data).astype(np.float64)
        assert least < (w * y**2).sum() / (w * x.astype(np.float64) ** 2).sum() < most


def test_groups_are_only_of_codebooks() -> None:
    with pytest.raises(ValueError, match="no groups"):
        native.encode_groups(
            "Q4_K", np.ones((1, 8), np.float32), np.ones(1, np.float32), np.zeros(1, np.uint8)
        )
    for x, s, low in (((2, 7), 2, 2), ((2, 8), 3, 2), ((2, 8), 2, 1)):
        with pytest.raises((TypeError, ValueError)):
            native.encode_groups(
                "IQ2_XS",
                np.ones(x, np.float32),
                np.ones(s, np.float32),
                np.zeros(low, np.uint8),
            )
    with pytest.raises(ValueError, match="no table"):
        _core.grid_points(12)
