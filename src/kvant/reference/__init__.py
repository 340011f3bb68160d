"""The reference: every op in plain NumPy, the judge of all faster ways to run a model."""

from kvant.reference.interpret import Interpreter
from kvant.reference.model import ReferenceModel, Tile

__all__ = ["Interpreter", "ReferenceModel", "Tile"]
