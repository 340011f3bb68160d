"""What the weights of a folder stand for: the checkpoint it was made of, with the folder's numbers.

The reference for everything that runs such a folder. A folder with a config.json is opened as a
checkpoint by itself (`kvant.checkpoint.open_checkpoint`); here the source says what it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvant.checkpoint import Checkpoint, Weight
from kvant.checkpoint.open_onnx import onnx_weights

__all__ = ["dequantised"]


def dequantised(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """``checkpoint`` with the weights that the ONNX folder made from it stands for.

    Raises:
        FileFormatError: the folder is damaged, or of another model.
        InputError: a file cannot be read.
    """
    shapes = {name: weight.shape for name, weight in checkpoint.weights.items()}
    found = onnx_weights(folder, shapes)
    weights = {name: Weight(name, stored) for name, stored in found.items()}
    return replace(checkpoint, path=folder, weights=weights)
