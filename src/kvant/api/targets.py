"""A checkpoint becomes a folder for another runtime: the dispatch to targets that are not GGUF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kvant.api.artefact import Artefact, TensorReport
from kvant.api.calibration import calibration_chunks
from kvant.api.conversion import importance_of
from kvant.api.effort import Effort, effort_of, refuse_texts
from kvant.api.source import Source, open_source, threads_or_default
from kvant.calibration.collect import collect_importance
from kvant.calibration.importance import Importance
from kvant.calibration.texts import Chunks
from kvant.checkpoint import Checkpoint
from kvant.engine import load_engine
from kvant.errors import UsageError
from kvant.export.mixture import LevelMixture, read_mixture
from kvant.export.target import (
    TARGETS,
    Dtype,
    Level,
    Progress,
    TargetOptions,
    TargetResult,
    find_level,
    find_target,
)
from kvant.files.atomic_folder import AtomicFolder
from kvant.packing.groups import Groups
from kvant.quant.candidate import FLOAT
from kvant.quant.methods import METHODS, Quantised
from kvant.quant.recipe_file import is_recipe_file
from kvant.tuning.layerwise import Layerwise, quantise_grids

__all__ = ["TARGETS", "TARGET_DTYPES", "dtype_of", "target_levels", "write_target"]

TARGET_DTYPES: Mapping[str, Dtype] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""What the command line calls dtypes."""


def target_levels(name: str) -> Sequence[Level]:
    """The levels of a target.

    Raises:
        UsageError: there is no such target.
    """
    return find_target(name).levels()


