"""Every packing, recipe and level kvant knows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from kvant.errors import UsageError
from kvant.export.target import TARGETS, Level, find_target
from kvant.packing import Packing, all_packings
from kvant.quant.nominal import nominal_bits_per_weight
from kvant.quant.presets import PRESETS
from kvant.quant.recipe import Recipe

__all__ = ["Formats", "formats"]


@dataclass(frozen=True, slots=True)
class Formats:
    """All packings, fewest bits first, all recipes, by the bits of their codes, and targets."""

    packings: tuple[Packing, ...]
    recipes: tuple[Recipe, ...]
    targets: Mapping[str, tuple[Level, ...]]
    """The levels of each other target, by its name."""

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
            "targets": {
                name: [
                    {
                        "name": level.name,
                        "precision_class": level.precision_class,
                        "bits": level.bits,
                        "bits_per_weight": level.bits_per_weight,
                        "group": level.group,
                        "good_for": level.good_for,
                    }
                    for level in levels
                ]
                for name, levels in self.targets.items()
            },
        }


def formats() -> Formats:
    """Every packing and recipe, and the levels of every other target."""
    targets = {}
    for name in TARGETS:
        with suppress(UsageError):  # a target that this installation does not have
            targets[name] = tuple(find_target(name).levels())
    return Formats(all_packings(), PRESETS, {n: levels for n, levels in targets.items() if levels})
