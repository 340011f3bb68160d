"""A checkpoint becomes a GGUF file, unquantised or by a recipe."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvant.api.artefact import Artefact, TensorReport
from kvant.api.calibration import calibration_chunks
from kvant.api.effort import (
    Effort,
    EffortName,
    effort_of,
    making_of,
    prepared,
)
from kvant.api.evidence import Recorder, measures_by_default, record_evidence
from kvant.api.source import Source, open_source, threads_or_default
from kvant.calibration.belongs import belonging
from kvant.calibration.collect import collect_importance
from kvant.calibration.imatrix import read_importance
from kvant.calibration.importance import Importance
from kvant.calibration.texts import Chunks
from kvant.checkpoint import Checkpoint
from kvant.errors import OutputError, UsageError
from kvant.evidence import Making
from kvant.export.gguf.keys import SEARCHED
from kvant.export.gguf.plan import Plan, PlannedTensor, model_metadata, plan_export
from kvant.export.gguf.stream import Progress
from kvant.export.gguf.write import refuse_outputs, write_plan
from kvant.files.atomic import write_atomic
from kvant.quant.assign import NEED_IMPORTANCE
from kvant.quant.presets import preset
from kvant.quant.recipe import Recipe
from kvant.quant.recipe_file import is_recipe_file, read_recipe, recipe_text

__all__ = ["convert", "quantize"]

_FLOAT_TYPES = ("F32", "F16", "BF16")


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
    recipe: str | Recipe,
    output: Source | None = None,
    *,
    to: str = "gguf",
    dtype: str | None = None,
    threads: int | None = None,
    tensors: Sequence[str] = (),
    importance: Source | Importance | None = None,
    lora: Source | None = None,
    save_recipe: Source | None = None,
    effort: EffortName = "fast",
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
        dtype: for other targets, of what is not quantised; by default the source's.
        threads: processors to use; the bytes do not depend on it.
        tensors: ``REGEX=PACKING`` texts that go before the recipe.
        importance: how much each input of a linear matters, as `calibrate` gives it, or a file of
            it (llama.cpp's imatrix files too): scales are chosen for the least weighted error.
        lora: folder of a PEFT adapter that is merged into the weights while they are read.
        save_recipe: file to write the recipe to, as JSON.
        effort: ``"fast"``, ``"balanced"`` or ``"best"``.
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
    if to != "gguf":
        from kvant.api.targets import write_target

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
    chosen = named_recipe(recipe) if isinstance(recipe, str) else recipe
    checkpoint = open_source(source, lora)
    if save_recipe is not None:
        write_atomic(Path(save_recipe), recipe_text(chosen), force=force)
    how = effort_of(effort)
    known = None if importance is None else importance_of(importance, checkpoint)
    chunks = None
    if how.method is None:
        if texts or tokens is not None:
            raise UsageError(
                "A text is for --effort balanced or best; with fast, give --importance FILE "
                "(`kvant calibrate` makes it)."
            )
    elif chosen.quantised:
        chunks = calibration_chunks(checkpoint, texts, tokens=tokens)
        if known is None and not dry_run:
            known = collect_importance(checkpoint, chunks, threads=threads_or_default(threads))
        making = making_of(how, chunks, making)
    return _export(
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
    weighed = () if importance is None else _importance_notes(plan)
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
        notes=_notes(plan) + weighed + (() if recorder is None else tuple(recorder.notes)),
    )


def named_recipe(name: str) -> Recipe:
    """A preset by its name, or the recipe of a file.

    Raises:
        UsageError: there is no such preset.
        InputError: no such file, or it holds no recipe.
    """
    return read_recipe(name) if is_recipe_file(name) else preset(name)


def importance_of(importance: Source | Importance, checkpoint: Checkpoint) -> Importance:
    """Importance of this model, from a file or as it was collected.

    Raises:
        InputError: it is of another model; or the file is damaged or cannot be read.
    """
    found = importance if isinstance(importance, Importance) else read_importance(importance)
    return belonging(found, checkpoint)


def _importance_notes(plan: Plan) -> tuple[str, ...]:
    """Quantised matrices that the importance makes no difference to."""
    matrices = [t for t in plan.tensors if t.assignment.slot.is_matrix]
    quantised = [t for t in matrices if t.assignment.packing not in _FLOAT_TYPES]
    notes = []
    formulas = [t for t in quantised if t.assignment.packing not in SEARCHED]
    if formulas:
        kinds = ", ".join(sorted({t.assignment.packing for t in formulas}))
        notes.append(
            f"{len(formulas)} tensors are {kinds}, which follows a formula: the importance changes "
            "nothing there."
        )
    unknown = [t.name for t in quantised if t.importance is None and t not in formulas]
    if unknown:
        listed = ", ".join(unknown[:4]) + (" …" if len(unknown) > 4 else "")
        notes.append(f"Without importance, so all columns count alike: {listed}.")
    return tuple(notes)


def _output_path(checkpoint: Checkpoint, recipe: Recipe, output: Source | None) -> Path:
    conventional = checkpoint.info.file_stem(recipe.name) + ".gguf"
    if output is None:
        return Path(conventional)
    path = Path(output)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where nothing can be there
        return path / conventional
    if path.suffix != ".gguf":
        raise OutputError(
            f"{path}: expected an existing folder or a name that ends in .gguf; "
            f"for example {path.with_name(path.name + '.gguf')}."
        )
    return path


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
        notes=_notes(plan) + notes,
        seconds=seconds,
    )


def _loses_digits(tensor: PlannedTensor) -> bool:
    change = (tensor.source_type, tensor.assignment.packing)
    if tensor.requantised:  # a scale times a code takes up to 24 bits
        return change[1] in ("F16", "BF16")
    return change in (("F32", "F16"), ("F32", "BF16"), ("F16", "BF16"))


def _needs_importance(tensor: PlannedTensor) -> bool:
    """Whether it has so few bits that importance decides; an embedding has none."""
    slot = tensor.assignment.slot
    return tensor.assignment.packing in NEED_IMPORTANCE and slot.layer is not None


def _notes(plan: Plan) -> tuple[str, ...]:
    """Sentences a user should read: what gave way, and what was lost before kvant came."""
    notes = [*plan.checkpoint.told, *plan.notes]
    moved = Counter(
        (t.assignment.wanted, t.assignment.packing, t.assignment.slot.shape[-1])
        for t in plan.tensors
        if t.assignment.fell_back
    )
    for (wanted, packing, row), count in moved.items():
        notes.append(
            f"{count} tensor{'s' if count > 1 else ''} with rows of {row} weights got {packing} "
            f"instead of {wanted}, whose blocks do not divide the row."
        )
    again = sorted({t.source_type for t in plan.tensors if t.requantised})
    if again and plan.recipe.quantised:
        notes.append(
            f"The source is quantised already ({', '.join(again)}): quantising it again adds "
            "to that loss. Use the original checkpoint if you can."
        )
    if again and not plan.recipe.quantised:
        notes.append(
            f"The source is quantised ({', '.join(again)}): this file is larger and cannot regain "
            "what that lost."
        )
    rounded = sorted({t.source_type for t in plan.tensors if _loses_digits(t)})
    if rounded and not plan.recipe.quantised:
        keeps_all = "f16" if rounded == ["F16"] else "f32"
        notes.append(
            f"Weights stored as {', '.join(rounded)} are rounded to {plan.recipe.name}, which "
            f"keeps fewer digits; `kvant convert --dtype {keeps_all}` keeps all."
        )
    blind = [t for t in plan.tensors if _needs_importance(t) and t.importance is None]
    if blind:
        kinds = ", ".join(sorted({t.assignment.packing for t in blind}))
        notes.append(
            f"{len(blind)} tensors are {kinds} without importance, so quality is poor: `kvant "
            "calibrate SRC` collects it, and `kvant quantize --importance FILE` uses it."
        )
    if "tokenizer.ggml.model" not in plan.shards[0].metadata:
        notes.append("The source has no tokenizer; the file has none either and cannot chat.")
    return tuple(notes)
