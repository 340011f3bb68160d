"""Which model this is, in 64 digits: the same for every lossless copy, whatever the format.

Hashing gigabytes would take longer than quantising them, so the first and the last row of every
matrix stand for all of it. A fine-tune, another seed or another model changes them; damage in the
middle of a matrix does not: that is what checksums of files are for.
"""

from __future__ import annotations

import hashlib

from kvant.checkpoint.checkpoint import Checkpoint
from kvant.packing import dequantize

__all__ = ["fingerprint"]


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256, as hexadecimal digits, of every matrix's name, shape, first and last row.

    Names are the canonical ones, in alphabetical order; rows are float32, little-endian, as they
    decode. Both rows stay where they are when the rows of rotated heads are reordered, so a
    Hugging Face folder and its copy as GGUF have one fingerprint. Vectors are left out: some
    formats store them changed by a constant.

    Raises:
        InputError: a file cannot be read, or ends early.
    """
    digest = hashlib.sha256(b"kvant fingerprint 1\n")
    for name in sorted(checkpoint.weights):
        weight = checkpoint.weights[name]
        if len(weight.shape) < 2:
            continue
        digest.update(f"{name} {'x'.join(map(str, weight.shape))}\n".encode())
        stored = weight.stored
        with weight.open() as fd:
            for row in (0, stored.rows - 1):
                values = dequantize(stored.type.name, stored.read_rows(fd, row, row + 1))
                digest.update(values.astype("<f4").tobytes())
    return digest.hexdigest()
