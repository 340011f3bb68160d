"""What a model's linears are fed: statistics over a text, which quantisers weigh errors by.

::

    layers.py      LayerWalk: through a model layer by layer; states.py keeps the hidden states
    importance.py  Importance: the mean square of every linear's inputs
    imatrix.py     its files, which are llama.cpp's
    belongs.py     whether one was made of this model
    texts.py       texts and their shares become chunks of tokens
    collect.py     importance collected on the engine
"""

from kvant.calibration.belongs import belonging, model_fingerprint
from kvant.calibration.collect import collect
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
    "collect",
    "importance_bytes",
    "model_fingerprint",
    "read_importance",
    "write_importance",
]
