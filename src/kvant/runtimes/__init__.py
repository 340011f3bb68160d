"""What runs models for measuring: tokens in, logits out in tiles.

::

    native.py    the engine: fast, weights as they are stored
    (reference)  `kvant.reference.ReferenceModel`: NumPy, float32 throughout, the judge

Both keep the protocol `kvant.evaluation.Runner`, which knows neither.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.reference import ReferenceModel
from kvant.runtimes.native import STEP_TOKENS, NativeRunner

__all__ = ["STEP_TOKENS", "NativeRunner", "RunnerKind", "open_runner"]

RunnerKind: TypeAlias = Literal["native", "reference"]


def open_runner(
    checkpoint: Checkpoint,
    kind: RunnerKind = "native",
    *,
    threads: int | None = None,
    keep_decoded: bool = True,
) -> NativeRunner | ReferenceModel:
    """Something that runs a checkpoint.

    Args:
        checkpoint: the model.
        kind: the engine, or the reference interpreter.
        threads: of the engine; by default one for each processor.
        keep_decoded: the interpreter keeps decoded weights, 4 bytes each, instead of decoding
            each anew whenever it is used.

    Raises:
        UsageError: there is no such kind.
    """
    if kind == "native":
        return NativeRunner(checkpoint, threads=threads)
    if kind == "reference":
        return ReferenceModel(checkpoint, cache=keep_decoded)
    raise UsageError(f"There is no runner {kind!r}; choose 'native' or 'reference'.")
