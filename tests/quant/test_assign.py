"""A recipe meets a model: overrides, maps, fallbacks, and what is refused."""

from __future__ import annotations

import pytest

from kvant.errors import UsageError
from kvant.quant.assign import Slot, assign, parse_override
from kvant.quant.presets import PRESETS, preset
from kvant.quant.recipe import ModelShape, Recipe, Rule

SHAPE = ModelShape("llama", layers=2, queries_per_kv_head=1, tied_output=False)
SLOTS = [
    Slot("token_embd.weight", "token_embd", None, (300, 256)),
    Slot("blk.0.attn_norm.weight", "attn_norm", 0, (256,)),
    Slot("blk.0.attn_q.weight", "attn_q", 0, (256, 256)),
    Slot("blk.0.ffn_down.weight", "ffn_down", 0, (256, 288)),
    Slot("blk.1.ffn_down.weight", "ffn_down", 1, (256, 40)),
    Slot("output.weight", "output", None, (300, 256)),
]


def _packings(recipe: Recipe, *overrides: str) -> dict[str, str]:
    found = assign(recipe, SLOTS, SHAPE, [parse_override(text) for text in overrides])
    return {a.slot.name: a.packing for a in found}


def test_fallbacks_are_told() -> None:
    found = {a.slot.name: a for a in assign(preset("Q4_K_S"), SLOTS, SHAPE)}
    assert [name for name, a in found.items() if a.fell_back] == [
        "blk.0.ffn_down.weight",
        "blk.1.ffn_down.weight",
    ]
    assert found["blk.0.ffn_down.weight"].packing == "Q5_0"
    assert found["blk.0.ffn_down.weight"].wanted == "Q4_K"
    assert found["blk.1.ffn_down.weight"].packing == "F16"


def test_the_first_override_decides() -> None:
    got = _packings(preset("Q4_K_M"), r"blk\.0\..*=Q8_0", "attn_q|output=Q6_K")
    assert got["blk.0.attn_q.weight"] == "Q8_0"
    assert got["blk.0.ffn_down.weight"] == "Q8_0"
    assert got["output.weight"] == "Q6_K"
    assert got["blk.0.attn_norm.weight"] == "F32"


def test_the_map_goes_before_the_rules_and_overrides_before_the_map() -> None:
    recipe = Recipe(
        "mine",
        "Q4_K",
        "a test",
        15,
        "low",
        rules=(Rule("Q8_0", ("attn_q",)),),
        tensors={"blk.0.attn_q.weight": "Q6_K", "output.weight": "Q3_K"},
    )
    assert _packings(recipe)["blk.0.attn_q.weight"] == "Q6_K"
    assert _packings(recipe)["output.weight"] == "Q3_K"
    assert _packings(recipe, "attn_q=Q2_K")["blk.0.attn_q.weight"] == "Q2_K"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ffn_down", "REGEX=PACKING"),
        ("=Q6_K", "REGEX=PACKING"),
        ("(=Q6_K", "not a regular expression"),
        ("*=Q6_K", "not a regular expression"),
        ("ffn_down=Q7_K", "Q7_K"),
        ("ffn_down=", "''"),
    ],
)
def test_overrides_that_make_no_sense(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_override(text)
    assert words in str(caught.value)


def test_overrides_that_do_not_suit_the_model() -> None:
    with pytest.raises(UsageError, match="matches no weight matrix"):
        _packings(preset("Q4_K_M"), "ffn_dwon=Q6_K")
    with pytest.raises(UsageError, match="matches no weight matrix"):
        _packings(preset("Q4_K_M"), "attn_norm=Q8_0")  # vectors are not quantised
    with pytest.raises(UsageError, match=r"blk\.0\.ffn_down\.weight has rows of 288"):
        _packings(preset("Q4_K_M"), "ffn_down=Q6_K")


def test_a_map_of_another_model() -> None:
    recipe = Recipe("mine", "Q4_K", "a test", 15, "low", tensors={"blk.9.attn_q.weight": "Q6_K"})
    with pytest.raises(UsageError, match=r"'blk\.9\.attn_q\.weight'"):
        _packings(recipe)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("q4_k_m", "Q4_K_M"), ("Q4-K-M", "Q4_K_M"), ("bf16", "BF16"), ("Q8_0", "Q8_0")],
)
def test_presets_by_name(typed: str, meant: str) -> None:
    assert preset(typed).name == meant


@pytest.mark.parametrize(
    ("typed", "near"), [("Q4_K_N", "Q4_K"), ("Q4KM", "Q4_K_M"), ("Q8", "Q8_0"), ("fp16", "F16")]
)
def test_unknown_presets_name_the_nearest(typed: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean {near}"):
        preset(typed)


def test_unknown_presets_without_a_neighbour() -> None:
    with pytest.raises(UsageError, match="no recipe called 'nonsense'") as caught:
        preset("nonsense")
    assert "Did you mean" not in str(caught.value)


def test_every_preset_has_words_for_people() -> None:
    for recipe in PRESETS:
        assert 10 < len(recipe.good_for) < 70, recipe.name
        assert recipe.precision_class in ("ultra-low", "low", "medium", "full")
    assert len({r.file_type for r in PRESETS}) == len(PRESETS)