def write_target(
    source: Source,
    to: str,
    level: str | LevelMixture | None,
    output: Source | None = None,
    *,
    dtype: str | None = None,
    lora: Source | None = None,
    tensors: Sequence[str] = (),
    importance: Source | Importance | None = None,
    effort: str = "fast",
    texts: Sequence[Source | tuple[Source, float]] = (),
    tokens: int | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    split_size: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    verify: bool = True,
    settings: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Artefact:
    """Write a folder for ``to``: quantised at ``level``, or unquantised (None).

    Args:
        source: ``demo``, a Hugging Face folder (MLX's and vLLM's too) or a GGUF file.
        to: the target's name.
        level: one of `target_levels`, a mixture of them, or the file of one (its name ends in
            .json).
        output: the folder to make; by default the conventional name in the current folder.
        dtype: ``float32``, ``float16`` or ``bfloat16`` (or f32, f16, bf16) for all that is not
            quantised; by default the source's.
        lora: folder of a PEFT adapter that is merged into the weights while they are read.
        tensors: ``REGEX=LEVEL`` texts that go before the level.
        importance: as for `quantize`.
        effort: as for `quantize`.
        texts: as for `quantize`.
        tokens: as for `quantize`.
        threads: processors to use; the bytes do not depend on it.
        max_memory: as for `quantize`.
        split_size: bytes a weights file may hold before the next is begun.
        force: replace an existing folder.
        dry_run: decide everything, write nothing.
        verify: compare what was written with the source, tensor by tensor.
        settings: what only this target knows.
        progress: called with weights done, weights in all, and the tensor at hand.

    Raises:
        UsageError: no such target, level or dtype, or they do not suit the model.
        InputError: as `quantize`.
        OutputError: the folder exists or cannot be written. Nothing is left behind.
    """
    target = find_target(to)
    mixture = _mixture_of(level, to)
    if isinstance(level, str) and mixture is None:
        level = find_level(target, level).name
    how = effort_of(effort)
    if level is None and (texts or tokens is not None or importance is not None):
        raise UsageError("A text or importance is for quantised models; give a level, too.")
    refuse_texts(how, texts, tokens, max_memory)
    checkpoint = open_source(source, lora)
    name = level if isinstance(level, str) else None
    if mixture is not None:
        name, level = mixture.name, mixture.usual(checkpoint)
        for other in sorted(set(mixture.levels.values()) - {FLOAT}):
            find_level(target, other)
    assert not isinstance(level, LevelMixture)
    options = TargetOptions(
        dtype=dtype_of(dtype),
        overrides=tuple(tensors),
        mixture={} if mixture is None else mixture.levels,
        threads=threads_or_default(threads),
        max_memory=max_memory,
        split_size=split_size,
        verify=verify,
        force=force,
        dry_run=dry_run,
        progress=progress,
        settings=dict(settings or {}),
    )
    out = _output(checkpoint, to, name or options.dtype or "", output)
    if level is not None and not dry_run:
        # What the target cannot hold, or a name that is taken, is said before calibration begins.
        target.write(checkpoint, out, level, replace(options, dry_run=True))
        AtomicFolder(out, force=force).check()
        options = _calibrated(checkpoint, options, how, importance, texts, tokens, out)
    result = target.write(checkpoint, out, level, options)
    return _artefact(checkpoint, result, name or options.dtype or "floats")


def _mixture_of(level: str | LevelMixture | None, to: str) -> LevelMixture | None:
    if isinstance(level, str) and is_recipe_file(level):
        return read_mixture(level, to)
    return level if isinstance(level, LevelMixture) else None


def dtype_of(name: str | None) -> Dtype | None:
    """A dtype by either of its names.

    Raises:
        UsageError: there is no such dtype.
    """
    if name is None:
        return None
    found = TARGET_DTYPES.get(name.lower(), name.lower())
    for known in TARGET_DTYPES.values():
        if found == known:
            return known
    raise UsageError(f"There is no dtype {name!r}; choose {', '.join(TARGET_DTYPES)}.")


def _output(checkpoint: Checkpoint, to: str, level: str, output: Source | None) -> Path:
    if output is not None:
        return Path(output)
    return Path(checkpoint.info.file_stem("-".join(part for part in (to, level) if part)))


def _calibrated(
    checkpoint: Checkpoint,
    options: TargetOptions,
    how: Effort,
    importance: Source | Importance | None,
    texts: Sequence[Source | tuple[Source, float]],
    tokens: int | None,
    out: Path,
) -> TargetOptions:
    """The options with what the effort asks for: importance, and linears by what they are fed."""
    known = None if importance is None else importance_of(importance, checkpoint)
    if how.method is None:
        return replace(options, importance=known)
    chunks = calibration_chunks(checkpoint, texts, tokens=tokens)
    if known is None:
        known = collect_importance(checkpoint, chunks, threads=options.threads)
    layerwise = partial(_layerwise, checkpoint, how, chunks, options, out.absolute().parent)
    return replace(options, importance=known, layerwise=layerwise)


def _layerwise(
    checkpoint: Checkpoint,
    how: Effort,
    chunks: Chunks,
    options: TargetOptions,
    scratch: Path,
    grids: Mapping[str, Groups],
) -> Iterator[tuple[str, Quantised]]:
    assert how.method is not None
    engine = load_engine(
        checkpoint, threads=options.threads, kv_tokens=max(512, chunks.ids.shape[1])
    )
    return quantise_grids(
        checkpoint,
        engine,
        list(chunks.ids),
        grids,
        Layerwise(METHODS[how.method], how.within),
        threads=options.threads,
        max_memory=options.max_memory,
        scratch=scratch,
        progress=options.progress,
    )


def _artefact(checkpoint: Checkpoint, result: TargetResult, recipe: str) -> Artefact:
    return Artefact(
        paths=(result.path,),
        recipe=recipe,
        nbytes=result.nbytes,
        bits_per_weight=result.bits_per_weight,
        parameters=checkpoint.parameters,
        tensors=tuple(
            TensorReport(t.name, t.shape, t.source_type, t.level, t.level, t.nbytes)
            for t in result.tensors
        ),
        notes=result.notes,
        seconds=result.seconds,
    )
