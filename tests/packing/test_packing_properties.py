"""What is true of packings for any weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.errors import UsageError
from kvant.packing import Packing, all_packings, dequantize, get, known, native, quantize
from kvant.packing.spec import SCALES
from oracles.kernels import BLOCK_PACKINGS, PLAIN_PACKINGS, SEARCHED_PACKINGS
from oracles.strategies import blocks, blocks_and_importance, codes_and_scales

by_name = pytest.mark.parametrize("packing", BLOCK_PACKINGS, ids=lambda p: p.name)
plain = pytest.mark.parametrize("packing", PLAIN_PACKINGS, ids=lambda p: p.name)
searched = pytest.mark.parametrize("packing", SEARCHED_PACKINGS, ids=lambda p: p.name)
examples = settings(max_examples=40, deadline=None)


@by_name
@examples
@given(data=st.data())
def test_reading_gives_back_what_was_written(packing: Packing, data: st.DataObject) -> None:
    codes, scales = data.draw(codes_and_scales(packing))
    read_codes, read_scales = packing.unlayout(packing.layout(codes, scales))
    np.testing.assert_array_equal(read_codes, codes)
    for field in SCALES.names or ():
        np.testing.assert_array_equal(read_scales[field], scales[field])


@by_name
@examples
@given(seed=st.integers(0, 2**32 - 1))
def test_any_block_is_written_back_byte_for_byte(packing: Packing, seed: int) -> None:
    """Every bit of a block is a code's or a scale's: nothing is lost, nothing has two forms."""
    data = np.random.default_rng(seed).integers(
        0, 256, (8, packing.storage.block_bytes), dtype=np.uint8
    )
    codes, scales = packing.unlayout(data)
    if packing.name == "TQ1_0":  # a byte has 256 forms and five codes of three have 243
        data = packing.layout(codes, scales)
        codes, scales = packing.unlayout(data)
    number = ~np.isnan(scales["d"]) & ~np.isnan(scales["dmin"])
    again = packing.layout(codes, scales)
    np.testing.assert_array_equal(again[number], data[number])
    assert codes.max() < 2**packing.bits


@by_name
@examples
@given(data=st.data())
def test_blocks_do_not_influence_each_other(packing: Packing, data: st.DataObject) -> None:
    x, w = data.draw(blocks_and_importance(packing.block))
    together = native.fit(packing.name, x, w)
    for i in range(len(x)):
        alone = native.fit(packing.name, x[i : i + 1], None if w is None else w[i : i + 1])
        assert alone.tobytes() == together[i : i + 1].tobytes()


@by_name
@examples
@given(data=st.data(), power=st.integers(-3, 3))
def test_powers_of_two_go_into_the_scale(packing: Packing, data: st.DataObject, power: int) -> None:
    """Twice the weights: twice the scales, the same integers, the same codes."""
    x = data.draw(blocks(packing.block, least=2.0)) / np.float32(16)
    factor = np.float32(2.0**power)
    scales = packing.fit(x)
    halves = np.concatenate([scales["d"], scales["dmin"]])
    halves = np.abs(halves[halves != 0])
    if halves.size and (halves.min() < 2**-10 or halves.max() > 2**11 or np.abs(x).max() > 8000):
        return  # a scale would leave the normal halves
    scaled = packing.fit(x * factor)
    if packing.name == "NVFP4":  # its scales are floats of three bits behind the point
        codes = scales["submin"].astype(int)
        used = codes[codes > 0]
        if (codes[:, :4] == 0)[np.abs(x).reshape(len(x), 4, 16).max(2) > 0].any():
            return  # too small for any scale
        if used.size and (min(used.min(), used.min() + 8 * power) < 16 or used.max() > 90):
            return  # denormal, or beyond the largest
        shifted = np.where(codes > 0, codes + 8 * power, 0)
        np.testing.assert_array_equal(scaled["submin"], shifted)
        np.testing.assert_array_equal(packing.encode(x * factor, scaled), packing.encode(x, scales))
        return
    for field in ("sub", "submin"):
        np.testing.assert_array_equal(scaled[field], scales[field])
    for field in ("d", "dmin"):
        np.testing.assert_array_equal(scaled[field], scales[field] * factor)
    np.testing.assert_array_equal(packing.encode(x * factor, scaled), packing.encode(x, scales))


@searched
@examples
@given(data=st.data(), power=st.integers(-6, 6))
def test_only_ratios_of_importance_count(packing: Packing, data: st.DataObject, power: int) -> None:
    x = data.draw(blocks(packing.block, least=-4.0))
    w = np.exp(np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(x.shape))
    w = w.astype(np.float32)
    once = native.fit(packing.name, x, w)
    assert native.fit(packing.name, x, w * np.float32(2.0**power)).tobytes() == once.tobytes()


@searched
@examples
@given(data=st.data())
def test_equal_importance_is_no_importance(packing: Packing, data: st.DataObject) -> None:
    x = data.draw(blocks(packing.block))
    with_ones = native.fit(packing.name, x, np.ones_like(x))
    assert with_ones.tobytes() == native.fit(packing.name, x, None).tobytes()


@searched
@examples
@given(data=st.data())
def test_weights_of_no_importance_do_not_matter(packing: Packing, data: st.DataObject) -> None:
    """Where importance is zero a weight may be anything inside the range of the others."""
    x = data.draw(blocks(packing.block, least=-3.0))
    w = np.ones_like(x)
    w[:, 5::16] = 0
    y = x.copy()
    y[:, 5::16] = x[:, 4::16]
    both = native.fit(packing.name, np.where(w > 0, x, y), w), native.fit(packing.name, y, w)
    assert both[0].tobytes() == both[1].tobytes()


@pytest.mark.parametrize("name", ["Q3_K", "Q6_K", "Q4_0", "Q5_0"])
@examples
@given(data=st.data())
def test_negation_is_in_the_sign_of_the_scale(name: str, data: st.DataObject) -> None:
    packing = get(name)
    x = data.draw(blocks(packing.block))
    scales, negated = packing.fit(x), packing.fit(-x)
    np.testing.assert_array_equal(negated["d"], -scales["d"])
    np.testing.assert_array_equal(negated["sub"], scales["sub"])
    np.testing.assert_array_equal(packing.encode(-x, negated), packing.encode(x, scales))


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0", "F16", "BF16", "F32"])
@examples
@given(data=st.data())
def test_quantising_again_changes_nothing(name: str, data: st.DataObject) -> None:
    """The formulas without a minimum find the scale of decoded weights again, exactly."""
    x = data.draw(blocks(32))
    x = np.clip(x, -60000, 60000)  # nearer to the limit a rounded scale carries weights beyond it
    once = dequantize(name, quantize(name, x))
    np.testing.assert_array_equal(dequantize(name, quantize(name, once)), once)


@plain
@examples
@given(data=st.data())
def test_error_of_a_formula_is_at_most_its_step(packing: Packing, data: st.DataObject) -> None:
    """Half a step, or one where the range is lopsided by one level; and the scale's rounding."""
    x = data.draw(blocks(packing.block, least=-2.0))
    scales = packing.fit(x)
    y = packing.decode(packing.encode(x, scales), scales).astype(np.float64)
    step = np.abs(scales["d"].astype(np.float64))[:, None]
    steps = 1.0 if packing.name in ("Q4_0", "Q5_0") else 0.5
    rounding = 2.0**-11 * (np.abs(x).max(1, keepdims=True) + step) * 2 + 2.0**-17
    assert (np.abs(y - x) <= steps * step * (1 + 1e-5) + rounding).all()


