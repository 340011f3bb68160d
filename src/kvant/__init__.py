"""kvant: convert, quantise, prove, run, ship language models.

    import kvant

    kvant.quantize("path/to/checkpoint", "Q4_K_M")
    for r in kvant.evaluate("model-Q4_K_M.gguf", against="path/to/checkpoint"):
        print(r.name, r.perplexity, r.kld)
    with kvant.load("model-Q4_K_M.gguf") as model:
        for piece in model.stream("Once upon a time", max_tokens=100):
            print(piece, end="", flush=True)

Importing kvant does nothing but define names; what they need is loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvant.version import __version__

if TYPE_CHECKING:
    from kvant.api.advice import Doctor, Recommendation, doctor, recommend
    from kvant.api.artefact import Artefact
    from kvant.api.benchmark import BenchReport, benchmark
    from kvant.api.calibration import CalibrationReport, calibrate
    from kvant.api.catalogue import Formats, formats
    from kvant.api.conversion import convert, quantize
    from kvant.api.demonstration import DemoReport, demo
    from kvant.api.fitted import Fitted
    from kvant.api.inspection import Inspection, inspect
    from kvant.api.measurement import evaluate
    from kvant.api.model import Model, load
    from kvant.api.onnx_models import OnnxReport, optimize_onnx, quantize_onnx
    from kvant.api.tune import TuneReport, tune
    from kvant.api.verification import verify
    from kvant.api.within import quantize_within
    from kvant.calibration.importance import Importance
    from kvant.engine.constrain import Constraint
    from kvant.engine.results import Completion, Piece
    from kvant.engine.sampling import Sampling
    from kvant.errors import KvantError
    from kvant.evaluation import EvalResult, Gate, gates, kld_difference, ln_ppl_difference
    from kvant.export.gguf.verify import Verification
    from kvant.quant.recipe import Recipe, Rule

__all__ = [
    "Artefact",
    "BenchReport",
    "CalibrationReport",
    "Completion",
    "Constraint",
    "DemoReport",
    "Doctor",
    "EvalResult",
    "Fitted",
    "Formats",
    "Gate",
    "Importance",
    "Inspection",
    "KvantError",
    "Model",
    "OnnxReport",
    "Piece",
    "Recipe",
    "Recommendation",
    "Rule",
    "Sampling",
    "TuneReport",
    "Verification",
    "__version__",
    "benchmark",
    "calibrate",
    "convert",
    "demo",
    "doctor",
    "evaluate",
    "formats",
    "gates",
    "inspect",
    "kld_difference",
    "ln_ppl_difference",
    "load",
    "optimize_onnx",
    "quantize",
    "quantize_onnx",
    "quantize_within",
    "recommend",
    "tune",
    "verify",
]

_HOME = {
    "Artefact": "kvant.api.artefact",
    "BenchReport": "kvant.api.benchmark",
    "CalibrationReport": "kvant.api.calibration",
    "Completion": "kvant.engine.results",
    "Constraint": "kvant.engine.constrain",
    "DemoReport": "kvant.api.demonstration",
    "Doctor": "kvant.api.advice",
    "EvalResult": "kvant.evaluation",
    "Fitted": "kvant.api.fitted",
    "Formats": "kvant.api.catalogue",
    "Gate": "kvant.evaluation",
    "Importance": "kvant.calibration.importance",
    "Inspection": "kvant.api.inspection",
    "KvantError": "kvant.errors",
    "Model": "kvant.api.model",
    "OnnxReport": "kvant.api.onnx_models",
    "Piece": "kvant.engine.results",
    "Recipe": "kvant.quant.recipe",
    "Recommendation": "kvant.api.advice",
    "Rule": "kvant.quant.recipe",
    "Sampling": "kvant.engine.sampling",
    "TuneReport": "kvant.api.tune",
    "Verification": "kvant.export.gguf.verify",
    "benchmark": "kvant.api.benchmark",
    "calibrate": "kvant.api.calibration",
    "convert": "kvant.api.conversion",
    "demo": "kvant.api.demonstration",
    "doctor": "kvant.api.advice",
    "evaluate": "kvant.api.measurement",
    "formats": "kvant.api.catalogue",
    "gates": "kvant.evaluation",
    "inspect": "kvant.api.inspection",
    "kld_difference": "kvant.evaluation",
    "ln_ppl_difference": "kvant.evaluation",
    "load": "kvant.api.model",
    "optimize_onnx": "kvant.api.onnx_models",
    "quantize_onnx": "kvant.api.onnx_models",
    "recommend": "kvant.api.advice",
    "quantize": "kvant.api.conversion",
    "quantize_within": "kvant.api.within",
    "tune": "kvant.api.tune",
    "verify": "kvant.api.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kvant' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOME[name]), name)
    globals()[name] = found  # the next look-up does not come here
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
