"""Whether an importance file was made of this model: names, shapes, and a fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from kvant.calibration.importance import Importance
from kvant.checkpoint import Checkpoint
from kvant.errors import InputError
from kvant.files.source import quote

__all__ = ["belonging", "model_fingerprint", "weight_shapes"]

_AGAIN = "Make one of this model with `kvant calibrate`."


def model_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 of what all files of a model have in common, as 64 hexadecimal digits.

    Architecture, names and shapes of the weights, and the values of norms and biases: every format
    keeps those in full, whatever its matrices are quantised to.

    Raises:
        DataError: NaN or infinity among them.
        InputError: a file cannot be read.
    """
    digest = hashlib.sha256(f"{checkpoint.architecture.name}\n".encode())
    for name, weight in sorted(checkpoint.weights.items()):
        shape = "x".join(map(str, weight.shape))
        digest.update(f"{name} {shape}\n".encode())
        if len(weight.shape) == 1:
            digest.update(np.ascontiguousarray(weight.read_f32(), "<f4").tobytes())
    return digest.hexdigest()


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices that importance can be known of, by canonical name."""
    return {n: w.shape for n, w in checkpoint.weights.items() if len(w.shape) >= 2}


def belonging(importance: Importance, checkpoint: Checkpoint) -> Importance:
    """The importance of this model's tensors, shaped as they are.

    llama.cpp calls the head ``output.weight`` even where the embedding is used for it, and may give
    stacked experts as one long row: that is put right.

    Raises:
        InputError: it is of another model.
    """
    where = importance.file or "The importance"
    if importance.model and importance.model != model_fingerprint(checkpoint):
        made_of = f" ({quote(importance.model_name)})" if importance.model_name else ""
        raise InputError(
            f"{where}: was made of another model{made_of} than {checkpoint.path}: the fingerprints "
            f"differ. {_AGAIN}"
        )
    shapes = weight_shapes(checkpoint)
    sums, seen = {}, {}
    for name, values in importance.sums.items():
        own = name
        if name == "output.weight" and name not in shapes:
            own = "token_embd.weight"
        shape = shapes.get(own)
        if shape is None:
            raise InputError(
                f"{where}: has importance of {quote(name)}, which {checkpoint.path} does not have, "
                f"so it is of another model. {_AGAIN}"
            )
        stacked = shape[0] if len(shape) == 3 else 1
        if values.size != stacked * shape[-1] or len(importance.seen[name]) not in (1, stacked):
            raise InputError(
                f"{where}: has {values.size} columns for {quote(name)}, {checkpoint.path} has "
                f"{stacked * shape[-1]}, so it is of another model. {_AGAIN}"
            )
        counts = importance.seen[name]
        sums[own] = values.reshape(shape[0], -1) if len(shape) == 3 else values.reshape(-1)
        seen[own] = np.broadcast_to(counts, (stacked,)).copy()
    return replace(importance, sums=sums, seen=seen)
