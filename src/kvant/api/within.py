"""Quantise to a budget: of bytes, of bits per weight, or of divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvant.api.artefact import Artefact
from kvant.api.budget import (
    collected,
    pinned_by,
    placeholder,
    plan_maker,
    search_budgets,
    smallest_plan,
    too_few_bits,
    too_small,
)
from kvant.api.calibration import calibration_chunks
from kvant.api.conversion import check_output_names, check_recipe_name, importance_of, quantize
from kvant.api.effort import effort_of, making_of, refuse_texts
from kvant.api.evidence import measures_by_default
from kvant.api.fitted import Fitted
from kvant.api.source import Source, open_source, threads_or_default
from kvant.api.target_budget import quantize_target_within
from kvant.api.trials import Trials
from kvant.api.without_effect import refuse_of_gguf, refuse_of_targets, refuse_without_effect
from kvant.calibration import Importance
from kvant.errors import UsageError
from kvant.evaluation import EvalResult
from kvant.evaluation.gate import check_limits
from kvant.evidence import Making
from kvant.export.gguf.plan import model_metadata
from kvant.files.atomic import write_atomic
from kvant.quant.recipe import Recipe
from kvant.quant.recipe_file import recipe_text
from kvant.tuning.candidates import FAST
from kvant.tuning.sensitivity import EffortName, Progress

__all__ = ["quantize_within"]


def quantize_within(
    source: Source,
    output: Source | None = None,
    *,
    to: str = "gguf",
    fit: int | None = None,
    bpw: float | None = None,
    max_kld: float | None = None,
    effort: EffortName = "balanced",
    packings: Sequence[str] = (FAST,),
    texts: Sequence[Source | tuple[Source, float]] = (),
    importance: Source | Importance | None = None,
    lora: Source | None = None,
    validation: Source | None = None,
    tensors: Sequence[str] = (),
    dtype: str | None = None,
    settings: Mapping[str, object] | None = None,
    verify: bool = True,
    save_recipe: Source | None = None,
    threads: int | None = None,
    split_size: int | None = None,
    pre_tokenizer: str | None = None,
    evidence: bool | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Fitted:
    """Write the quantised model that loses least within a budget: a GGUF file, or for a target.

    Each tensor's cost at each packing (or level) is measured on the model, then the best mixture is
    computed. Exactly one of ``fit``, ``bpw`` and ``max_kld`` is given.

    Args:
        source: ``demo``, a Hugging Face folder or a GGUF file, unquantised.
        output: as for `quantize`.
        to: ``gguf``, or another target: then its levels are what tensors may get.
        fit: most bytes of the file, or of all its parts, metadata included.
        bpw: most bits per weight, over all tensors; metadata not counted.
        max_kld: largest mean KL divergence from ``source`` on the validation text, nats a token:
            the smallest file that keeps it.
        effort: ``fast`` measures nothing, ``balanced`` takes minutes, ``best`` several times that.
        packings: that matrices may get: ``fast`` (those common runtimes run at full speed),
            ``all``, or names; of another target its levels.
        texts: what costs, and importance unless it is given, are measured on: UTF-8 files, each
            alone or with its share; by default the built-in calibration text.
        importance: how much each input of a linear matters, or a file of it; by default, but not
            for ``fast``, it is measured first.
        lora: folder of a PEFT adapter that is merged into the weights while they are read.
        validation: what ``max_kld`` is measured on; by default the built-in evaluation text.
        tensors: ``REGEX=PACKING`` texts; what they match is not searched.
        dtype, settings, verify: as for `quantize`, for other targets.
        save_recipe: file to write the recipe to; `quantize` takes it as a recipe.
        threads: processors to use; the bytes do not depend on it.
        split_size: bytes a file may hold before the next one is begun.
        pre_tokenizer: llama.cpp's name for the pre-tokenizer, where it cannot be determined.
        evidence: as for `quantize`; by default quality is measured and stands in the file.
        force: replace existing files.
        dry_run: search, but write no model.
        progress: called with what is done, steps done and steps in all.

    Raises:
        UsageError: not exactly one budget, or one nothing can meet: the smallest possible, or the
            best there is, is stated. A text that is too short.
        InputError, OutputError: as for `quantize`.
    """
    _check_budgets(fit, bpw, max_kld)
    if lora is not None and max_kld is not None:
        raise UsageError(
            "A divergence is measured from SRC, and an adapter changes that. Merge it first with "
            "`kvant convert SRC --lora ADAPTER`, or give --fit or --bpw."
        )
    if max_kld is None:
        refuse_without_effect(
            {"--validation": validation}, "is what --max-kld is measured on; give that, too."
        )
    refuse_texts(effort_of(effort), texts, None, None)
    if not dry_run and save_recipe is not None:
        check_recipe_name(save_recipe, force=force)
    if to != "gguf":
        refuse_of_gguf(to, {"--pre-tokenizer": pre_tokenizer, "--evidence": evidence})
        return quantize_target_within(
            source,
            output,
            to,
            fit=fit,
            bpw=bpw,
            max_kld=max_kld,
            effort=effort,
            packings=packings,
            texts=texts,
            importance=importance,
            lora=lora,
            validation=validation,
            tensors=tensors,
            dtype=dtype,
            settings=settings,
            verify=verify,
            save_recipe=save_recipe,
            threads=threads,
            split_size=split_size,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    refuse_of_targets(dtype=dtype, verify=verify, settings=settings)
    checkpoint = open_source(source, lora)
    if not dry_run:
        check_output_names(output, split_size, force=force)
    model = model_metadata(checkpoint, pre_tokenizer=pre_tokenizer)
    given = None if importance is None else importance_of(importance, checkpoint)
    chunks = None if effort == "fast" else calibration_chunks(checkpoint, texts)
    expected = given if chunks is None or given is not None else placeholder(checkpoint, chunks)
    reserve = measures_by_default(budget=True) if evidence is None else evidence
    making = Making(target=_target(fit, bpw, max_kld, effort))
    if chunks is not None:
        making = making_of(effort_of(effort), chunks, making)
    make_plan = plan_maker(checkpoint, model, tensors, split_size, expected, reserve, making)
    smallest = smallest_plan(checkpoint, packings, pinned_by(checkpoint, tensors), make_plan)
    # Minutes of measuring come after it is known that the budget can be met at all.
    if fit is not None and smallest.size > fit:
        raise too_small(checkpoint, fit, smallest.size)
    if bpw is not None and smallest.bits_per_weight > bpw:
        raise too_few_bits(checkpoint, bpw, smallest.bits_per_weight)
    if given is None and chunks is not None:
        given = collected(checkpoint, chunks, threads_or_default(threads), progress)
        make_plan = plan_maker(checkpoint, model, tensors, split_size, given, reserve, making)
    search = search_budgets(
        checkpoint,
        make_plan,
        effort=effort,
        packings=packings,
        overrides=tensors,
        chunks=chunks,
        importance=given,
        threads=threads_or_default(threads),
        progress=progress,
    )

    def write(recipe: Recipe, target: Source | None, dry: bool, final: bool) -> Artefact:
        return quantize(
            source,
            recipe,
            target,
            threads=threads,
            tensors=tensors,
            importance=given,
            lora=lora,
            effort=effort,
            texts=texts if chunks is not None else (),
            split_size=split_size,
            pre_tokenizer=pre_tokenizer,
            evidence=evidence if final else False,
            making=making,
            force=force and final,
            dry_run=dry,
            progress=None if progress is None else _weights(progress),
        )

    measured: EvalResult | None = None
    trials = Trials(
        search.front,
        source,
        lambda mixture, path: write(search.recipe(mixture), path, False, False).paths[0],
        validation,
        threads,
        progress,
    )
    if max_kld is not None:
        mixture, measured = trials.smallest_within(max_kld)
        recipe = search.recipe(mixture)
    elif fit is not None:
        recipe, mixture = search.fit(fit)
    else:
        assert bpw is not None
        recipe, mixture = search.bits(bpw)
    artefact = write(recipe, output, dry_run, True)
    if save_recipe is not None and not dry_run:
        write_atomic(Path(save_recipe), recipe_text(recipe), force=force)
    if max_kld is not None and not dry_run:  # the file itself has the last word
        measured = trials.measure_last(artefact.paths[0], max_kld)
    return Fitted(artefact, recipe, search.sensitivity, mixture.cost, measured)


def _target(fit: int | None, bpw: float | None, max_kld: float | None, effort: str) -> str:
    """The budget in words, for the evidence."""
    if fit is not None:
        return f"fit {fit} bytes, {effort}"
    return (
        f"{bpw:g} bits per weight, {effort}"
        if bpw is not None
        else (f"KL divergence of at most {max_kld:g}, {effort}")
    )


def _check_budgets(fit: int | None, bpw: float | None, max_kld: float | None) -> None:
    given = sum(budget is not None for budget in (fit, bpw, max_kld))
    if given != 1:
        raise UsageError(f"Give exactly one of fit, bpw and max_kld, got {given or 'none'}.")
    if fit is not None and fit < 1:
        raise UsageError(f"Expected a size above zero to fit, got {fit} bytes.")
    if bpw is not None and not 0 < bpw < math.inf:
        raise UsageError(f"Expected a number of bits per weight above zero, got {bpw}.")
    check_limits(max_kld, None)


def _weights(progress: Progress) -> Callable[[int, int, str], None]:
    return lambda done, total, name: progress(f"writing {name}", done, total)
