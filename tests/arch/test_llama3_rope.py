"""Llama 3.1's rope factors against the formula written out, and against transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.arch._rope import llama3_factors


def _textbook(
    head_dim: int, theta: float, factor: float, low: float, high: float, original: float
) -> list[float]:
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            blend = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - blend) / factor + blend))
    return factors


def test_the_factors_of_llama_3_2() -> None:
    factors = llama3_factors(64, 500000.0, 32.0, 1.0, 4.0, 8192.0)
    np.testing.assert_allclose(factors, _textbook(64, 500000.0, 32.0, 1.0, 4.0, 8192.0), rtol=2e-5)
    assert factors[0] == 1.0
    assert factors[-1] == 32.0
    assert all(np.float32(f) == f for f in factors)


@settings(deadline=None)
@given(
    head_dim=st.sampled_from([2, 8, 64, 128]),
    theta=st.floats(100, 1e7),
    factor=st.floats(1, 64),
    low=st.floats(0.5, 2),
    extra=st.floats(0.5, 8),
    original=st.integers(64, 131072),
)
def test_factors_lie_between_one_and_the_factor(
    head_dim: int, theta: float, factor: float, low: float, extra: float, original: int
) -> None:
    factors = np.array(llama3_factors(head_dim, theta, factor, low, low + extra, original))
    assert len(factors) == head_dim // 2
    assert np.all(factors >= 1 - 1e-5)
    assert np.all(factors <= factor * (1 + 1e-5))
    assert np.all(np.diff(factors) >= -1e-4 * factor)


@pytest.mark.parity
@pytest.mark.parametrize("head_dim", [64, 128])
def test_as_transformers(head_dim: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        head_dim=head_dim, rope_parameters={**rope, "rope_theta": 500000.0}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    plain = 1 / 500000.0 ** (np.arange(0, head_dim, 2) / head_dim)
    factors = llama3_factors(head_dim, 500000.0, 8.0, 1.0, 4.0, 8192.0)
    np.testing.assert_allclose(plain / np.array(factors), scaled.numpy(), rtol=1e-6)
