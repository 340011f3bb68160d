"""Quantise to a budget for targets that are not GGUF: the best mixture of their levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kvant.api.artefact import Artefact
from kvant.api.budget import collected
from kvant.api.calibration import calibration_chunks
from kvant.api.conversion import importance_of
from kvant.api.effort import effort_of
from kvant.api.fitted import Fitted
from kvant.api.source import Source, open_source, threads_or_default
from kvant.api.target_search import TargetSearch
from kvant.api.targets import dtype_of, write_target
from kvant.api.trials import Trials
from kvant.calibration import Importance
from kvant.evaluation import EvalResult
from kvant.export.mixture import LevelMixture, mixture_text
from kvant.export.target import TargetOptions
from kvant.files.atomic import write_atomic
from kvant.files.atomic_folder import AtomicFolder
from kvant.tuning.sensitivity import EffortName, Progress

__all__ = ["quantize_target_within"]


def quantize_target_within(
    source: Source,
    output: Source | None,
    to: str,
    *,
    fit: int | None,
    bpw: float | None,
    max_kld: float | None,
    effort: EffortName,
    packings: Sequence[str],
    texts: Sequence[Source | tuple[Source, float]],
    importance: Source | Importance | None,
    lora: Source | None,
    validation: Source | None,
    tensors: Sequence[str],
    dtype: str | None,
    settings: Mapping[str, object] | None,
    verify: bool,
    save_recipe: Source | None,
    threads: int | None,
    split_size: int | None,
    force: bool,
    dry_run: bool,
    progress: Progress | None,
) -> Fitted:
    """As `kvant.api.within.quantize_within`, which checked the budgets; ``packings`` are levels.

    Raises:
        UsageError: no such target or level, or a budget nothing can meet: the smallest possible is
            stated.
        InputError, OutputError: as for `write_target`.
    """
    how = effort_of(effort)
    if output is not None and not dry_run:
        AtomicFolder(Path(output), force=force).check()  # before minutes of measuring
    checkpoint = open_source(source, lora)
    options = TargetOptions(
        dtype=dtype_of(dtype), overrides=tuple(tensors), settings=dict(settings or {})
    )

    def write(
        mixture: LevelMixture, path: Source | None, *, dry: bool, final: bool = True
    ) -> Artefact:
        return write_target(
            source,
            to,
            mixture,
            path,
            dtype=dtype,
            lora=lora,
            tensors=tensors,
            importance=None if dry else known,
            effort="fast" if dry else effort,
            texts=() if dry else texts,
            threads=threads,
            split_size=split_size,
            force=force and final,
            dry_run=dry,
            verify=verify and final,
            settings=settings,
            progress=None
            if progress is None or dry
            else lambda done, total, name: progress(f"writing {name}", done, total),
        )

    known = None if importance is None else importance_of(importance, checkpoint)
    search = TargetSearch(
        checkpoint, to, packings, options, lambda mixture: write(mixture, output, dry=True)
    )
    search.refuse_impossible(fit, bpw)  # before minutes of measuring
    chunks = None if how.method is None else calibration_chunks(checkpoint, texts)
    workers = threads_or_default(threads)
    if known is None and chunks is not None:
        known = collected(checkpoint, chunks, workers, progress)
    sensitivity = search.measure(
        effort=effort, chunks=chunks, importance=known, threads=workers, progress=progress
    )
    trials = Trials(
        search.front,
        source,
        lambda mixture, path: write(search.named(mixture), path, dry=False, final=False).paths[0],
        validation,
        threads,
        progress,
        suffix="",
    )
    measured: EvalResult | None = None
    if max_kld is not None:
        best, measured = trials.smallest_within(max_kld)
    elif fit is not None:
        best = search.fit(fit)
    else:
        assert bpw is not None
        best = search.bits(bpw)
    mixture = search.named(best)
    artefact = write(mixture, output, dry=dry_run)
    if save_recipe is not None and not dry_run:
        write_atomic(Path(save_recipe), mixture_text(mixture), force=force)
    if max_kld is not None and not dry_run:
        measured = trials.measure_last(artefact.paths[0], max_kld)
    return Fitted(artefact, mixture, sensitivity, best.cost, measured)
