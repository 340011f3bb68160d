"""A trained model on disk, opened and checked: the one way in, whatever its format.

::

    checkpoint.py    Checkpoint; matching stored tensors with the weights the graph declares
    kind.py          what lies at a path         open_onnx.py   ONNX folders of kvant's
    open_folder.py   Hugging Face folders        open_gguf.py   GGUF files
    names.py         role -> Hugging Face name   weights.py     rows of a weight, in either order
    locate.py        where a folder has them     transforms.py  numbers that are stored differently
    sampling.py      generation_config.json      pooling.py     states to a text's vector
    fingerprint.py   which model it is, whatever the format
    quantised/       folders that somebody quantised, as floats again
    info.py          ModelInfo, from card.py (front matter) and model_name.py (the convention)
"""

from __future__ import annotations

import os
from pathlib import Path

from kvant.checkpoint.checkpoint import Checkpoint, StorageCount, count_storage
from kvant.checkpoint.fingerprint import fingerprint
from kvant.checkpoint.info import ModelInfo, Origin
from kvant.checkpoint.kind import FORMAT_NAMES, ModelFormat, model_format
from kvant.checkpoint.open_folder import open_folder
from kvant.checkpoint.open_gguf import open_gguf
from kvant.checkpoint.pooling import Pooling
from kvant.checkpoint.weights import Rotary, Weight, check_finite, rotary_row_order

__all__ = [
    "FORMAT_NAMES",
    "Checkpoint",
    "ModelFormat",
    "ModelInfo",
    "Origin",
    "Pooling",
    "Rotary",
    "StorageCount",
    "Weight",
    "check_finite",
    "count_storage",
    "fingerprint",
    "model_format",
    "open_checkpoint",
    "rotary_row_order",
]


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a folder (Hugging Face, MLX, compressed-tensors, an ONNX one that kvant wrote) or a
    GGUF file (any shard of a split one).

    Reads configs and headers only, and checks that every weight the architecture needs is there
    with the right shape and a type that can be decoded.

    Raises:
        InputError: there is nothing at ``source``, or it may not be read.
        FileFormatError: a file is damaged, or config and weights do not agree.
        UnsupportedError: an architecture, config value, tensor or type kvant does not know, or
            a pickle checkpoint, which is never loaded.
    """
    path = Path(source)
    if model_format(path) == "onnx":
        from kvant.checkpoint.open_onnx import open_onnx  # the package onnx takes a second

        return open_onnx(path)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where nothing can be there
        return open_folder(path)
    return open_gguf(path)
