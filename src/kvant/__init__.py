"""kvant: convert, quantise, prove, run, ship language models.

    import kvant

    kvant.quantize("path/to/checkpoint", "Q4_K_M")
    for r in kvant.evaluate("model-Q4_K_M.gguf", against="path/to/checkpoint"):
        print(r.name, r.perplexity, r.kld)

Importing kvant does nothing but define names; what they need is loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvant.version import __version__

if TYPE_CHECKING:
    from kvant.api import (
        Artefact,
        DemoReport,
        Formats,
        Inspection,
        convert,
        demo,
        evaluate,
        formats,
        inspect,
        quantize,
        verify,
    )
    from kvant.errors import KvantError
    from kvant.evaluation import EvalResult
    from kvant.export.gguf.verify import Verification
    from kvant.quant.recipe import Recipe, Rule

__all__ = [
    "Artefact",
    "DemoReport",
    "EvalResult",
    "Formats",
    "Inspection",
    "KvantError",
    "Recipe",
    "Rule",
    "Verification",
    "__version__",
    "convert",
    "demo",
    "evaluate",
    "formats",
    "inspect",
    "quantize",
    "verify",
]

_ELSEWHERE = {
    "EvalResult": "kvant.evaluation",
    "KvantError": "kvant.errors",
    "Recipe": "kvant.quant.recipe",
    "Rule": "kvant.quant.recipe",
    "Verification": "kvant.export.gguf.verify",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'kvant' has no attribute {name!r}")
    from importlib import import_module

    value = _ELSEWHERE.get(name)
    found = getattr(import_module(value or "kvant.api"), name)
    globals()[name] = found  # the next look-up does not come here
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
