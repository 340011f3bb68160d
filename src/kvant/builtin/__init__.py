"""The built-in model and texts: real input for a first run, without a download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["DEMO", "builtin_text", "demo_path"]

DEMO = "demo"
"""What users type for the built-in model."""


def demo_path() -> Path:
    """Folder of the built-in model, in Hugging Face's layout."""
    return Path(str(files("kvant.builtin"))) / "demo"


def builtin_text(name: str) -> Path:
    """Path of the built-in "calibration" or "evaluation" text; the model has seen neither."""
    return Path(str(files("kvant.builtin"))) / f"{name}.txt"
