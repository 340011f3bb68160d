"""The recipes everyone knows by name: llama.cpp's presets over the packings kvant has.

The rules reproduce llama.cpp's choice tensor by tensor (src/llama-quant.cpp), so that a file named
Q4_K_M has the layout people expect of that name. Facts that shaped them: the value projection and
the down projection of the feed-forward lose most when quantised; the output matrix is read for
every token and decides between near-equal words.
"""

from __future__ import annotations

import difflib

from kvant.errors import UsageError
from kvant.packing.spec import PrecisionClass
from kvant.quant.recipe import Recipe, Rule

__all__ = ["PRESETS", "preset"]

# The value projection; where query, key and value are one tensor, that one.
_VALUE = ("attn_v", "attn_qkv")


def _k(
    name: str,
    base: str,
    good_for: str,
    file_type: int,
    precision_class: PrecisionClass,
    *rules: Rule,
    output: str = "Q6_K",
) -> Recipe:
    """A recipe whose output matrix is kept at Q6_K, or at Q8_0 where rows do not fill blocks."""
    return Recipe(
        name,
        base,
        good_for,
        file_type,
        precision_class,
        output=output,
        output_fallback="Q8_0",
        rules=rules,
    )


def _few_bits(name: str, base: str, good_for: str, file_type: int, lift: str, mix: str) -> Recipe:
    """A recipe of one or two bits: the embedding, the first down projections and, without shared
    keys, the value projection get ``lift``; the attention's output gets ``mix``."""
    return _k(
        name,
        base,
        good_for,
        file_type,
        "ultra-low",
        Rule(lift, ("token_embd",)),
        Rule("Q4_K", _VALUE, min_queries_per_kv_head=4),
        Rule(lift, _VALUE),
        Rule(lift, ("ffn_down",), "first 1/8"),
        Rule(mix, ("attn_output",)),
        output="Q5_K",
    )


def _ternary(name: str, good_for: str, file_type: int) -> Recipe:
    """Three values a weight, for models that were trained so; more for the embedding."""
    return _k(name, name, good_for, file_type, "ultra-low", Rule("Q4_K", ("token_embd",)))


def _uneven(name: str, base: str, good_for: str, file_type: int) -> Recipe:
    """Four bits of uneven levels: more for the value projection where keys are shared, and for the
    first down projections."""
    return _k(
        name,
        base,
        good_for,
        file_type,
        "low",
        Rule("Q5_K", _VALUE, min_queries_per_kv_head=4),
        Rule("Q5_K", ("ffn_down",), "first 1/8"),
    )


