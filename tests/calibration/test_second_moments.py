"""Second moments of inputs: whatever the batches are, the mean of x x^T."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.calibration import hessian
from kvant.calibration.hessian import SecondMoments


@pytest.mark.parametrize("batches", [(1,), (7, 1, 300), (5000,), (4095, 2), ()])
def test_the_mean_of_products(batches: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "_WAITING", 24 * 1000)  # a product for every thousand rows
    rng = np.random.default_rng(0)
    moments, seen = SecondMoments(24), [np.zeros((0, 24))]
    buffer = np.empty((5000, 24), np.float32)
    for rows in batches:
        buffer[:rows] = rng.standard_normal((rows, 24))
        moments.add(buffer[:rows])
        seen.append(buffer[:rows].astype(np.float64))
        buffer[:] = np.nan  # it is the caller's again
    x = np.concatenate(seen)
    found = moments.mean()
    assert moments.count == len(x)
    np.testing.assert_allclose(found, x.T @ x / max(1, len(x)), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(moments.mean(), found)
