"""The front of a model: variants for several budgets beside presets, all measured alike."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kvant.api.benchmark import benchmark
from kvant.api.budget import BudgetSearch, collected, named, plan_maker, search_budgets
from kvant.api.calibration import calibration_chunks
from kvant.api.conversion import convert, importance_of, quantize
from kvant.api.demonstration import make_folder
from kvant.api.measurement import corpus_of, open_subject, read_text
from kvant.api.model import load
from kvant.api.source import Source, open_source, threads_or_default, tokenizer_of
from kvant.calibration import Importance, write_importance
from kvant.checkpoint import Checkpoint
from kvant.engine.sampling import Sampling
from kvant.errors import InputError, UsageError
from kvant.evaluation import EvalResult, kld_difference
from kvant.evaluation import evaluate as measure
from kvant.export.gguf.plan import model_metadata
from kvant.files.atomic import write_atomic
from kvant.packing import PrecisionClass
from kvant.quant.presets import preset
from kvant.quant.recipe_file import recipe_text
from kvant.runtimes import open_runner
from kvant.tuning.candidates import FAST, matrices
from kvant.tuning.sensitivity import EffortName, Progress, Sensitivity

__all__ = ["BUDGETS", "PRESETS_SHOWN", "PROMPTS", "Pick", "TuneReport", "Variant", "tune"]

BUDGETS = (2.5, 3.0, 4.0, 5.0)
"""Bits per weight."""

PRESETS_SHOWN = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K")
"""Reference points."""

PROMPTS = ("Once upon a time", "The most important thing about learning is")
_SAMPLE_TOKENS = 48

Maker = Literal["base", "kvant", "preset", "llama.cpp"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One file, how it came about, and what was measured of it."""

    name: str
    maker: Maker
    recipe: str
    precision_class: PrecisionClass
    path: str
    result: EvalResult
    expected_kld: float | None = None
    """By the table of costs; None where no table made it."""
    prompt_rate: float | None = None
    """Tokens a second; None where speed was not measured."""
    generation_rate: float | None = None
    memory_bytes: int | None = None
    """Of the engine: weights, a step, and the cache of what was timed."""
    samples: tuple[str, ...] = ()
    """What it makes of each prompt, the likeliest token every time."""

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        plain = ("name", "maker", "recipe", "precision_class", "path", "expected_kld")
        speed = ("prompt_rate", "generation_rate", "memory_bytes")
        return {
            **{name: getattr(self, name) for name in (*plain, *speed)},
            "samples": list(self.samples),
            "result": self.result.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Pick:
    """The variant to take for a budget, and why."""

    budget: str
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class TuneReport:
    """Base and variants, by size; the picks; what costs were measured from."""

    model: str
    base: Variant
    variants: tuple[Variant, ...]
    picks: tuple[Pick, ...]
    sensitivity: Sensitivity
    prompts: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "model": self.model,
            "base": self.base.to_json(),
            "variants": [v.to_json() for v in self.variants],
            "picks": [{"budget": p.budget, "name": p.name, "why": p.why} for p in self.picks],
            "prompts": list(self.prompts),
            "notes": list(self.notes),
            "sensitivity": self.sensitivity.to_json(),
            "seconds": self.seconds,
        }


