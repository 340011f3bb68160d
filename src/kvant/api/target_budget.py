"""Quantise to a budget for targets that are not GGUF: the best mixture of their levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvant.api.artefact import Artefact
from kvant.api.budget import collected, largest_within
from kvant.api.calibration import calibration_chunks
from kvant.api.conversion import importance_of
from kvant.api.effort import effort_of
from kvant.api.source import Source, open_source, threads_or_default
from kvant.api.targets import dtype_of, write_target
from kvant.api.trials import Trials
from kvant.calibration import Chunks, Importance
from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.evaluation import EvalResult
from kvant.export.mixture import LevelMixture, mixture_text
from kvant.export.overrides import Overrides
from kvant.export.target import Choices, Target, TargetOptions, find_level, find_target
from kvant.files.atomic import write_atomic
from kvant.quant.allocate import Choice, Front, Item, Mixture, NotReachableError
from kvant.quant.candidate import FLOAT, Candidate
from kvant.tuning.candidates import ALL, FAST
from kvant.tuning.sensitivity import EffortName, Progress, Sensitivity, measure_costs
from kvant.units import size_text

__all__ = ["TargetFound", "quantize_target_within"]


@dataclass(frozen=True, slots=True)
class TargetFound:
    """What `quantize_target_within` made, and from what."""

    artefact: Artefact
    mixture: LevelMixture
    sensitivity: Sensitivity
    expected_kld: float
    measured: EvalResult | None


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
) -> TargetFound:
    """As `kvant.api.within.quantize_within`, which checked the budgets; ``packings`` are levels.

    Raises:
        UsageError: no such target or level, or a budget nothing can meet: the smallest possible is
            stated.
        InputError, OutputError: as for `write_target`.
    """
    target, how = find_target(to), effort_of(effort)
    if how.method is None and texts:
        raise UsageError("A text is for --effort balanced or best; fast measures nothing.")
    levels = choose_levels(target, packings)
    checkpoint = open_source(source, lora)
    options = TargetOptions(
        dtype=dtype_of(dtype), overrides=tuple(tensors), settings=dict(settings or {})
    )
    choices = _free(target, target.choices(checkpoint, levels, options), tensors)

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
    sized = _Sizes(checkpoint, to, choices, lambda mixture: write(mixture, output, dry=True))
    sized.refuse_impossible(fit, bpw)  # before minutes of measuring
    chunks = None if how.method is None else calibration_chunks(checkpoint, texts)
    if known is None and chunks is not None:
        known = collected(checkpoint, chunks, threads_or_default(threads), progress)
    sensitivity = _measured(checkpoint, choices, effort, chunks, known, threads, progress)
    front = Front(_items(choices, sensitivity))
    trials = Trials(
        front,
        source,
        lambda mixture, path: write(sized.mixture(mixture), path, dry=False, final=False).paths[0],
        validation,
        threads,
        progress,
        suffix="",
    )
    measured: EvalResult | None = None
    if max_kld is not None:
        best, measured = trials.smallest_within(max_kld)
    elif fit is not None:
        best = sized.within(front, fit, sized.files)
    else:
        assert bpw is not None
        best = sized.within(front, sized.room(bpw), sized.tensors)
    mixture = sized.mixture(best)
    if save_recipe is not None:
        write_atomic(Path(save_recipe), mixture_text(mixture), force=force)
    artefact = write(mixture, output, dry=dry_run)
    if max_kld is not None and not dry_run:
        measured = trials.measure_last(artefact.paths[0], max_kld)
    return TargetFound(artefact, mixture, sensitivity, best.cost, measured)


def choose_levels(target: Target, names: Sequence[str]) -> tuple[str, ...]:
    """The levels meant by ``names``: ``fast``, ``all``, or single ones, in any mixture.

    Raises:
        UsageError: the target has no levels, or none is called so.
    """
    if not names:
        raise UsageError("--packings names no level; leave it out, or give some.")
    wanted: set[str] = set()
    for name in names:
        if name.lower() == ALL:
            wanted |= {level.name for level in target.levels()}
        elif name.lower() == FAST and target.levels():
            wanted |= {level.name for level in target.levels() if level.fast}
        else:
            wanted.add(find_level(target, name).name)
    return tuple(level.name for level in target.levels() if level.name in wanted)


def _free(target: Target, choices: Choices, overrides: Sequence[str]) -> Choices:
    """The choices of tensors that no ``REGEX=LEVEL`` text decides about."""
    rules = Overrides.parse(overrides, (*(level.name for level in target.levels()), FLOAT))
    free = {n: own for n, own in choices.candidates.items() if rules.find(n) is None}
    rules.refuse_unused()
    if not any(len(own) > 1 for own in free.values()):
        raise UsageError(
            "There is nothing to choose: no tensor may get more than one level. Give a level "
            "instead of a budget, or leave --tensor or --packings out."
        )
    return replace(choices, candidates=free)


def _measured(
    checkpoint: Checkpoint,
    choices: Choices,
    effort: EffortName,
    chunks: Chunks | None,
    importance: Importance | None,
    threads: int | None,
    progress: Progress | None,
) -> Sensitivity:
    return measure_costs(
        checkpoint,
        {name: own for name, own in choices.candidates.items() if len(own) > 1},
        effort=effort,
        tokens=None if chunks is None else chunks.ids.reshape(-1),
        importance=importance,
        plain=choices.plain and importance is None,
        threads=threads_or_default(threads),
        progress=progress,
    )


def _groups(choices: Choices) -> list[tuple[str, ...]]:
    """Names that get the same, in the model's order; most are alone."""
    free = choices.candidates
    shared = [tuple(n for n in names if n in free) for names in choices.together]
    of = {name: names for names in shared for name in names}
    return list(dict.fromkeys(of.get(name, (name,)) for name in free))


