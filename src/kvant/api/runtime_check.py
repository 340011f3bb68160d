"""A format's own runtime against kvant's reading of the same file: do they compute the same?

The reference is the NumPy interpreter over the weights as kvant decodes them, in float32. Where
both agree, figures measured on decoded weights are those of the runtime; where they do not, either
the file is not what kvant thinks it wrote, or the runtime computes something else.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvant.api.measurement import read_text, tokenizer_of_all
from kvant.api.source import Source, resolve_whole, threads_or_default
from kvant.errors import UsageError
from kvant.evaluation import Corpus, Progress
from kvant.evaluation.runner import in_step
from kvant.runtimes import (
    Artefact,
    RunnerName,
    choose,
    open_artefact,
    own_runner,
    run_artefact,
    runner_label,
)

__all__ = ["KLD_BOUND", "LOGITS_BOUND", "RuntimeCheck", "check_runtime"]

LOGITS_BOUND = 1e-3
"""Of models of floats: the most that logits may differ, relative to their size."""

KLD_BOUND = 1e-3
"""Of quantised models, whose runtimes round activations too: the most mean divergence, nats."""

_CONTEXT, _CHUNKS = 64, 4
_KEEP_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class RuntimeCheck:
    """What comparing two runs of one model gave.

    ``relative`` is the root of the squared differences of all logits over that of the squared
    logits; ``relative_worst`` that of the worst row. ``kld`` is the mean of KL(reference ||
    runtime) in nats a token, ``kld_max`` that of the worst one. Logits of a row are compared
    without their mean, which no probability depends on.
    """

    name: str
    path: str
    format: str
    runtime: str
    quantised: bool
    tokens: int
    relative: float
    relative_worst: float
    kld: float
    kld_max: float
    same_top: float
    """Share of tokens where both find the same one the likeliest."""

    @property
    def measure(self) -> str:
        """What is bounded: ``kld`` of quantised models, ``relative`` of others."""
        return "kld" if self.quantised else "relative"

    @property
    def bound(self) -> float:
        """The most of it."""
        return KLD_BOUND if self.quantised else LOGITS_BOUND

    @property
    def ok(self) -> bool:
        """Whether it is kept."""
        return (self.kld if self.quantised else self.relative) <= self.bound

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {**asdict(self), "measure": self.measure, "bound": self.bound, "ok": self.ok}


def check_runtime(
    source: Source,
    *,
    runner: RunnerName | None = None,
    text: Source | None = None,
    context: int = _CONTEXT,
    chunks: int = _CHUNKS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RuntimeCheck:
    """Run a model by its own runtime and by the interpreter, and compare all logits.

    Args:
        source: a GGUF file, an ONNX folder that kvant wrote, an MLX folder.
        runner: the runtime; by default the one the format was made for.
        text: a UTF-8 file; by default the built-in evaluation text.
        context: tokens of a sequence.
        chunks: how many sequences.
        threads: processors to use.
        progress: called with tokens done and tokens in all.

    Raises:
        UsageError: the format has no runtime that kvant can ask, or the text is too short.
        InputError: the model cannot be read, by kvant or by its runtime.
        MissingExtraError: the runtime is not installed.
    """
    artefact = open_artefact(resolve_whole(source))
    name = own_runner(artefact) if runner is None else choose(artefact, runner)
    if name == "reference":
        raise UsageError("The reference cannot be checked against itself; choose another runner.")
    choose(artefact, "reference")  # or there is nothing to compare with
    corpus = _corpus(artefact, read_text(text), context, chunks)
    workers = threads_or_default(threads)
    assert artefact.checkpoint is not None
    keep = 4 * artefact.checkpoint.parameters <= _KEEP_BYTES
    runners = [
        run_artefact(artefact, each, threads=workers, context=context, keep_decoded=keep)
        for each in ("reference", name)
    ]
    found = _Comparison()
    for index, tokens, _ in corpus.batches(1):
        for _, _, (ours, theirs) in in_step(runners, tokens, 0):
            found.add(ours, theirs)
        if progress is not None:
            progress((index + 1) * corpus.context, corpus.count * corpus.context)
    return RuntimeCheck(
        name=artefact.name,
        path=str(artefact.path),
        format=artefact.format,
        runtime=runner_label(artefact, name),
        quantised=artefact.quantised,
        **found.result(),
    )


def _corpus(artefact: Artefact, text: str, context: int, chunks: int) -> Corpus:
    tokenizer = tokenizer_of_all([artefact], [artefact.tokenizer()], text)
    return Corpus.from_tokens(
        tokenizer.encode(text, add_special=False),
        bos=tokenizer.bos_id if tokenizer.encode("")[:1] == [tokenizer.bos_id] else None,
        context=context,
        max_context=artefact.context,
        max_chunks=chunks,
    )


class _Comparison:
    """Sums over rows of logits."""

    def __init__(self) -> None:
        self._squares = self._size = self._worst = 0.0
        self._kld: list[npt.NDArray[np.float64]] = []
        self._same = 0

    def add(self, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
        """Compare some rows, float32 [rows, vocabulary]."""
        a, b = (
            x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64)
            for x in (ours, theirs)
        )
        squares, size = np.square(b - a).sum(1), np.square(a).sum(1)
        self._squares += float(squares.sum())
        self._size += float(size.sum())
        self._worst = max(self._worst, float(np.sqrt(squares / np.maximum(size, 1e-300)).max()))
        log_p, log_q = (x - _log_sum(x) for x in (a, b))
        self._kld.append((np.exp(log_p) * (log_p - log_q)).sum(1))
        self._same += int((ours.argmax(1) == theirs.argmax(1)).sum())

    def result(self) -> dict[str, Any]:
        """The figures, by their names in `RuntimeCheck`."""
        kld = np.concatenate(self._kld)
        return {
            "tokens": len(kld),
            "relative": math.sqrt(self._squares / max(self._size, 1e-300)),
            "relative_worst": self._worst,
            "kld": float(kld.mean()),
            "kld_max": float(kld.max()),
            "same_top": self._same / len(kld),
        }


def _log_sum(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    top = x.max(1, keepdims=True)
    return np.asarray(top + np.log(np.exp(x - top).sum(1, keepdims=True)), np.float64)
