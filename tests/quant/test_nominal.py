"""Nominal bits per weight against the sizes llama.cpp publishes for Llama-3.1-8B."""

from __future__ import annotations

import pytest

from kvant.quant.nominal import nominal_bits_per_weight
from kvant.quant.presets import preset

# llama.cpp, tools/quantize/README.md: bits per weight of Llama-3.1-8B files.
PUBLISHED = {
    "IQ1_S": 2.0042,
    "IQ1_M": 2.1460,
    "IQ2_XXS": 2.3824,
    "IQ2_XS": 2.5882,
    "IQ2_S": 2.7403,
    "IQ2_M": 2.9294,
    "IQ3_XXS": 3.2548,
    "IQ3_XS": 3.4977,
    "IQ3_S": 3.6606,
    "IQ3_M": 3.7628,
    "Q2_K_S": 2.9697,
    "Q2_K": 3.1593,
    "Q3_K_S": 3.6429,
    "Q3_K_M": 3.9960,
    "Q3_K_L": 4.2979,
    "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944,
    "Q5_K_S": 5.5704,
    "Q5_K_M": 5.7036,
    "Q6_K": 6.5633,
    "Q8_0": 8.5008,
    "F16": 16.0005,
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_sizes(recipe: str) -> None:
    assert nominal_bits_per_weight(preset(recipe)) == pytest.approx(PUBLISHED[recipe], abs=0.002)