def tune(
    source: Source,
    folder: Source,
    *,
    budgets: Sequence[float] = BUDGETS,
    presets: Sequence[str] = PRESETS_SHOWN,
    effort: EffortName = "balanced",
    packings: Sequence[str] = (FAST,),
    texts: Sequence[Source | tuple[Source, float]] = (),
    importance: Source | Importance | None = None,
    validation: Source | None = None,
    chunks: int | None = None,
    prompts: Sequence[str] = PROMPTS,
    speed: bool = True,
    llama_cpp: Source | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> TuneReport:
    """Make and measure a model's variants for several budgets, and presets to compare with.

    Args:
        source: ``demo``, a Hugging Face folder or a GGUF file, unquantised.
        folder: keeps the files and their recipes; made if need be.
        budgets: bits per weight. What nothing can meet becomes a note.
        presets: names; kvant makes them by its fast path, without importance.
        effort, packings, texts, importance: as for `quantize_within`.
        validation: what everything is judged on; by default the built-in evaluation text.
        chunks: use no more than these first chunks of it.
        prompts: each variant continues them.
        speed: measure speed and memory, too.
        llama_cpp: folder with llama.cpp's ``llama-quantize``, which then makes the same presets
            with the same importance.
        threads: processors to use.
        force: replace files that are there already.
        progress: called with what is done, steps done and steps in all.

    Raises:
        UsageError: no budget can be met; a budget or name makes no sense.
        InputError, OutputError, NotEnoughMemoryError: as for what it calls.
    """
    started = time.perf_counter()
    _check(budgets, presets)
    report: Progress = progress or (lambda what, done, total: None)
    workers = threads_or_default(threads)
    checkpoint = open_source(source)
    target = make_folder(Path(folder))
    making = _Making(checkpoint, source, target, workers, force, report)
    found = None if importance is None else importance_of(importance, checkpoint)
    needed = effort != "fast" or llama_cpp is not None
    read = calibration_chunks(checkpoint, texts) if needed else None
    if found is None and read is not None:
        found = collected(checkpoint, read, workers, progress)
    own = found if effort != "fast" or importance is not None else None
    search = search_budgets(
        checkpoint,
        plan_maker(checkpoint, model_metadata(checkpoint), (), None, own),
        effort=effort,
        packings=packings,
        chunks=read,
        importance=own,
        threads=workers,
        progress=progress,
    )
    made = [
        *making.budgets(search, budgets, own, effort, () if effort == "fast" else texts),
        *making.presets(presets),
    ]
    if llama_cpp is not None and found is not None:
        made += making.llama_cpp(Path(llama_cpp), presets, found)
    base, *variants = _measured(checkpoint, made, validation, chunks, workers, report)
    if speed:
        base, *variants = _timed([base, *variants], checkpoint, workers, report)
    base, *variants = _sampled([base, *variants], checkpoint, prompts, workers, report)
    variants.sort(key=lambda v: (v.result.bytes or 0, v.name))
    return TuneReport(
        checkpoint.info.name,
        base,
        tuple(variants),
        _picks(variants),
        search.sensitivity,
        tuple(prompts),
        tuple(making.notes),
        time.perf_counter() - started,
    )


def _check(budgets: Sequence[float], presets: Sequence[str]) -> None:
    for name in presets:
        preset(name)  # raises where there is none
    if not budgets:
        raise UsageError("There is no budget; give some, such as 3, 4 and 5 bits per weight.")
    for bits in budgets:
        if not 0 < bits <= 64:
            raise UsageError(f"A budget is bits per weight, above zero, got {bits}.")


@dataclass(frozen=True, slots=True)
class _Made:
    """A file that is yet to be measured."""

    name: str
    maker: Maker
    recipe: str
    precision_class: PrecisionClass
    path: Path
    expected_kld: float | None = None


class _Making:
    """Everything that writes files."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: Source,
        folder: Path,
        threads: int,
        force: bool,
        progress: Progress,
    ) -> None:
        self._checkpoint, self._source, self._folder = checkpoint, source, folder
        self._threads, self._force, self._progress = threads, force, progress
        self.notes: list[str] = []

    def _path(self, recipe: str) -> Path:
        return self._folder / f"{self._checkpoint.info.file_stem(recipe)}.gguf"

    def budgets(
        self,
        search: BudgetSearch,
        budgets: Sequence[float],
        importance: Importance | None,
        effort: EffortName,
        texts: Sequence[Source | tuple[Source, float]],
    ) -> list[_Made]:
        """The best mixture of each budget that can be met.

        Raises:
            UsageError: none can.
        """
        made: list[_Made] = []
        for done, bits in enumerate(sorted(set(budgets))):
            self._progress(f"making {bits:g} bits per weight", done, len(budgets))
            try:
                recipe, mixture = search.bits(bits)
            except UsageError as error:
                self.notes.append(str(error))
                continue
            if any(m.recipe == recipe.name for m in made):
                self.notes.append(f"{bits:g} bits per weight give {recipe.name} again.")
                continue
            path = self._path(recipe.name)
            write_atomic(path.with_suffix(".json"), recipe_text(recipe), force=self._force)
            quantize(
                self._source,
                recipe,
                path,
                importance=importance,
                effort=effort,
                texts=texts,
                threads=self._threads,
                evidence=False,  # the report has it all
                force=self._force,
            )
            made.append(
                _Made(recipe.name, "kvant", recipe.name, recipe.precision_class, path, mixture.cost)
            )
        if not made:
            raise UsageError(self.notes[0])
        return made

    def presets(self, names: Sequence[str]) -> list[_Made]:
        """Presets by the fast path."""
        made = []
        for done, name in enumerate(names):
            self._progress(f"making {name}", done, len(names))
            recipe = preset(name)
            path = self._path(recipe.name)
            quantize(
                self._source,
                recipe,
                path,
                threads=self._threads,
                evidence=False,
                force=self._force,
            )
            made.append(_Made(recipe.name, "preset", recipe.name, recipe.precision_class, path))
        return made

    def llama_cpp(self, folder: Path, names: Sequence[str], importance: Importance) -> list[_Made]:
        """The same presets by llama-quantize, with the same importance.

        Raises:
            InputError: the program is not there, or fails.
        """
        places = [folder / sub / "llama-quantize" for sub in (".", "bin", "build/bin")]
        program = next((p for p in places if p.is_file()), None)
        if program is None:
            raise InputError(
                f"{folder}: holds no program llama-quantize; name the folder of llama.cpp's tools."
            )
        made = []
        with tempfile.TemporaryDirectory(prefix="kvant-tune-") as scratch:
            base, matrix = Path(scratch) / "base.gguf", Path(scratch) / "importance.gguf"
            convert(self._source, base, threads=self._threads)
            write_importance(matrix, importance)
            for done, name in enumerate(names):
                self._progress(f"making llama.cpp's {name}", done, len(names))
                recipe = preset(name)
                path = self._path(f"llama.cpp-{recipe.name}")
                _run_quantizer(program, matrix, base, path, recipe.name, self._threads)
                label = f"llama.cpp {recipe.name}"
                made.append(_Made(label, "llama.cpp", recipe.name, recipe.precision_class, path))
        return made


def _run_quantizer(
    program: Path, matrix: Path, base: Path, output: Path, recipe: str, threads: int
) -> None:
    words = [program, "--imatrix", matrix, base, output, recipe, threads]
    done = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        end = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise InputError(f"{program}: failed on {recipe} with status {done.returncode}: {end}.")


def _measured(
    checkpoint: Checkpoint,
    made: Sequence[_Made],
    validation: Source | None,
    chunks: int | None,
    threads: int,
    progress: Progress,
) -> list[Variant]:
    """Base and variants over the same text, side by side."""
    tokenizer = tokenizer_of(checkpoint)
    corpus = corpus_of(read_text(validation), tokenizer, checkpoint, None, chunks)
    opened = [("base", checkpoint), *((m.name, open_source(m.path)) for m in made)]
    subjects = [open_subject(c, open_runner(c, threads=threads), name=n) for n, c in opened]
    subjects[0] = replace(subjects[0], name=_base_name(checkpoint))
    results = measure(
        subjects[0], subjects[1:], corpus, threads=threads, progress=named(progress, "measuring")
    )
    base = Variant(
        results[0].name, "base", results[0].name, "full", str(checkpoint.path), results[0]
    )
    return [
        base,
        *(
            Variant(
                m.name, m.maker, m.recipe, m.precision_class, str(m.path), result, m.expected_kld
            )
            for m, result in zip(made, results[1:], strict=True)
        ),
    ]


def _base_name(checkpoint: Checkpoint) -> str:
    kinds = {w.stored.type.name for w in matrices(checkpoint).values()}
    return f"{checkpoint.info.name} ({', '.join(sorted(kinds))})"


def _timed(
    variants: Sequence[Variant], checkpoint: Checkpoint, threads: int, progress: Progress
) -> list[Variant]:
    """Speed of each: a prompt of 256 tokens, and 32 tokens generated."""
    context = checkpoint.config.max_position_embeddings
    prompt, generate = min(256, max(1, context // 2)), min(32, max(1, context // 2))
    timed = []
    for done, variant in enumerate(variants):
        progress(f"timing {variant.name}", done, len(variants))
        found = benchmark(
            variant.path, prompts=(prompt,), generate=generate, batches=(1,), threads=threads
        )
        rates = {r.test: r.rate for r in found.results}
        timed.append(
            replace(
                variant,
                prompt_rate=rates["prompt"],
                generation_rate=rates["generate"],
                memory_bytes=found.memory_bytes,
            )
        )
    return timed


def _sampled(
    variants: Sequence[Variant],
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    threads: int,
    progress: Progress,
) -> list[Variant]:
    """What each makes of the prompts, taking the likeliest token every time."""
    if not prompts:
        return list(variants)
    context = min(512, checkpoint.config.max_position_embeddings)
    sampled = []
    for done, variant in enumerate(variants):
        progress(f"sampling {variant.name}", done, len(variants))
        with load(variant.path, threads=threads, context=context) as model:
            texts = model.generate(
                list(prompts),
                Sampling(temperature=0),
                max_tokens=min(_SAMPLE_TOKENS, context // 2),
            )
        sampled.append(replace(variant, samples=tuple(t.text for t in texts)))
    return sampled


def _picks(variants: Sequence[Variant]) -> tuple[Pick, ...]:
    """For the size of each of kvant's variants: what diverges least and is no larger."""
    picks = []
    for own in (v for v in variants if v.maker == "kvant"):
        size = own.result.bytes or 0
        allowed = [v for v in variants if (v.result.bytes or 0) <= size]
        best = min(allowed, key=_kld)
        budget = f"{size / 1e6:,.1f} MB ({own.result.bpw:.2f} bits per weight)"
        picks.append(Pick(budget, best.name, _why(best, allowed)))
    return tuple(picks)


def _why(best: Variant, allowed: Sequence[Variant]) -> str:
    others = [v for v in allowed if v.maker != best.maker and v.maker != "kvant"]
    if best.maker != "kvant":
        return f"KL divergence {_kld(best):.5f}: less than the mixture found has in as many bytes."
    if not others:
        return f"KL divergence {_kld(best):.5f}; no preset is as small."
    rival = min(others, key=_kld)
    gap = kld_difference(rival.result, best.result)
    sure = "" if gap.value > 2 * gap.se else ", within two standard errors"
    return (
        f"KL divergence {_kld(best):.5f}; the best preset in as many bytes, {rival.name}, has "
        f"{_kld(rival):.5f}, {_kld(rival) / max(_kld(best), 1e-12):.2f} times as much "
        f"(difference {gap.value:.5f} ± {gap.se:.5f}{sure})."
    )


def _kld(variant: Variant) -> float:
    return float("inf") if variant.result.kld is None else variant.result.kld