PRESETS: tuple[Recipe, ...] = (
    _k("Q1_0", "Q1_0", "models trained with two values a weight", 40, "ultra-low"),
    _few_bits("IQ1_S", "IQ1_S", "research: the least there is", 24, "Q2_K", "IQ2_XXS"),
    _few_bits(
        "IQ1_M", "IQ1_M", "research: very large models, little memory", 31, "Q2_K", "IQ2_XXS"
    ),
    _ternary("TQ1_0", "models trained with three values a weight, the smallest file", 36),
    _few_bits("IQ2_XXS", "IQ2_XXS", "extreme limits, for large models", 19, "Q2_K", "IQ2_XXS"),
    _ternary("TQ2_0", "models trained with three values a weight, the fastest", 37),
    _few_bits("IQ2_XS", "IQ2_XS", "extreme limits: two bits, a table finer", 20, "Q2_K", "IQ2_XS"),
    _few_bits("IQ2_S", "IQ2_XS", "extreme limits: more where it matters", 28, "IQ3_S", "IQ3_S"),
    _few_bits("IQ2_M", "IQ2_S", "extreme limits: the largest two bits", 29, "IQ3_S", "IQ3_S"),
    _k(
        "Q2_K",
        "Q2_K",
        "extreme limits: the smallest that still writes sentences",
        10,
        "ultra-low",
        Rule("Q4_K", _VALUE, min_queries_per_kv_head=4),
        Rule("Q3_K", (*_VALUE, "ffn_down", "attn_output")),
    ),
    _k(
        "Q2_K_S",
        "Q2_K",
        "research: two bits nearly everywhere",
        21,
        "ultra-low",
        Rule("Q4_K", _VALUE, min_queries_per_kv_head=4),
        Rule("Q4_K", ("ffn_down",), "first 1/8"),
    ),
    _k(
        "IQ3_XXS",
        "IQ3_XXS",
        "small devices: the smallest three bits",
        23,
        "low",
        Rule("IQ3_S", ("token_embd", "attn_output")),
        Rule("Q4_K", _VALUE, min_queries_per_kv_head=4),
        Rule("IQ2_S", ("attn_q", "attn_k")),
        output="Q5_K",
    ),
    _k(
        "IQ3_XS",
        "IQ3_S",
        "small devices: three bits, less in the middle layers",
        22,
        "low",
        Rule("Q4_K", _VALUE, min_queries_per_kv_head=4),
        Rule("IQ3_XXS", ("attn_q", "attn_k")),
        Rule("IQ3_XXS", ("ffn_gate", "ffn_up"), "middle 3/4"),
    ),
    _k(
        "IQ3_S",
        "IQ3_S",
        "small devices: better than Q3_K_S at its size",
        26,
        "low",
        Rule("Q4_K", _VALUE, min_queries_per_kv_head=4),
    ),
    _k(
        "IQ3_M",
        "IQ3_S",
        "small devices: three bits, more where it matters",
        27,
        "low",
        Rule("Q4_K", (*_VALUE, "attn_output")),
        Rule("Q4_K", ("ffn_down",), "first 1/8"),
        Rule("Q4_K", ("ffn_down",), "more", experts=8),
    ),
    _k(
        "Q3_K_S",
        "Q3_K",
        "small devices, three bits everywhere",
        11,
        "low",
    ),
    _k(
        "Q3_K_M",
        "Q3_K",
        "small devices: three bits, more where it matters",
        12,
        "low",
        Rule("Q5_K", _VALUE, "first 2"),
        Rule("Q4_K", (*_VALUE, "attn_output")),
        Rule("Q5_K", ("ffn_down",), "first 1/16"),
        Rule("Q4_K", ("ffn_down",)),
    ),
    _k(
        "Q3_K_L",
        "Q3_K",
        "small devices, the larger three bits",
        13,
        "low",
        Rule("Q5_K", (*_VALUE, "attn_output", "ffn_down")),
    ),
    Recipe(
        "MXFP4_MOE",
        "Q8_0",
        "experts in MXFP4 as they are published, the rest at 8 bits",
        38,
        "low",
        rules=(Rule("MXFP4", ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")),),
    ),
    _uneven("IQ4_XS", "IQ4_XS", "phones: the smallest four bits, near Q4_K_S in quality", 30),
    _k(
        "Q4_0",
        "Q4_0",
        "four bits for runtimes with only basic kernels",
        2,
        "low",
    ),
    _uneven("IQ4_NL", "IQ4_NL", "phones: as IQ4_XS for rows that are no multiple of 256", 25),
    _k(
        "Q4_1",
        "Q4_1",
        "four bits with minima, for old runtimes",
        3,
        "low",
    ),
    _k(
        "Q4_K_S",
        "Q4_K",
        "phones: four bits, the smaller choice",
        14,
        "low",
        Rule("Q5_K", _VALUE, "first 4"),
        Rule("Q5_K", ("ffn_down",), "first 1/8"),
    ),
    _k(
        "Q4_K_M",
        "Q4_K",
        "phones and laptops: the usual balance of size and quality",
        15,
        "low",
        Rule("Q6_K", (*_VALUE, "ffn_down"), "more"),
    ),
    _k(
        "Q5_0",
        "Q5_0",
        "five bits for runtimes with only basic kernels",
        8,
        "medium",
    ),
    _k(
        "Q5_1",
        "Q5_1",
        "five bits with minima, for old runtimes",
        9,
        "medium",
    ),
    _k(
        "Q5_K_S",
        "Q5_K",
        "productivity: five bits everywhere",
        16,
        "medium",
    ),
    _k(
        "Q5_K_M",
        "Q5_K",
        "productivity: a loss that is hard to notice",
        17,
        "medium",
        Rule("Q6_K", (*_VALUE, "ffn_down"), "more"),
    ),
    _k(
        "Q6_K",
        "Q6_K",
        "almost the original at two fifths of 16 bits",
        18,
        "medium",
    ),
    Recipe("Q8_0", "Q8_0", "near the original; to compare smaller levels with", 7, "medium"),
    Recipe("F16", "F16", "unquantised, for runtimes without bfloat16", 1, "full"),
    Recipe("BF16", "BF16", "unquantised, as most checkpoints are published", 32, "full"),
    Recipe("F32", "F32", "unquantised single precision: references", 0, "full"),
)


def preset(name: str) -> Recipe:
    """The preset called ``name``, in any case.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    by_name = {r.name: r for r in PRESETS}
    wanted = name.upper().replace("-", "_")
    if wanted in by_name:
        return by_name[wanted]
    near = difflib.get_close_matches(wanted, by_name, 1, 0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    if "/" in name or name.endswith(".gguf"):
        hint = " Did you swap them? The model comes first, then the recipe."
    raise UsageError(f"There is no recipe called {name!r}; kvant knows {', '.join(by_name)}.{hint}")
