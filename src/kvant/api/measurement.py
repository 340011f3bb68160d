"""Models measured on a text: perplexity, and divergence from a base."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kvant.api.source import Source, open_source, threads_or_default, tokenizer_of
from kvant.builtin import builtin_text
from kvant.checkpoint import Checkpoint
from kvant.errors import InputError, UsageError
from kvant.evaluation import Corpus, EvalResult, Progress, Runner, Subject, check_vocabularies
from kvant.evaluation import evaluate as measure
from kvant.runtimes import RunnerKind, open_runner
from kvant.tokenizer.build import Tokenizer

__all__ = ["corpus_of", "evaluate", "open_subject", "read_text"]

_MAX_TEXT_BYTES = 1 << 30

_KEEP_BYTES = 4 << 30
"""Of the reference interpreter: decoded weights of all models together that are kept in memory.
Beyond it each weight is decoded anew whenever it is used, which is slower and needs no more memory
than the largest one."""


def evaluate(
    models: Source | Sequence[Source],
    against: Source | None = None,
    *,
    text: Source | None = None,
    context: int | None = None,
    chunks: int | None = None,
    threads: int | None = None,
    runner: RunnerKind = "native",
    progress: Progress | None = None,
) -> tuple[EvalResult, ...]:
    """Measure one or more models on a text, by llama.cpp's protocol.

    With a base, all models are in memory at once and run side by side; without, one after another.

    Args:
        models: what to measure.
        against: the base; its result comes first, and the others carry their divergence from it.
        text: a UTF-8 file; by default the built-in evaluation text.
        context: tokens a chunk; by default 512, or what the model takes if that is less.
        chunks: use no more than these first chunks.
        threads: processors to use; by default all. The figures are the same for any number.
        runner: ``"native"``, the engine, or ``"reference"``, the NumPy interpreter: slow, in
            float32 throughout, to judge the engine by.
        progress: called with tokens done and tokens in all.

    Raises:
        UsageError: the text is too short, or the models have different tokenizers.
        InputError: a model or the text cannot be read; a model gives NaN or infinity.
        NotEnoughMemoryError: the models do not fit.
    """
    named = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    if not named:
        raise UsageError("There is no model to evaluate; name at least one.")
    opened = [open_source(m) for m in ([against] if against is not None else []) + named]
    tokenizer = tokenizer_of(opened[0])
    shortest = min(opened, key=lambda c: c.config.max_position_embeddings)
    corpus = corpus_of(read_text(text), tokenizer, shortest, context, chunks)
    workers = threads_or_default(threads)
    keep = sum(4 * c.parameters for c in opened) <= _KEEP_BYTES
    subjects = [
        open_subject(c, open_runner(c, runner, threads=workers, keep_decoded=keep)) for c in opened
    ]
    if against is not None:
        return measure(subjects[0], subjects[1:], corpus, threads=workers, progress=progress)
    check_vocabularies(subjects[0], subjects[1:], corpus)
    results: tuple[EvalResult, ...] = ()
    while subjects:  # each by itself, and given back before the next is loaded
        results += measure(subjects.pop(0), (), corpus, threads=workers, progress=progress)
    return results


def read_text(path: Source | None) -> str:
    """The text of a UTF-8 file, or the built-in evaluation text.

    Raises:
        InputError: no such file, not UTF-8, or larger than a gigabyte.
    """
    file = builtin_text("evaluation") if path is None else Path(path)
    try:
        if file.stat().st_size > _MAX_TEXT_BYTES:
            raise InputError(f"{file}: is over a gigabyte; evaluate on a part of it.")
        return file.read_bytes().decode()  # line ends as they are, which llama-perplexity keeps too
    except OSError as error:
        raise InputError(f"{file}: the text cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at "
            f"{error.start}; convert the file to UTF-8."
        ) from None


def corpus_of(
    text: str,
    tokenizer: Tokenizer,
    checkpoint: Checkpoint,
    context: int | None,
    chunks: int | None,
) -> Corpus:
    """The token chunks of a text for a model."""
    return Corpus.from_tokens(
        tokenizer.encode(text, add_special=False),
        bos=tokenizer.bos_id if tokenizer.encode("")[:1] == [tokenizer.bos_id] else None,
        context=context,
        max_context=checkpoint.config.max_position_embeddings,
        max_chunks=chunks,
    )


def open_subject(checkpoint: Checkpoint, runner: Runner, *, name: str | None = None) -> Subject:
    """A checkpoint as something to be measured."""
    definition = checkpoint.tokenizer()
    stored = [w.stored for w in checkpoint.weights.values()]
    return Subject(
        name=name or checkpoint.path.name,
        runner=runner,
        vocabulary=None if definition is None else definition.tokens,
        path=str(checkpoint.path),
        bytes=sum(f.stat().st_size for f in _weight_files(checkpoint)),
        bpw=8 * sum(t.nbytes for t in stored) / sum(t.elements for t in stored),
    )


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({w.stored.path for w in checkpoint.weights.values()})
