"""Recipes: which packing each tensor gets, as data.

A recipe is a packing for everything, rules that lift or lower some tensors by role, layer position
and shape, and an optional map of single tensors, which is what a search writes. The first rule
that fits a tensor decides; the map goes before the rules.

    Recipe("Q4_K_M", base="Q4_K", rules=(
        Rule("Q6_K", roles=("attn_v", "ffn_down"), layers="more"),
    ))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from kvant.packing.spec import PrecisionClass

__all__ = ["FLOATS", "LayerSet", "ModelShape", "Recipe", "Rule"]

FLOATS = frozenset({"F32", "F16", "BF16"})
"""Packings that are not quantised."""

LayerSet = Literal["all", "first 2", "first 4", "first 1/8", "first 1/16", "middle 3/4", "more"]
"""Layer positions a rule may name. "more" is the first and last eighth and every third between:
llama.cpp's choice of layers that repay more bits."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What rules may ask about a model."""

    architecture: str
    layers: int
    queries_per_kv_head: int
    tied_output: bool
    experts: int = 0

    @property
    def is_70b(self) -> bool:
        """Llama-2-70B and its like: 80 layers with shared keys and values."""
        return self.layers == 80 and (
            self.architecture == "qwen2"
            or (self.architecture == "llama" and self.queries_per_kv_head > 1)
        )


_EIGHT_EXPERTS = {"attn_v": "Q8_0", "attn_k": "Q8_0"}
"""llama.cpp's choice where there are eight experts, Mixtral above all: attention is so small beside
them that keys and values at 8 bits cost next to nothing."""

_EIGHT_EXPERTS_OUTPUT = frozenset(
    (
        *("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"),
        *("IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"),
    )
)
"""The recipes that give such a model's attention output Q5_K."""

_EIGHT_EXPERTS_FEW_BITS = {"attn_k": "Q4_K", "attn_output": "Q5_K"}
"""Its choice there for files of one or two bits."""

_LIFT_70B = {"Q3_K": "Q5_K", "Q4_K": "Q5_K"}
"""In those models the value projection is an eighth of the query's: bits for it cost nothing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``packing`` for tensors of these ``roles`` in these ``layers``; of experts also where a
    role without ``_exps`` is named.

    ``min_queries_per_kv_head`` restricts the rule to models whose key and value tensors are that
    many times smaller than the query's, where bits for them are cheap; ``experts``, if not 0,
    to models of that many experts.
    """

    packing: str
    roles: tuple[str, ...]
    layers: LayerSet = "all"
    min_queries_per_kv_head: int = 0
    experts: int = 0

    def fits(self, role: str, layer: int | None, shape: ModelShape) -> bool:
        """Whether the rule decides for a tensor of ``role`` in ``layer``."""
        return (
            (role in self.roles or role.removesuffix("_exps") in self.roles)
            and shape.queries_per_kv_head >= self.min_queries_per_kv_head
            and self.experts in (0, shape.experts)
            and (self.layers == "all" or (layer is not None and self._has(layer, shape.layers)))
        )

    def _has(self, i: int, n: int) -> bool:
        match self.layers:
            case "first 2":
                return i < 2
            case "first 4":
                return i < 4
            case "first 1/8":
                return i < n // 8
            case "first 1/16":
                return i < n // 16
            case "middle 3/4":
                return n // 8 <= i < 7 * n // 8
            case "more":
                return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
            case _:
                return True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named choice of packings.

    Attributes:
        name: as users type it, and as file names carry it.
        base: packing of every matrix that nothing else decides about.
        output: packing of the output matrix (and of the embedding where both are one); None
            treats it like any other.
        output_fallback: packing of that matrix where its rows do not fill blocks of ``base``.
        rules: first match decides.
        tensors: canonical tensor name -> packing, before the rules.
        file_type: GGUF's ``general.file_type``.
        good_for: one line for people choosing.
    """

    name: str
    base: str
    good_for: str
    file_type: int
    precision_class: PrecisionClass
    output: str | None = None
    output_fallback: str | None = None
    rules: tuple[Rule, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantised(self) -> bool:
        """False for recipes that only store floats."""
        return self.base not in FLOATS

    @property
    def _few_bits(self) -> bool:
        """One or two bits from a code book: llama.cpp has rules of their own for these."""
        return self.base.startswith(("IQ1", "IQ2"))

    def to_json(self) -> dict[str, object]:
        """What the recipe decides, as plain data: enough to make the same file again."""
        return {
            "name": self.name,
            "base": self.base,
            "file_type": self.file_type,
            "precision_class": self.precision_class,
            "output": self.output,
            "output_fallback": self.output_fallback,
            "rules": [asdict(rule) for rule in self.rules],
            "tensors": dict(self.tensors),
        }

    def packing_of(
        self, name: str, role: str, layer: int | None, shape: ModelShape, row_length: int
    ) -> str:
        """The packing this recipe wants for a matrix, before rows are checked against blocks."""
        from kvant.packing import get

        if name in self.tensors:
            return self.tensors[name]
        is_output = role == "output" or (role == "token_embd" and shape.tied_output)
        if is_output and self.output is not None:
            if row_length % get(self.base).block and self.output_fallback is not None:
                return self.output_fallback
            return self.output
        if shape.experts >= 4 and role in ("attn_v", "attn_qkv") and self._few_bits:
            return "Q4_K"
        if shape.experts == 8 and self._few_bits and role in _EIGHT_EXPERTS_FEW_BITS:
            return _EIGHT_EXPERTS_FEW_BITS[role]
        if shape.experts == 8 and self.quantised and not self._few_bits:
            if role in _EIGHT_EXPERTS:
                return _EIGHT_EXPERTS[role]
            if role == "attn_output":
                return "Q5_K" if self.name in _EIGHT_EXPERTS_OUTPUT else self.base
        packing = next((r.packing for r in self.rules if r.fits(role, layer, shape)), self.base)
        if role in ("attn_v", "attn_qkv") and shape.is_70b and not self._few_bits:
            return _LIFT_70B.get(packing, packing)
        return packing
