"""Measurements that advice cites, and its rules, from ``knowledge.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["USES", "Cited", "knowledge", "quality_of_recipe"]

USES = ("chat", "code", "productivity", "research")
"""What a model may be wanted for."""


@dataclass(frozen=True, slots=True)
class Cited:
    """A mean KL divergence in nats a token, of which model, and who measured it."""

    kld: float
    model: str
    source: str
    measured_here: bool = False
    """From evidence beside the source, so of this very model."""

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "kld": self.kld,
            "model": self.model,
            "source": self.source,
            "measured_here": self.measured_here,
        }


@cache
def knowledge() -> dict[str, Any]:
    """The file's content; not to be changed."""
    text = (files("kvant.devices") / "knowledge.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def quality_of_recipe(recipe: str, importance: bool = False) -> Cited | None:
    """What was measured of a recipe, the largest model first; None where nothing was.

    ``importance``: quantised with an importance matrix, where such a figure is known.
    """
    rows = knowledge()["quality"]
    names = [f"{recipe} with importance"] if importance else []
    for name in [*names, recipe, f"{recipe} with importance"]:
        for row in rows:
            if row["recipe"] == name:
                extra = " (with importance)" if name != recipe else ""
                return Cited(row["kld"], row["model"] + extra, row["source"])
    return None