@searched
@examples
@given(data=st.data())
def test_a_search_beats_writing_zeros(packing: Packing, data: st.DataObject) -> None:
    x, w = data.draw(blocks_and_importance(packing.block))
    scales = native.fit(packing.name, x, w)
    y = native.decode(packing.name, native.encode(packing.name, x, scales, w), scales)
    weights = 1.0 if w is None else w.astype(np.float64)
    error = (weights * (y.astype(np.float64) - x) ** 2).sum(1)
    energy = (weights * x.astype(np.float64) ** 2).sum(1)
    assert (error <= energy * (1 + 1e-4) + 1e-30).all()


@searched
def test_few_outliers_of_little_importance(packing: Packing) -> None:
    """Sums over the heavy weights hide what the light ones gain."""
    rng = np.random.default_rng(1)
    for share in (0.005, 0.02, 0.1):
        x = rng.standard_normal((2000, packing.block)).astype(np.float32)
        x[rng.random(x.shape) > share] = 0
        w = (rng.choice([1e-6, 1e-3, 1, 1e3], x.shape) * rng.random(x.shape)).astype(np.float32)
        scales = native.fit(packing.name, x, w)
        y = native.decode(packing.name, native.encode(packing.name, x, scales, w), scales)
        weights = w.astype(np.float64)
        error = (weights * (y.astype(np.float64) - x) ** 2).sum(1)
        energy = (weights * x.astype(np.float64) ** 2).sum(1)
        assert (error <= energy * (1 + 1e-4) + 1e-30).all()


@by_name
def test_zeros_stay_zeros(packing: Packing) -> None:
    x = np.zeros((3, packing.block), np.float32)
    assert not dequantize(packing.name, quantize(packing.name, x)).any()


def test_names_sizes_and_classes() -> None:
    """What `kvant formats` shows."""
    table = {p.name: (p.precision_class, round(p.bits_per_weight, 4)) for p in all_packings()}
    assert table == {
        "Q1_0": ("ultra-low", 1.125),
        "IQ1_S": ("ultra-low", 1.5625),
        "IQ1_M": ("ultra-low", 1.75),
        "TQ1_0": ("ultra-low", 1.6875),
        "TQ2_0": ("ultra-low", 2.0625),
        "IQ2_XXS": ("ultra-low", 2.0625),
        "IQ2_XS": ("ultra-low", 2.3125),
        "IQ2_S": ("ultra-low", 2.5625),
        "Q2_K": ("ultra-low", 2.625),
        "IQ3_XXS": ("low", 3.0625),
        "Q3_K": ("low", 3.4375),
        "IQ3_S": ("low", 3.4375),
        "MXFP4": ("low", 4.25),
        "IQ4_XS": ("low", 4.25),
        "NVFP4": ("low", 4.5),
        "Q4_0": ("low", 4.5),
        "IQ4_NL": ("low", 4.5),
        "Q4_K": ("low", 4.5),
        "Q4_1": ("low", 5.0),
        "Q5_0": ("medium", 5.5),
        "Q5_K": ("medium", 5.5),
        "Q5_1": ("medium", 6.0),
        "Q6_K": ("medium", 6.5625),
        "Q8_0": ("medium", 8.5),
        "F16": ("full", 16.0),
        "BF16": ("full", 16.0),
        "F32": ("full", 32.0),
    }
    sizes = [p.bits_per_weight for p in all_packings()]
    assert sizes == sorted(sizes)
    for packing in all_packings():
        assert get(packing.name.lower()) is packing
        assert known(packing.name)
        assert packing.good_for
        assert packing.block_layout
    assert not known("Q8_K")
    with pytest.raises(UsageError, match="kvant knows Q1_0, IQ1_S"):
        get("Q9_K")
    assert SCALES.itemsize == 40
