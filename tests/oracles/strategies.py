"""Hypothesis strategies for what packings work on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from kvant.packing import Packing
from kvant.packing.lattice_layout import LatticePacking
from kvant.packing.spec import SCALES

from .weights import HALF_MAX

__all__ = ["blocks", "blocks_and_importance", "codes_and_scales"]

Floats = npt.NDArray[Any]

_seeds = st.integers(0, 2**32 - 1)
_weights = st.floats(-HALF_MAX, HALF_MAX, width=32)


@st.composite
def blocks(draw: st.DrawFn, block: int, least: float = -45.0) -> Floats:
    """Blocks [n, block]: a distribution at a magnitude from 10^least up, some weights replaced."""
    n = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(_seeds))
    magnitude = 10.0 ** draw(st.floats(least, 4.5))
    raw = draw(st.sampled_from(_SHAPES))(rng, n, block) * magnitude
    x: Floats = np.clip(raw, -HALF_MAX, HALF_MAX).astype(np.float32)
    if least < -40:
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, n - 1)), draw(st.integers(0, block - 1))
            x[at] = draw(_weights)
    return x


def _shape(name: str) -> Any:
    def make(rng: np.random.Generator, n: int, block: int) -> Floats:
        g = rng.standard_normal((n, block))
        if name == "gaussian":
            return g
        if name == "cubed":
            return g**3
        if name == "one sign":
            return np.abs(g)
        if name == "other sign":
            return -np.abs(g)
        if name == "few":
            return g * (rng.random((n, block)) < 0.05)
        if name == "far":
            return 1 + g * 1e-3
        if name == "levels":
            return rng.integers(-3, 4, (n, block)) / 3
        if name == "runs":
            return g * np.repeat(10.0 ** rng.uniform(-8, 0, (n, block // 16)), 16, axis=1)
        return 10.0 ** rng.uniform(-8, 0, (n, block)) * np.sign(g)

    return make


_SHAPES = [
    _shape(name)
    for name in (
        *("gaussian", "cubed", "one sign", "other sign", "few", "far", "levels", "runs", "wide"),
    )
]


@st.composite
def blocks_and_importance(
    draw: st.DrawFn, block: int, least: float = -45.0
) -> tuple[Floats, Floats | None]:
    """Blocks, and None or importance of the same shape: even, skewed, or mostly zero."""
    x = draw(blocks(block, least))
    rng = np.random.default_rng(draw(_seeds))
    how = draw(st.sampled_from(["none", "ones", "skewed", "some", "zero", "wide"]))
    if how == "none":
        return x, None
    w = {
        "ones": np.ones(x.shape),
        "skewed": np.exp(rng.standard_normal(x.shape) * 2),
        "some": rng.random(x.shape) < 0.1,
        "zero": np.zeros(x.shape),
        "wide": 10.0 ** rng.uniform(-30, 2, x.shape),
    }[how]
    return x, w.astype(np.float32)


_SUB_RANGES = {  # sub-blocks, least and most of their integer scales, most of their minima
    "Q2_K": (16, 0, 15, 15),
    "Q3_K": (16, -32, 31, 0),
    "Q4_K": (8, 0, 63, 63),
    "Q5_K": (8, 0, 63, 63),
    "Q6_K": (16, -128, 127, 0),
    "IQ4_XS": (8, -32, 31, 0),
    "NVFP4": (4, 0, 0, 126),
}


def _half(place: int) -> float:
    sign, size = divmod(place, 0x7C00)
    return float(np.uint16(sign << 15 | size).view(np.float16))


_halves = st.integers(0, 2 * 0x7C00 - 1).map(_half)
"""Any finite half, as a float."""


@st.composite
def codes_and_scales(draw: st.DrawFn, packing: Packing) -> tuple[Floats, Floats]:
    """Any codes and scales that a file in this packing can hold, d and dmin finite."""
    n = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(_seeds))
    most = 3 if packing.name == "TQ1_0" else 2**packing.bits
    codes = rng.integers(0, most, (n, packing.block)).astype(np.uint8)
    scales = np.zeros(n, SCALES)
    affine = packing.name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")
    for field in ("d", "dmin") if affine else ("d",):
        scales[field] = draw(st.lists(_halves, min_size=n, max_size=n))
    if isinstance(packing, LatticePacking):  # any bytes are points; not any codes
        data = rng.integers(0, 256, (n, packing.storage.block_bytes), dtype=np.uint8)
        codes, of_bytes = packing.unlayout(data)
        scales["sub"], scales["submin"] = of_bytes["sub"], of_bytes["submin"]
    if packing.name == "MXFP4":
        scales["d"] = 2.0 ** rng.integers(-128, 128, n)
    if packing.name == "NVFP4":
        scales["d"] = 1
    if packing.name in _SUB_RANGES:
        subs, least, most, most_minimum = _SUB_RANGES[packing.name]
        scales["sub"][:, :subs] = rng.integers(least, most + 1, (n, subs))
        scales["submin"][:, :subs] = rng.integers(0, most_minimum + 1, (n, subs))
    return codes, scales
