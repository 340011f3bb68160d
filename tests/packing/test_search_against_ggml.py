"""The scale searches never leaves more error than ggml's, kind by kind.

The error is the sum of squared differences, weighted by column where importance is given: what a
layer's output suffers if its inputs are independent with those second moments.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from kvant.packing import Packing, dequantize, quantize
from oracles.ggml import Ggml
from oracles.kernels import SEARCHED_PACKINGS
from oracles.weights import KINDS, builtin_model, importance, kind, squared_error, tensors

pytestmark = pytest.mark.parity
by_name = pytest.mark.parametrize("packing", SEARCHED_PACKINGS, ids=lambda p: p.name)
ROWS, COLUMNS = 128, 1024


def error_ratio(ggml: Ggml, packing: Packing, x: Any, w: Any) -> float:
    ours = squared_error(x, dequantize(packing.name, quantize(packing.name, x, w)), w)
    theirs = squared_error(x, dequantize(packing.name, ggml.quantize(packing.name, x, w)), w)
    if theirs == 0:
        return np.inf if ours else 1.0
    return ours / theirs


@pytest.mark.parametrize("spread", [None, 1.0, 2.0], ids=["equal", "skewed", "very skewed"])
@pytest.mark.parametrize("name", KINDS)
@by_name
def test_kinds(packing: Packing, name: str, spread: float | None, ggml: Ggml) -> None:
    x = kind(name, ROWS, COLUMNS, seed=21)
    w = None if spread is None else importance(COLUMNS, seed=22, spread=spread)
    assert error_ratio(ggml, packing, x, w) <= 1


@pytest.mark.parametrize("name", KINDS)
@by_name
def test_importance_that_is_the_same_everywhere(packing: Packing, name: str, ggml: Ggml) -> None:
    """ggml searches harder when it is given importance, and gets within a hair of Q2_K's best."""
    x = kind(name, ROWS, COLUMNS, seed=28)
    most = 1.005 if (packing.name, name) == ("Q2_K", "uniform") else 1
    assert error_ratio(ggml, packing, x, np.ones(COLUMNS, np.float32)) <= most


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
@by_name
def test_the_scale_of_the_weights_does_not_matter(
    packing: Packing, scale: float, ggml: Ggml
) -> None:
    x = kind("gaussian", 32, COLUMNS, seed=23, scale=scale)
    assert error_ratio(ggml, packing, x, None) <= 1
    assert error_ratio(ggml, packing, x, importance(COLUMNS, seed=24)) <= 1


@pytest.mark.parametrize("scale", [1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("name", ["gaussian", "positive"])
@by_name
def test_weights_whose_scales_are_subnormal_halves(
    packing: Packing, name: str, scale: float, ggml: Ggml
) -> None:
    x = kind(name, 32, COLUMNS, seed=25, scale=scale)
    assert error_ratio(ggml, packing, x, None) <= 1
    assert error_ratio(ggml, packing, x, importance(COLUMNS, seed=26)) <= 1


@cache
def builtin_tensors() -> tuple[tuple[str, Any], ...]:
    path = builtin_model()
    return () if path is None else tuple(tensors(path, max_rows=64))


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "importance"])
@by_name
def test_the_builtin_model(packing: Packing, weighted: bool, ggml: Ggml) -> None:
    """Every matrix of the built-in model, tensor by tensor."""
    if not builtin_tensors():
        pytest.skip("this checkout has no built-in model")
    worse = {}
    for name, x in builtin_tensors():
        ratio = error_ratio(ggml, packing, x, importance(x.shape[1], 27) if weighted else None)
        if ratio > 1:
            worse[name] = ratio
    assert not worse
