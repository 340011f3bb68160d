"""What a budget gave: the artefact, and what it was found from."""

from __future__ import annotations

from dataclasses import dataclass

from kvant.api.artefact import Artefact
from kvant.evaluation import EvalResult
from kvant.export.mixture import LevelMixture
from kvant.quant.recipe import Recipe
from kvant.tuning.sensitivity import Sensitivity

__all__ = ["Fitted"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """An artefact made to a budget, the recipe found for it, and what that was found from."""

    artefact: Artefact
    recipe: Recipe | LevelMixture
    sensitivity: Sensitivity
    expected_kld: float
    """By the table of costs, on the text they were measured on."""
    measured: EvalResult | None = None
    """The file as measured, where divergence was the budget."""

    def to_json(self) -> dict[str, object]:
        """As plain data: the artefact's, and beside it what was searched."""
        return {
            **self.artefact.to_json(),
            "expected_kld": self.expected_kld,
            "measured": None if self.measured is None else self.measured.to_json(),
            "recipe_definition": self.recipe.to_json(),
            "sensitivity": self.sensitivity.to_json(),
        }
