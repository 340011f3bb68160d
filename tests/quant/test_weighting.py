"""What an error counts: the textbook formula, one weight at a time, and what follows from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvant.packing import (
    BadWeight,
    convert_rows,
    dequantize,
    get,
    quantize,
    quantize_weighed,
)
from kvant.quant.pack import pack_rows
from kvant.quant.weighting import BY_SIZE, error_weights

RNG = np.random.default_rng(4)
X = RNG.standard_normal((5, 512)).astype(np.float32) * np.float32(0.02)
X[1, 256:] = 0
IMPORTANCE = RNG.gamma(0.5, 2, 512).astype(np.float32)


@pytest.mark.parametrize("packing", sorted(BY_SIZE))
def test_by_size_is_the_formula(packing: str) -> None:
    found = error_weights(packing, X, IMPORTANCE)
    assert found is not None
    assert found.shape == X.shape
    for row, column in [(0, 0), (0, 511), (4, 255), (2, 256)]:
        block = X[row, column // 256 * 256 :][:256].astype(float)
        level = float((block**2).mean())
        size = math.sqrt((2 * level + float(X[row, column]) ** 2) / level)
        want = float(IMPORTANCE[column]) ** 0.75 * size
        assert found[row, column] == pytest.approx(want, rel=1e-5)
    # A block of zeros has no size: its columns count by their importance alone.
    np.testing.assert_allclose(found[1, 256:], math.sqrt(2) * IMPORTANCE[256:] ** 0.75, rtol=1e-5)
    assert quantize_weighed(packing, X, found).shape == quantize(packing, X).shape


def test_others_count_by_column() -> None:
    for packing in ("Q4_K", "Q5_K", "Q6_K"):
        np.testing.assert_array_equal(error_weights(packing, X, IMPORTANCE), IMPORTANCE)
        assert error_weights(packing, X, None) is None


@pytest.mark.parametrize("packing", ["Q2_K", "Q3_K", "Q4_K", "Q8_0"])
@pytest.mark.parametrize("importance", [None, IMPORTANCE], ids=["even", "importance"])
def test_rows_are_packed_by_these_weights(packing: str, importance: np.ndarray | None) -> None:
    weights = error_weights(packing, X, importance)
    if weights is None or packing == "Q8_0":
        want = quantize(packing, X)
    else:
        want = quantize_weighed(packing, X, np.broadcast_to(weights, X.shape))
    halves = convert_rows("F32", "F16", X.view(np.uint8), 512)
    np.testing.assert_array_equal(
        pack_rows("F32", packing, X.view(np.uint8), 512, importance), want
    )
    again = pack_rows("F16", packing, halves, 512, importance)
    for row in range(len(X)):  # whatever rows go together
        one = pack_rows("F16", packing, halves[row : row + 1], 512, importance)
        np.testing.assert_array_equal(one[0], again[row])


@pytest.mark.parametrize("packing", ["Q2_K", "Q3_K", "Q4_K"])
def test_each_error_weighed_by_itself(packing: str) -> None:
    """Weights of columns give what the core gives for columns; others, less of their error."""
    columns = np.broadcast_to(IMPORTANCE, X.shape)
    np.testing.assert_array_equal(
        quantize_weighed(packing, X, columns), quantize(packing, X, IMPORTANCE)
    )
    weights = RNG.gamma(0.3, 2, X.shape).astype(np.float32)
    out = np.zeros(10_000, np.uint8)
    packed = quantize_weighed(packing, X, weights, out)
    assert packed.base is not None
    assert packed.shape == (5, get(packing).storage.row_bytes(512))

    def error(p: np.ndarray) -> float:
        return float((weights * (dequantize(packing, p) - X) ** 2).sum())

    assert error(packed) < 0.9 * error(quantize(packing, X))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 70000.0])
def test_a_bad_weight_is_found(value: float) -> None:
    x = X.copy()
    x[3, 17] = value
    with pytest.raises(BadWeight) as caught:
        quantize_weighed("Q2_K", x, np.ones_like(x))
    assert (caught.value.row, caught.value.column) == (3, 17)
