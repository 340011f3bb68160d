"""The main job on the built-in model: quantise to several levels, measure each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvant.api.conversion import quantize
from kvant.api.measurement import corpus_of, open_subject, read_text
from kvant.api.source import Source, open_source, threads_or_default, tokenizer_of
from kvant.builtin import DEMO
from kvant.errors import OutputError
from kvant.evaluation import EvalResult
from kvant.evaluation import evaluate as measure
from kvant.packing import PrecisionClass
from kvant.quant.presets import preset
from kvant.runtimes import open_runner

__all__ = ["DEMO_RECIPES", "DemoReport", "DemoRow", "demo", "make_folder"]

DEMO_RECIPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One level and what was measured."""

    recipe: str
    precision_class: PrecisionClass
    result: EvalResult


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The base, its variants, and the seconds everything took."""

    base: EvalResult
    rows: tuple[DemoRow, ...]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "results": [self.base.to_json(), *(r.result.to_json() for r in self.rows)],
            "seconds": self.seconds,
        }


def make_folder(folder: Path) -> Path:
    """Make ``folder`` unless it is there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made: {error.strerror}.") from None
    return folder


def demo(
    *,
    keep: Source | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DemoReport:
    """Quantise the built-in model at six levels and measure each on the built-in text.

    Args:
        keep: folder that keeps the GGUF files, made if need be; by default they are deleted again.
        force: replace files that ``keep`` holds already.
        threads: processors to use; by default all.
        progress: called with what is being done, steps done and steps in all.

    Raises:
        OutputError: a file exists already, or cannot be written.
    """
    started = time.perf_counter()
    report = progress or (lambda what, done, total: None)
    with tempfile.TemporaryDirectory(prefix="kvant-demo-") as scratch:
        folder = Path(scratch) if keep is None else make_folder(Path(keep))
        paths = []
        for i, recipe in enumerate(DEMO_RECIPES):
            report(f"quantising {recipe}", i, len(DEMO_RECIPES))
            beside = None if keep is not None else False  # nobody sees what is deleted again
            artefact = quantize(DEMO, recipe, folder, threads=threads, force=force, evidence=beside)
            paths.append(artefact.paths[0])
        base = open_source(DEMO)
        corpus = corpus_of(read_text(None), tokenizer_of(base), base, None, None)
        workers = threads_or_default(threads)
        named = [("demo (BF16)", base)]
        named += [(r, open_source(path)) for r, path in zip(DEMO_RECIPES, paths, strict=True)]
        first, *others = (
            open_subject(checkpoint, open_runner(checkpoint, threads=workers), name=name)
            for name, checkpoint in named
        )
        results = measure(
            first,
            others,
            corpus,
            threads=workers,
            progress=lambda done, total: report("measuring", done, total),
        )
    rows = tuple(
        DemoRow(recipe, preset(recipe).precision_class, result)
        for recipe, result in zip(DEMO_RECIPES, results[1:], strict=True)
    )
    return DemoReport(results[0], rows, time.perf_counter() - started)
