"""Every packing and recipe kvant knows."""

from __future__ import annotations

from dataclasses import dataclass

from kvant.packing import Packing, all_packings
from kvant.quant.nominal import nominal_bits_per_weight
from kvant.quant.presets import PRESETS
from kvant.quant.recipe import Recipe

__all__ = ["Formats", "formats"]


@dataclass(frozen=True, slots=True)
class Formats:
    """All packings, fewest bits first, and all recipes, by the bits of their codes."""

    packings: tuple[Packing, ...]
    recipes: tuple[Recipe, ...]

    def to_json(self) -> dict[str, object]:
        """As plain data; recipes' bits per weight are those on Llama-3.1-8B's shape."""
        return {
            "packings": [
                {
                    "name": p.name,
                    "precision_class": p.precision_class,
                    "bits_per_weight": p.bits_per_weight,
                    "block": p.block,
                    "block_bytes": p.storage.block_bytes,
                    "block_layout": p.block_layout,
                    "good_for": p.good_for,
                }
                for p in self.packings
            ],
            "recipes": [
                {
                    "name": r.name,
                    "precision_class": r.precision_class,
                    "bits_per_weight": nominal_bits_per_weight(r),
                    "base": r.base,
                    "output": r.output or r.base,
                    "rules": [
                        {
                            "packing": rule.packing,
                            "roles": list(rule.roles),
                            "layers": rule.layers,
                            "min_queries_per_kv_head": rule.min_queries_per_kv_head,
                            "experts": rule.experts,
                        }
                        for rule in r.rules
                    ],
                    "good_for": r.good_for,
                }
                for r in self.recipes
            ],
        }


def formats() -> Formats:
    """Every packing and recipe."""
    return Formats(all_packings(), PRESETS)
