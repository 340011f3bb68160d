"""Importance of a model's inputs, measured over texts: what `quantize` weighs errors by."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvant.api.measurement import read_text
from kvant.api.source import Source, open_source, threads_or_default, tokenizer_of
from kvant.builtin import builtin_text
from kvant.calibration.belongs import weight_shapes
from kvant.calibration.collect import Progress, collect_importance
from kvant.calibration.imatrix import importance_bytes
from kvant.calibration.importance import FLOOR, Cold, Importance
from kvant.calibration.texts import Chunks, Encoded, choose_chunks
from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.files.atomic import AtomicFile

__all__ = ["CalibrationReport", "calibrate", "calibration_chunks", "text_and_weight"]


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What was collected, the file it went to (None where none was asked for), and what it took."""

    importance: Importance
    path: Path | None
    nbytes: int
    cold: tuple[Cold, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """As plain data, without the sums."""
        i = self.importance
        return {
            "path": None if self.path is None else str(self.path),
            "bytes": self.nbytes,
            "tensors": len(i.sums),
            "chunk": i.chunk,
            "chunks": i.chunks,
            "tokens": i.chunk * i.chunks,
            "texts": [{"name": t.name, "weight": t.weight, "tokens": t.tokens} for t in i.texts],
            "corpus": i.corpus,
            "model": i.model,
            "cold": [
                {
                    "name": c.name,
                    "columns": c.columns,
                    "of_columns": c.of_columns,
                    "experts": c.experts,
                    "of_experts": c.of_experts,
                }
                for c in self.cold
            ],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }


def calibrate(
    source: Source,
    output: Source | None = None,
    *,
    texts: Sequence[Source | tuple[Source, float]] = (),
    tokens: int | None = None,
    chunk: int | None = None,
    max_memory: int | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CalibrationReport:
    """Measure how much each input of a model's linears matters over some texts.

    Args:
        source: ``demo``, a Hugging Face folder or a GGUF file, quantised or not.
        output: file to write: GGUF as llama.cpp's imatrix files are, or its older format where
            the name ends in ``.dat``; a folder gets the conventional name. None writes nothing.
        texts: UTF-8 files, each alone or with its share of the tokens (any positive number; 1 by
            default); without any, the built-in calibration text.
        tokens: of all texts together; by default 65,536, or as many as the texts allow.
        chunk: tokens a chunk; by default 512, or what the model takes if that is less.
        max_memory: most bytes of memory, the model's weights included; by default what is free.
        threads: processors to use; the bytes do not depend on it.
        force: replace an existing file.
        progress: called with tokens done and tokens in all, each layer's counted.

    Raises:
        UsageError: a text is too short (the message says how much is needed), or a bad share.
        InputError: the model or a text cannot be read, or the model has no tokenizer.
        NotEnoughMemoryError: not even one layer fits.
        OutputError: the output exists or cannot be written. Nothing is left behind.
    """
    started = time.perf_counter()
    checkpoint = open_source(source)
    chunks = calibration_chunks(checkpoint, texts, tokens=tokens, chunk=chunk)

    def run() -> Importance:
        return collect_importance(
            checkpoint,
            chunks,
            max_memory=max_memory,
            threads=threads_or_default(threads),
            progress=progress,
        )

    path, nbytes = None, 0
    if output is None:
        importance = run()
    else:
        path = _output_path(checkpoint, output)
        with AtomicFile(path, force=force) as file:  # what is wrong with it is said at once
            importance = run()
            data = importance_bytes(importance, legacy=path.suffix == ".dat")
            nbytes = len(data)
            file.write(data)
    cold = tuple(importance.cold())
    notes = _notes(checkpoint, importance, cold)
    return CalibrationReport(importance, path, nbytes, cold, notes, time.perf_counter() - started)


def calibration_chunks(
    checkpoint: Checkpoint,
    texts: Sequence[Source | tuple[Source, float]] = (),
    *,
    tokens: int | None = None,
    chunk: int | None = None,
) -> Chunks:
    """The token chunks that a model is calibrated on; arguments and errors as for `calibrate`."""
    tokenizer = tokenizer_of(checkpoint)
    named = list(texts) or [builtin_text("calibration")]
    encoded = []
    for entry in named:
        text, weight = entry if isinstance(entry, tuple) else (entry, 1.0)
        if not 0 < weight < float("inf"):
            raise UsageError(f"{text}: a share should be a number above zero, got {weight}.")
        ids = tokenizer.encode(read_text(text), add_special=False)
        encoded.append(Encoded(Path(text).name, weight, np.array(ids, np.int32)))
    return choose_chunks(
        encoded,
        bos=tokenizer.bos_id if tokenizer.encode("")[:1] == [tokenizer.bos_id] else None,
        chunk=chunk,
        tokens=tokens,
        max_context=checkpoint.config.max_position_embeddings,
    )


def text_and_weight(argument: str) -> tuple[str, float]:
    """``FILE`` or ``FILE:WEIGHT`` as it is typed; a file of that whole name goes first.

    Raises:
        UsageError: what follows the colon is no number above zero, and there is no such file.
    """
    name, colon, weight = argument.rpartition(":")
    if not colon or os.path.lexists(argument):
        return argument, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf") or not name:
        raise UsageError(
            f"--text takes FILE or FILE:WEIGHT with a number above zero, got {argument!r}; "
            "for example --text chat.txt:2."
        )
    return name, number


def _output_path(checkpoint: Checkpoint, output: Source) -> Path:
    path = Path(output)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where nothing can be there
        return path / (checkpoint.info.file_stem("X").removesuffix("-X") + ".importance")
    return path


def _notes(checkpoint: Checkpoint, importance: Importance, cold: Sequence[Cold]) -> tuple[str, ...]:
    notes = []
    columns = [c for c in cold if c.columns]
    experts = [c for c in cold if c.experts]
    if columns:
        listed = _listed([f"{c.name} ({c.columns:,} of {c.of_columns:,})" for c in columns])
        notes.append(
            f"Inputs the text hardly used: {listed}. They count as {FLOOR:g} of their tensor's "
            "mean. A text that covers more uses more of them."
        )
    if experts:
        listed = _listed([f"{c.name} ({c.experts:,} of {c.of_experts:,})" for c in experts])
        notes.append(
            f"Experts that saw no token: {listed}. All their columns count alike. "
            "More text reaches more of them."
        )
    without = sorted(set(weight_shapes(checkpoint)) - set(importance.sums))
    if without:
        notes.append(
            f"No importance is known of {_listed(without)}: errors in all their columns count "
            "alike."
        )
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
