"""Models measured on a text: perplexity, and divergence from a base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.api.source import Source, resolve, threads_or_default
from kvant.builtin import builtin_text
from kvant.checkpoint import Checkpoint
from kvant.engine.load import available_memory
from kvant.errors import InputError, UsageError
from kvant.evaluation import Corpus, EvalResult, Progress, Runner, Subject, check_vocabularies
from kvant.evaluation import evaluate as measure
from kvant.evaluation.runner import Tile, Tokens
from kvant.runtimes import (
    Artefact,
    RunnerChoice,
    RunnerName,
    choose,
    open_artefact,
    run_artefact,
    runner_label,
)

if TYPE_CHECKING:
    from kvant.tokenizer.build import Tokenizer
    from kvant.tokenizer.definition import TokenizerDefinition

__all__ = ["corpus_of", "evaluate", "open_subject", "read_text", "tokenizer_of_all"]

_MAX_TEXT_BYTES = 1 << 30

_SAMPLE = 20_000
"""Characters at the start of a text by which tokenizers are compared."""

_KEEP_BYTES = 4 << 30
"""Of the reference interpreter: decoded weights of all models together that are kept in memory.
Beyond it each weight is decoded anew whenever it is used, which is slower and needs no more memory
than the largest one."""

_TOGETHER = 0.8
"""Of the memory that is free: more than that of weights at once is too much."""


def evaluate(
    models: Source | Sequence[Source],
    against: Source | None = None,
    *,
    text: Source | None = None,
    context: int | None = None,
    chunks: int | None = None,
    threads: int | None = None,
    runner: RunnerChoice = None,
    progress: Progress | None = None,
) -> tuple[EvalResult, ...]:
    """Measure one or more models on a text, by llama.cpp's protocol; formats may be mixed.

    With a base, all models run side by side where memory holds them; otherwise each variant runs
    beside the base, which is then run once for each. Without a base they run one after another.

    Args:
        models: what to measure: GGUF files; Hugging Face, MLX, ONNX or compressed-tensors folders.
        against: the base; its result comes first, and the others carry their divergence from it.
        text: a UTF-8 file; by default the built-in evaluation text.
        context: tokens a chunk; by default 512, or what the model takes if that is less.
        chunks: use no more than these first chunks.
        threads: processors to use; by default all. The figures of kvant's own runners are the same
            for any number.
        runner: what runs them. ``"native"``, the engine; ``"reference"``, the NumPy interpreter:
            slow, in float32 throughout, to judge the engine by; ``"onnxruntime"``, ``"mlx"`` or
            ``"llama.cpp"``, which run their own formats; a mapping gives one to some formats. By
            default the usual one of each format (`kvant.runtimes.choose`). The base is run as
            chosen only by those that run any model.
        progress: called with tokens done and tokens in all.

    Raises:
        UsageError: the text is too short, the models have different tokenizers, or the runner
            does not run one of them.
        InputError: a model or the text cannot be read; a model gives NaN or infinity.
        MissingExtraError: a runtime is not installed.
        NotEnoughMemoryError: the models do not fit.
    """
    named = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    if not named:
        raise UsageError("There is no model to evaluate; name at least one.")
    opened = [open_artefact(resolve(m)) for m in named]
    names = [choose(artefact, runner) for artefact in opened]
    if against is not None:
        base = open_artefact(resolve(against))
        for_base = runner if runner in ("native", "reference") else None
        opened, names = [base, *opened], [choose(base, for_base), *names]
    content = read_text(text)
    definitions = [artefact.tokenizer() for artefact in opened]
    tokenizer = tokenizer_of_all(opened, definitions, content)
    corpus = Corpus.from_tokens(
        tokenizer.encode(content, add_special=False),
        bos=_bos(tokenizer),
        context=context,
        max_context=min((c for a in opened if (c := a.context) is not None), default=None),
        max_chunks=chunks,
    )
    stated = [
        Subject(artefact.name, _Stated(size), None if found is None else found.tokens)
        for artefact, found in zip(opened, definitions, strict=True)
        if (size := artefact.vocab_size) is not None
    ]
    if stated:  # before the first is loaded, and measured for an hour
        check_vocabularies(stated[0], stated[1:], corpus)
    sizes = [a.checkpoint.parameters for a in opened if a.checkpoint is not None]
    workers, keep = threads_or_default(threads), 4 * sum(sizes) <= _KEEP_BYTES

    def subject(at: int) -> Subject:
        runner = run_artefact(
            *(opened[at], names[at]), threads=workers, context=corpus.context, keep_decoded=keep
        )
        return _subject(opened[at], runner, names[at], definitions[at])

    def measured(*subjects: Subject) -> tuple[EvalResult, ...]:
        return measure(subjects[0], subjects[1:], corpus, threads=workers, progress=progress)

    if against is None:  # each is given back before the next is loaded
        return tuple(measured(subject(at))[0] for at in range(len(opened)))
    first, others = subject(0), range(1, len(opened))
    if sum(artefact.nbytes() for artefact in opened) <= _TOGETHER * available_memory():
        return measured(first, *map(subject, others))
    results: tuple[EvalResult, ...] = ()
    for at in others:
        found = measured(first, subject(at))
        results += found[1:] if results else found
    return results


def _subject(
    artefact: Artefact, runner: Runner, name: RunnerName, definition: TokenizerDefinition | None
) -> Subject:
    return Subject(
        name=artefact.name,
        runner=runner,
        vocabulary=None if definition is None else definition.tokens,
        path=str(artefact.path),
        bytes=artefact.nbytes(),
        bpw=artefact.bpw(),
        format=artefact.format,
        runtime=runner_label(artefact, name),
    )


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a model's files say of its runner, which is not loaded yet."""

    vocab_size: int

    def logits(self, tokens: Tokens, *, first_row: int) -> Iterator[Tile]:
        """None: only the size is known."""
        raise AssertionError("a model was run before it was loaded")


def tokenizer_of_all(
    artefacts: Sequence[Artefact], definitions: Sequence[TokenizerDefinition | None], text: str
) -> Tokenizer:
    """The first one's tokenizer, after a check that all others read the text's start as it does.

    Raises:
        InputError: the first has none.
        UsageError: another reads it otherwise.
    """
    from kvant.tokenizer.build import build  # not needed by everyone who measures

    first = definitions[0]
    if first is None:
        raise InputError(
            f"{artefacts[0].path}: has no tokenizer, so no text can be read with it. "
            "Add its tokenizer.json, or use a file that carries one."
        )
    tokenizer = build(first)
    sample = text[:_SAMPLE]
    ids = tokenizer.encode(sample)
    for artefact, definition in zip(artefacts[1:], definitions[1:], strict=True):
        if definition is None or definition.tokens != first.tokens:
            continue  # nothing to compare, or said better where vocabularies are
        found = build(definition).encode(sample)
        if found != ids:
            at = next((i for i, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b), None)
            what = f"token {at + 1} is another" if at is not None else "one ends earlier"
            raise UsageError(
                f"{artefact.name} and {artefacts[0].name} have different tokenizers: of the same "
                f"text, {what}. Compare models with the same tokenizer."
            )
    return tokenizer


def _bos(tokenizer: Tokenizer) -> int | None:
    return tokenizer.bos_id if tokenizer.encode("")[:1] == [tokenizer.bos_id] else None


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
        bos=_bos(tokenizer),
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
        bpw=8 * sum(t.file_bytes for t in stored) / sum(t.elements for t in stored),
    )


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({w.stored.path for w in checkpoint.weights.values()})
