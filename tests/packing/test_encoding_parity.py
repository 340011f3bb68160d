"""The plain packings and the float types encode to ggml's bytes, block by block."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant import _core
from kvant.packing import Packing, get, quantize
from oracles.ggml import Ggml
from oracles.kernels import PLAIN_PACKINGS, using
from oracles.strategies import blocks
from oracles.weights import KINDS, hand_made, kind

pytestmark = pytest.mark.parity
FORMULAS = (*PLAIN_PACKINGS, get("F16"), get("BF16"))
by_name = pytest.mark.parametrize("packing", FORMULAS, ids=lambda p: p.name)


@pytest.mark.parametrize("case", list(hand_made(32)))
@by_name
def test_hand_made_blocks(packing: Packing, case: str, ggml: Ggml) -> None:
    x = hand_made(32)[case]
    theirs = ggml.quantize(packing.name, x)
    np.testing.assert_array_equal(
        packing.pack(x.reshape(-1, packing.block)).ravel(), theirs.ravel()
    )
    for isa in _core.isas():
        with using(isa):
            np.testing.assert_array_equal(quantize(packing.name, x), theirs, err_msg=isa)


@by_name
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
def test_any_blocks(packing: Packing, ggml: Ggml, data: st.DataObject) -> None:
    x = data.draw(blocks(32))
    np.testing.assert_array_equal(quantize(packing.name, x), ggml.quantize(packing.name, x))


@pytest.mark.parametrize("name", KINDS)
@by_name
def test_a_million_weights(packing: Packing, name: str, ggml: Ggml) -> None:
    x = kind(name, 512, 2048, seed=11)
    ours, theirs = quantize(packing.name, x), ggml.quantize(packing.name, x)
    assert np.count_nonzero(ours != theirs) == 0


@pytest.mark.parametrize("name", KINDS)
@by_name
def test_the_gguf_package(packing: Packing, name: str, gguf: ModuleType) -> None:
    x = kind(name, 64, 2048, seed=12)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[packing.name])
    theirs = theirs.view(np.uint8).reshape(len(x), -1)  # it gives halves, not bytes
    np.testing.assert_array_equal(quantize(packing.name, x), theirs)


@by_name
def test_importance_does_not_change_a_formula(packing: Packing) -> None:
    x = kind("gaussian", 4, 512)
    w = np.linspace(0, 2, 512, dtype=np.float32)
    assert quantize(packing.name, x, w).tobytes() == quantize(packing.name, x).tobytes()