def _items(choices: Choices, sensitivity: Sensitivity) -> list[Item]:
    """What the budget is spent on: tensors that go together as one, with their sums."""
    costs = {t.name: t.costs for t in sensitivity.tensors}
    return [
        Item(
            names,
            tuple(
                Choice(
                    level,
                    sum(c.nbytes for c in own),
                    sum(costs[n][level] if n in costs else 0.0 for n in names),
                )
                for level, own in _common(choices, names).items()
            ),
        )
        for names in _groups(choices)
    ]


def _common(choices: Choices, names: Sequence[str]) -> dict[str, list[Candidate]]:
    """The candidates that all of some tensors have, by level."""
    each = [{c.name: c for c in choices.candidates[name]} for name in names]
    return {
        level: [own[level] for own in each] for level in each[0] if all(level in o for o in each)
    }


class _Sizes:
    """Mixtures as levels by name, and the bytes their folders take, planned to the byte."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        to: str,
        choices: Choices,
        plan: Callable[[LevelMixture], Artefact],
    ) -> None:
        self._checkpoint, self._to, self._plan = checkpoint, to, plan
        self._groups = _groups(choices)
        smallest = [min(_common(choices, g).values(), key=_nbytes)[0].name for g in self._groups]
        self._least = plan(self._named(smallest, "kvant-0.00bpw"))

    def _named(self, levels: Sequence[str], name: str) -> LevelMixture:
        found = {n: v for group, v in zip(self._groups, levels, strict=True) for n in group}
        return LevelMixture(self._to, name, found)

    def planned(self, mixture: Mixture) -> Artefact:
        """What would be written."""
        return self._plan(self._named([c.packing for c in mixture.choices], "kvant-0.00bpw"))

    def files(self, mixture: Mixture) -> int:
        """Bytes of all files."""
        return self.planned(mixture).nbytes

    def tensors(self, mixture: Mixture) -> int:
        """Bytes of all tensors."""
        return _tensor_bytes(self.planned(mixture))

    def room(self, bpw: float) -> int:
        """Bytes that all tensors may take."""
        return int(bpw * self._weights / 8)

    @property
    def _weights(self) -> int:
        return round(8 * _tensor_bytes(self._least) / self._least.bits_per_weight)

    def mixture(self, mixture: Mixture) -> LevelMixture:
        """Levels by name; it is called after the bits per weight of all tensors."""
        bits = self.planned(mixture).bits_per_weight
        return self._named([c.packing for c in mixture.choices], f"kvant-{bits:.2f}bpw")

    def refuse_impossible(self, fit: int | None, bpw: float | None) -> None:
        """Raise UsageError where not even the smallest mixture keeps the budget."""
        if fit is not None and self._least.nbytes > fit:
            raise self._too_small(fit, self._least.nbytes)
        if bpw is not None and _tensor_bytes(self._least) > self.room(bpw):
            least = math.ceil(self._least.bits_per_weight * 1e4) / 1e4
            raise UsageError(
                f"{self._checkpoint.path}: no mixture has {bpw:g} bits per weight; the fewest "
                f"possible are {least:.4f}. Allow that many, or more levels (--packings)."
            )

    def within(self, front: Front, budget: int, size: Callable[[Mixture], int]) -> Mixture:
        """The best mixture of at most ``budget`` bytes by ``size``."""
        try:
            return largest_within(front, size, budget)
        except NotReachableError as error:
            raise self._too_small(budget, int(error.least)) from None

    def _too_small(self, asked: int, least: int) -> UsageError:
        return UsageError(
            f"{self._checkpoint.path}: nothing for {self._to} fits {asked:,} bytes; the smallest "
            f"possible has {least:,} ({size_text(least)}). Allow that much, or more levels "
            "(--packings)."
        )


def _nbytes(own: Sequence[Candidate]) -> int:
    return sum(c.nbytes for c in own)


def _tensor_bytes(artefact: Artefact) -> int:
    return sum(t.nbytes for t in artefact.tensors)
