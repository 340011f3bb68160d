"""What runs models for measuring: tokens in, logits out in tiles.

::

    native.py       the engine: fast, weights as they are stored
    (reference)     `kvant.reference.ReferenceModel`: NumPy, float32 throughout, the judge
    onnxruntime.py  ONNX folders (onnx_names.py: what a graph's inputs are called)
    mlx.py          MLX folders, by mlx-lm
    llama_cpp.py    GGUF files, by llama.cpp
    artefact.py     what lies at a path, and what is known of it
    choice.py       which of them runs what
    stepping.py     what onnxruntime, mlx and llama_cpp have in common
    onnxruntime_genai.py  ONNX folders for serving, in turns (genai_config.py: what it may not say)

All keep the protocol `kvant.evaluation.Runner`, which knows none of them. Each package of others
is imported in one of these files only, and only when a model is loaded with it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.reference import ReferenceModel
from kvant.runtimes.artefact import Artefact, open_artefact
from kvant.runtimes.choice import (
    RUNNERS,
    RunnerChoice,
    RunnerName,
    choose,
    choose_each,
    own_runner,
    runner_label,
)
from kvant.runtimes.native import STEP_TOKENS, NativeRunner
from kvant.runtimes.stepping import StepRunner

__all__ = [
    "RUNNERS",
    "STEP_TOKENS",
    "Artefact",
    "ModelRunner",
    "NativeRunner",
    "RunnerChoice",
    "RunnerKind",
    "RunnerName",
    "StepRunner",
    "choose",
    "choose_each",
    "open_artefact",
    "open_runner",
    "own_runner",
    "run_artefact",
    "runner_label",
]

RunnerKind: TypeAlias = Literal["native", "reference"]
ModelRunner: TypeAlias = "NativeRunner | ReferenceModel | StepRunner[Any]"


def open_runner(
    checkpoint: Checkpoint,
    kind: RunnerKind = "native",
    *,
    threads: int | None = None,
    keep_decoded: bool = True,
) -> NativeRunner | ReferenceModel:
    """Something of kvant's own that runs a checkpoint.

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


def run_artefact(
    artefact: Artefact,
    name: RunnerName,
    *,
    threads: int,
    context: int | None = None,
    sequences: int = 1,
    keep_decoded: bool = True,
) -> ModelRunner:
    """Something that runs an artefact; `choose` says what can.

    Args:
        artefact: the model.
        name: the runner.
        threads: processors to use; MLX decides that by itself.
        context: tokens a sequence will have at most; by default what the model takes.
        sequences: how many there will be at the same time.
        keep_decoded: see `open_runner`.

    Raises:
        MissingExtraError: the runtime is not installed; says what to install.
        InputError: the runtime refuses the model.
    """
    if name == "native" or name == "reference":
        assert artefact.checkpoint is not None
        return open_runner(artefact.checkpoint, name, threads=threads, keep_decoded=keep_decoded)
    context = context or artefact.context
    if name == "onnxruntime":
        from kvant.runtimes.onnxruntime import OnnxStepper

        return StepRunner(OnnxStepper(artefact.path, threads=threads, context=context))
    if name == "mlx":
        from kvant.runtimes.mlx import MlxStepper

        assert artefact.checkpoint is not None
        return StepRunner(MlxStepper(artefact.path, artefact.checkpoint.config.vocab_size))
    from kvant.runtimes.llama_cpp import LlamaCppStepper

    return StepRunner(
        LlamaCppStepper(
            artefact.path, threads=threads, context=context or STEP_TOKENS, sequences=sequences
        )
    )
