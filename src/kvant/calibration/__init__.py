"""What a model's linears are fed: statistics over a text, which quantisers weigh errors by.

::

    layers.py      LayerWalk: through a model layer by layer; states.py keeps the hidden states
    importance.py  Importance: the mean square of every linear's inputs
    imatrix.py     its files, which are llama.cpp's
    belongs.py     whether one was made of this model
    texts.py       texts and their shares become chunks of tokens
    collect.py     importance collected on the engine

The names below are loaded when they are first used: reading a file needs no engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvant.calibration.belongs import belonging, model_fingerprint
    from kvant.calibration.collect import collect_importance
    from kvant.calibration.imatrix import importance_bytes, read_importance, write_importance
    from kvant.calibration.importance import Cold, Importance, Text
    from kvant.calibration.layers import Inputs, LayerWalk
    from kvant.calibration.texts import Chunks, Encoded, choose_chunks

__all__ = [
    "Chunks",
    "Cold",
    "Encoded",
    "Importance",
    "Inputs",
    "LayerWalk",
    "Text",
    "belonging",
    "choose_chunks",
    "collect_importance",
    "importance_bytes",
    "model_fingerprint",
    "read_importance",
    "write_importance",
]

_HOME = {
    "Chunks": "texts",
    "Cold": "importance",
    "Encoded": "texts",
    "Importance": "importance",
    "Inputs": "layers",
    "LayerWalk": "layers",
    "Text": "importance",
    "belonging": "belongs",
    "choose_chunks": "texts",
    "collect_importance": "collect",
    "importance_bytes": "imatrix",
    "model_fingerprint": "belongs",
    "read_importance": "imatrix",
    "write_importance": "imatrix",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kvant.calibration' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"kvant.calibration.{_HOME[name]}"), name)
