"""A checkpoint becomes a GGUF file, unquantised or by a recipe."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvant.api.artefact import Artefact, TensorReport
from kvant.api.calibration import calibration_chunks
from kvant.api.conversion_notes import importance_notes, plan_notes
from kvant.api.effort import (
    Effort,
    EffortName,
    effort_of,
    making_of,
    prepared,
    refuse_texts,
)
from kvant.api.evidence import Recorder, measures_by_default, record_evidence
from kvant.api.source import Source, open_source, threads_or_default
from kvant.api.without_effect import refuse_of_gguf, refuse_of_targets, refuse_without_effect
from kvant.calibration.belongs import belonging
from kvant.calibration.collect import collect_importance
from kvant.calibration.imatrix import read_importance
from kvant.calibration.importance import Importance
from kvant.calibration.texts import Chunks
from kvant.checkpoint import Checkpoint
from kvant.errors import OutputError, UsageError
from kvant.evidence import Making
from kvant.export.gguf.plan import Plan, model_metadata, plan_export
from kvant.export.gguf.stream import Progress
from kvant.export.gguf.write import refuse_outputs, write_plan
from kvant.export.target import TARGETS, find_target
from kvant.files.atomic import check_output, write_atomic
from kvant.quant.presets import preset
from kvant.quant.recipe import Recipe
from kvant.quant.recipe_file import is_recipe_file, read_recipe, recipe_text

__all__ = ["convert", "quantize"]


def convert(
    source: Source,
    output: Source | None = None,
    *,
    to: str = "gguf",
    dtype: str | None = None,
    lora: Source | None = None,
    threads: int | None = None,
    split_size: int | None = None,
    pre_tokenizer: str | None = None,
    verify: bool = True,
    settings: Mapping[str, object] | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Artefact:
    """Write an unquantised model: a GGUF file, or a folder for another target.

    In GGUF ``dtype`` is ``bf16`` (the default), ``f16`` or ``f32`` for matrices; vectors are F32
    always. For other targets (`kvant.api.targets`) it is that of everything, by default the
    source's; what was written is compared with the source unless ``verify`` is false. ``lora`` is
    the folder of a PEFT adapter to merge.

    Raises:
        UsageError: another dtype or target. Otherwise as `quantize`.
    """
    if to != "gguf":
        from kvant.api.targets import write_target

        refuse_of_gguf(to, {"--pre-tokenizer": pre_tokenizer})
        return write_target(
            source,
            to,
            None,
            output,
            dtype=dtype,
            lora=lora,
            threads=threads,
            split_size=split_size,
            verify=verify,
            settings=settings,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    refuse_of_targets(verify=verify, settings=settings)
    recipe = preset(dtype or "bf16")
    if recipe.quantised:
        raise UsageError(
            f"convert writes bf16, f16 or f32, got {dtype!r}; for {recipe.name} use "
            f"`kvant quantize SRC {recipe.name}`."
        )
    return _export(
        open_source(source, lora),
        recipe,
        output,
        (),
        threads,
        split_size,
        pre_tokenizer,
        force,
        dry_run,
        progress,
        evidence=False,
    )


def quantize(
    source: Source,
    recipe: str | Recipe | None = None,
    output: Source | None = None,
    *,
    to: str = "gguf",
    fit: int | None = None,
    bpw: float | None = None,
    max_kld: float | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    tensors: Sequence[str] = (),
    importance: Source | Importance | None = None,
    lora: Source | None = None,
    save_recipe: Source | None = None,
    effort: EffortName | None = None,
    texts: Sequence[Source | tuple[Source, float]] = (),
    tokens: int | None = None,
    max_memory: int | None = None,
    split_size: int | None = None,
    pre_tokenizer: str | None = None,
    evidence: bool | None = None,
    making: Making | None = None,
    verify: bool = True,
    settings: Mapping[str, object] | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Artefact:
    """Write a quantised model: a GGUF file, or a folder for another target.

    ``fast`` takes one pass over the file, in memory that does not grow with the model. ``balanced``
    and ``best`` run the model over a text, layer by layer, and choose each weight's code by what
    the linear's outputs become (docs/methods.md).

    Args:
        source: ``demo``, a Hugging Face folder or a GGUF file.
        recipe: a preset's name, in any case, a recipe's file (its name ends in .json), or a recipe.
        output: file to write; a folder gets the conventional name; by default that name in the
            current folder.
        to: ``gguf``, or another target (`kvant.api.targets`): then ``recipe`` is one of its levels,
            and ``output`` a folder.
        fit, bpw, max_kld: a budget instead of a recipe, as for `quantize_within`, which says more
            about what it did.
        dtype: for other targets, of what is not quantised; by default the source's.
        threads: processors to use; the bytes do not depend on it.
        tensors: ``REGEX=PACKING`` texts that go before the recipe.
        importance: how much each input of a linear matters, as `calibrate` gives it, or a file of
            it (llama.cpp's imatrix files too): scales are chosen for the least weighted error.
        lora: folder of a PEFT adapter that is merged into the weights while they are read.
        save_recipe: file to write the recipe to, as JSON.
        effort: ``"fast"``, ``"balanced"`` or ``"best"``; by default fast, with a budget balanced.
        texts: what the model is run over, as for `calibrate`; not for ``fast``.
        tokens: of all texts together; by default 65,536, or as many as the texts allow.
        max_memory: most bytes for hidden states; what is more goes to a scratch file.
        split_size: bytes a file may hold before the next one is begun.
        pre_tokenizer: llama.cpp's name for the pre-tokenizer, where it cannot be determined.
        evidence: True measures what it cost, against the source, before the file appears; False
            writes nothing beside the file; by default how it was made, and its sizes, are
            written beside it (`kvant.api.evidence.measures_by_default`).
        making: what decided the recipe, for the evidence: effort, budget, seed.
        verify: compare what was written with the source; GGUF has checksums instead.
        settings: what only one other target knows.
        force: replace existing files.
        dry_run: decide everything, write nothing.
        progress: called with weights done, weights in all, and the tensor at hand.

    Raises:
        UsageError: no such recipe; an override or size that does not suit the model.
        InputError: the source is damaged, not supported, or holds NaN or infinity; the importance
            is of another model, or its file damaged.
        OutputError: the output exists or cannot be written. Nothing is left behind.
    """
    if not (fit is bpw is max_kld is None):
        if any(given is not None for given in (recipe, tokens, max_memory, making)):
            raise UsageError(
                "A budget takes the place of a recipe, and goes with neither tokens, max_memory "
                "nor making; leave one of them out."
            )
        from kvant.api.within import quantize_within

        return quantize_within(
            source,
            output,
            to=to,
            fit=fit,
            bpw=bpw,
            max_kld=max_kld,
            effort=effort or "balanced",
            texts=texts,
            importance=importance,
            lora=lora,
            tensors=tensors,
            dtype=dtype,
            settings=settings,
            verify=verify,
            save_recipe=save_recipe,
            threads=threads,
            split_size=split_size,
            pre_tokenizer=pre_tokenizer,
            evidence=evidence,
            force=force,
            dry_run=dry_run,
            progress=None if progress is None else lambda what, i, n: progress(i, n, what),
        ).artefact
    if recipe is None:
        raise UsageError("Give a recipe, or a budget: fit, bpw or max_kld.")
    effort = effort or "fast"
    if to != "gguf":
        from kvant.api.targets import write_target

        of_gguf = {"--save-recipe": save_recipe, "--pre-tokenizer": pre_tokenizer}
        refuse_of_gguf(to, {**of_gguf, "--evidence": evidence})
        return write_target(
            source,
            to,
            recipe if isinstance(recipe, str) else recipe.name,
            output,
            dtype=dtype,
            lora=lora,
            tensors=tensors,
            importance=importance,
            effort=effort,
            texts=texts,
            tokens=tokens,
            threads=threads,
            max_memory=max_memory,
            split_size=split_size,
            verify=verify,
            settings=settings,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    refuse_of_targets(dtype=dtype, verify=verify, settings=settings)
    refuse_texts(effort_of(effort), texts, tokens, max_memory)
    chosen = named_recipe(recipe) if isinstance(recipe, str) else recipe
    if isinstance(recipe, str) and not chosen.quantised:
        refuse_without_effect(
            {
                "A text": texts or tokens is not None,
                "--importance": importance is not None and not tensors,
            },
            f"is for quantised models, and {chosen.name} is not; give a level.",
        )
    checkpoint = open_source(source, lora)
    how = effort_of(effort)
    if not dry_run:
        early = None if how.method is None else _output_path(checkpoint, chosen, output)
        check_output_names(early, split_size, force=force)
        if save_recipe is not None:
            check_recipe_name(save_recipe, force=force)
    known = None if importance is None else importance_of(importance, checkpoint)
    chunks = None
    if how.method is not None and chosen.quantised:
        chunks = calibration_chunks(checkpoint, texts, tokens=tokens)
        if known is None and not dry_run:
            known = collect_importance(checkpoint, chunks, threads=threads_or_default(threads))
        making = making_of(how, chunks, making)
    made = _export(
        checkpoint,
        chosen,
        output,
        tensors,
        threads,
        split_size,
        pre_tokenizer,
        force,
        dry_run,
        progress,
        known,
        None if chunks is None else _Calibrated(how, chunks, max_memory),
        evidence=evidence,
        making=making,
    )
    if save_recipe is not None and not dry_run:
        write_atomic(Path(save_recipe), recipe_text(chosen), force=force)
    return made


@dataclass(frozen=True, slots=True)
class _Calibrated:
    """An effort that looks at the model as it runs."""

    effort: Effort
    chunks: Chunks
    max_memory: int | None


def _export(
    checkpoint: Checkpoint,
    recipe: Recipe,
    output: Source | None,
    overrides: Sequence[str],
    threads: int | None,
    split_size: int | None,
    pre_tokenizer: str | None,
    force: bool,
    dry_run: bool,
    progress: Progress | None,
    importance: Importance | None = None,
    calibrated: _Calibrated | None = None,
    *,
    evidence: bool | None,
    making: Making | None = None,
) -> Artefact:
    making = making or Making()
    measure = evidence
    if evidence is None:
        measure = measures_by_default(effort=making.effort, budget=making.target is not None)
    plan = plan_export(
        checkpoint,
        recipe,
        overrides=overrides,
        split_size=split_size,
        model=model_metadata(checkpoint, pre_tokenizer=pre_tokenizer),
        making=making,
        reserve=bool(measure),
        importance=importance,
    )
    path = _output_path(checkpoint, recipe, output)
    names = plan.file_names(path.name)
    weighed = () if importance is None else importance_notes(plan)
    if dry_run:
        return _artefact(plan, tuple(path.with_name(n) for n in names), None, weighed)
    workers, started = threads_or_default(threads), time.perf_counter()
    recorder: Recorder | None = None
    if evidence is not False:
        recorder = record_evidence(
            plan, path, threads=workers, target=making.target, progress=progress
        )
    complete = None if recorder is None else recorder.completion
    if calibrated is None:
        written = write_plan(
            plan, path, threads=workers, force=force, progress=progress, complete=complete
        )
        seconds = written.seconds
    else:
        refuse_outputs(plan, path, force=force)  # before the work, not after it
        with prepared(
            plan,
            calibrated.effort,
            calibrated.chunks,
            path.absolute().parent,
            threads=workers,
            max_memory=calibrated.max_memory,
            progress=progress,
        ) as ready:
            written = write_plan(ready, path, threads=workers, force=force, complete=complete)
        seconds = time.perf_counter() - started
    return replace(
        _artefact(plan, written.paths, seconds, weighed),
        beside=written.beside,
        notes=plan_notes(plan) + weighed + (() if recorder is None else tuple(recorder.notes)),
    )


def named_recipe(name: str) -> Recipe:
    """A preset by its name, or the recipe of a file.

    Raises:
        UsageError: there is no such preset.
        InputError: no such file, or it holds no recipe.
    """
    if is_recipe_file(name):
        return read_recipe(name)
    try:
        return preset(name)
    except UsageError:
        levels = [(target, find_target(target).levels()) for target in TARGETS]
        others = [f"--to {t}" for t, found in levels if name.lower() in {x.name for x in found}]
        if not others:
            raise
        raise UsageError(
            f"{name} is no recipe for GGUF files but a level of other targets: add "
            f"{' or '.join(others)}."
        ) from None


def importance_of(importance: Source | Importance, checkpoint: Checkpoint) -> Importance:
    """Importance of this model, from a file or as it was collected.

    Raises:
        InputError: it is of another model; or the file is damaged or cannot be read.
    """
    found = importance if isinstance(importance, Importance) else read_importance(importance)
    return belonging(found, checkpoint)


def _output_path(checkpoint: Checkpoint, recipe: Recipe, output: Source | None) -> Path:
    conventional = checkpoint.info.file_stem(recipe.name) + ".gguf"
    if output is None:
        return Path(conventional)
    return _file_of(output) or Path(output) / conventional


def _file_of(output: Source) -> Path | None:
    """The file that was named; None where it is a folder."""
    path = Path(output)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where nothing can be there
        return None
    if path.suffix != ".gguf":
        raise OutputError(
            f"{path}: expected an existing folder or a name that ends in .gguf; "
            f"for example {path.with_name(path.name + '.gguf')}."
        )
    return path


def check_output_names(output: Source | None, split_size: int | None, *, force: bool) -> None:
    """Say at once that what was named cannot be written: before minutes of work, not after them.

    Raises:
        OutputError: a file exists and ``force`` is not set, or it cannot be made.
    """
    if output is not None and (path := _file_of(output)) is not None and split_size is None:
        check_output(path, force=force)


def check_recipe_name(save_recipe: Source, *, force: bool) -> None:
    """As `check_output_names`, of a recipe's file.

    Raises:
        OutputError: as there.
        UsageError: it could not be used as one.
    """
    if not is_recipe_file(os.fspath(save_recipe)):
        raise UsageError(
            f"--save-recipe {save_recipe}: expected a name that ends in .json, by which "
            "`kvant quantize` knows a recipe's file."
        )
    check_output(save_recipe, force=force)


def _artefact(
    plan: Plan, paths: tuple[Path, ...], seconds: float | None, notes: tuple[str, ...] = ()
) -> Artefact:
    return Artefact(
        paths=paths,
        recipe=plan.recipe.name,
        nbytes=plan.size,
        bits_per_weight=plan.bits_per_weight,
        parameters=plan.checkpoint.parameters,
        tensors=tuple(
            TensorReport(
                t.name,
                t.assignment.slot.shape,
                t.source_type,
                t.assignment.packing,
                t.assignment.wanted,
                t.spec.nbytes,
            )
            for t in plan.tensors
        ),
        notes=plan_notes(plan) + notes,
        seconds=seconds,
    )
