"""The library's face: what the command line and the server call, so that nothing is done twice."""

from kvant.api.catalogue import Formats, formats
from kvant.api.conversion import Artefact, TensorReport, convert, quantize
from kvant.api.demonstration import DEMO_RECIPES, DemoReport, demo
from kvant.api.inspection import Inspection, RecipeSize, inspect
from kvant.api.measurement import evaluate
from kvant.api.verification import verify

__all__ = [
    "DEMO_RECIPES",
    "Artefact",
    "DemoReport",
    "Formats",
    "Inspection",
    "RecipeSize",
    "TensorReport",
    "convert",
    "demo",
    "evaluate",
    "formats",
    "inspect",
    "quantize",
    "verify",
]
