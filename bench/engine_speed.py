"""How fast kvant's engine runs: against llama.cpp, and against what the machine can do.

The same files, the same threads, flash attention on; each contender is a fresh process and they
take turns. Of llama.cpp every build given counts, with weights repacked and not, whichever is the
fastest in that test. Shares of the machine's limits are measured inside kvant's own runs.

    python bench/engine_speed.py --llama-cpp build-gcc --llama-cpp build-clang
    python bench/engine_speed.py --llama-cpp build-gcc --parts one --models llama-3.2-1b:Q4_K_M
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from common import (
    HERE,
    WORK,
    Bar,
    Report,
    add_options,
    child,
    kvant_command,
    machine,
    table,
    warm,
)
from speed_peers import Contender, Kvant, LlamaBatched, LlamaBench, Plan, Test, llama_benches

LLAMA, QWEN, DEMO = "llama-3.2-1b", "qwen2.5-0.5b", "demo"
RECIPES = {
    LLAMA: (
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "F16", "BF16"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_M", "IQ3_XXS", "IQ3_S"),
        *("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0"),
    ),
    QWEN: ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16"),
    DEMO: ("Q4_K_M", "Q8_0"),
}
PARTS = ("one", "deep", "batch", "load")
"""One sequence; the same after ``DEPTH`` tokens; several sequences; a fresh process."""
DEEP_RECIPES = ("Q4_0", "Q4_K_M", "Q8_0")
DEPTH, BATCHES = 2048, (4, 16)
BATCH_PROMPT = 16
"""Tokens each sequence of a batch has read before; llama-batched-bench wants some."""

LEAST_SHARE = {"Q6_K": 0.45, "Q3_K_M": 0.45, "Q2_K": 0.45, "BF16": 0.65, "F16": 0.8}
"""Of the peak of its arithmetic, for a prompt of 512; others ``PACKED_SHARE``."""
PACKED_SHARE = 0.55
PROMPT_RATIO = {LLAMA: 1.25, QWEN: 1.25, DEMO: 1.0}
TWICE = ("Q4_K_M", "Q5_K_M", "Q8_0")
"""Recipes whose prompts are twice as fast as the peer's on Qwen's shape."""
CODEBOOKS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_M", "IQ3_XXS", "IQ3_S")
"""Recipes over codebooks. The engine keeps levels instead of points, so it reads more bytes than
the file has: `CODEBOOK_PROMPT` times the peer's speed is asked of it, and no share of the
bandwidth."""
CODEBOOK_PROMPT = 2.0
FEW_BITS = ("IQ1", "IQ2", "TQ")
"""Beginnings of recipes whose generation is asked `FEW_BITS_GENERATION` times the peer's speed."""
FEW_BITS_GENERATION = 1.2
UNEVEN = ("IQ4_NL", "IQ4_XS")
"""Recipes that are held to a share of the peak in prompts, and to the peer's speed."""
BANDWIDTH_SHARE, DEEP_SHARE, DEEP_RATIO = 0.9, 0.9, 1.8
BATCH_RATIO, BATCH_SHARE = {4: 1.5, 16: 2.0}, 0.85
LOAD_SECONDS, LOAD_EXTRA_MB = 1.0, 250.0

Named = tuple[str, str]
"""Shape and recipe."""


def file_of(arguments: argparse.Namespace, shape: str, recipe: str) -> Path:
    """The GGUF file of a shape and recipe, made if it is not there; in the page cache."""
    file: Path = arguments.work / f"{shape}-{recipe}.gguf"
    if not file.is_file():
        source: str | Path = DEMO
        if shape != DEMO:
            source = arguments.work / shape
            options: list[str | Path] = ["--shape", shape, "-o", source]
            if shape == LLAMA and arguments.vocabulary:
                options += ["--tokenizer", arguments.vocabulary]
            child([sys.executable, HERE / "synthetic.py", *options], quiet=False)
        if recipe in ("F16", "BF16"):
            child([*kvant_command(), "convert", source, "--dtype", recipe.lower(), "-o", file])
        else:
            child([*kvant_command(), "quantize", source, recipe, "-o", file])
    warm(file)
    return file


class Figures:
    """Medians over turns, by contender and test."""

    def __init__(self, contenders: Sequence[Contender], plan: Plan, rounds: int) -> None:
        self.rates: dict[str, dict[Test, float]] = {}
        self.shares: dict[Test, float] = {}
        rates: dict[str, dict[Test, list[float]]] = {c.name: {} for c in contenders}
        shares: dict[Test, list[float]] = {}
        for turn in range(rounds):
            for contender in contenders:
                found = contender.run(plan)
                for test, rate in found.rates.items():
                    rates[contender.name].setdefault(test, []).append(rate)
                for test, share in found.shares.items():
                    shares.setdefault(test, []).append(share)
                note = f"  {plan.file.name}, {contender.name}, turn {turn + 1} of {rounds}: "
                note += ", ".join(f"{rate:.1f}" for rate in found.rates.values())
                print(note, file=sys.stderr, flush=True)
        self.rates = {
            name: {test: statistics.median(values) for test, values in by_test.items()}
            for name, by_test in rates.items()
        }
        self.shares = {test: statistics.median(values) for test, values in shares.items()}

    def best_peer(self, test: Test) -> tuple[str, float] | None:
        """The fastest of the others in a test, if there is any."""
        peers = [(n, r[test]) for n, r in self.rates.items() if n != Kvant.name and test in r]
        return max(peers, key=lambda peer: peer[1], default=None)

    def ratio(self, test: Test) -> float | None:
        """kvant's speed over the fastest peer's."""
        best = self.best_peer(test)
        return None if best is None else self.rates[Kvant.name][test] / best[1]


class Run:
    """What the command line asked for, and the report it fills."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.report = Report("The engine: tokens a second (medians)", machine(arguments.work))
        self.rows: list[list[str]] = []

    def figures(
        self, models: Named, kind: type[LlamaBench] | type[LlamaBatched], **tests: object
    ) -> Figures:
        """Run kvant and the peers on one file."""
        a = self.arguments
        plan = Plan(
            file=file_of(a, *models),
            prompt=int(str(tests.get("prompt", 0))),
            generate=a.generate,
            batches=tests.get("batches", (1,)),  # type: ignore[arg-type]
            depths=tests.get("depths", (0,)),  # type: ignore[arg-type]
            threads=a.threads,
            repeat=a.repeat,
        )
        contenders = [Kvant(), *llama_benches(a, kind)]
        figures = Figures(contenders, plan, a.rounds)
        self._note(models, figures)
        return figures

    def bar(self, models: Named, what: str, value: float | None, least: float, unit: str) -> None:
        """A figure that has to be at least something; None where there is no peer."""
        if value is not None:
            name = f"{models[0]} {models[1]} {what}"
            self.report.bars.append(Bar(name, value, least, False, unit))

    def one(self, models: Named) -> None:
        """A prompt, and one sequence generating."""
        shape, recipe = models
        figures = self.figures(models, LlamaBench, prompt=256 if shape == DEMO else 512)
        prompt, generate = ("prompt", 1, 0), ("generate", 1, 0)
        ratio = PROMPT_RATIO[shape]
        if shape == QWEN and recipe in TWICE:
            ratio = 2.0
        if recipe in CODEBOOKS:
            ratio = CODEBOOK_PROMPT
        if recipe in UNEVEN or recipe.startswith("TQ"):
            ratio = 1.0
        least = FEW_BITS_GENERATION if recipe.startswith(FEW_BITS) else 1.0
        self.bar(models, "prompt", figures.ratio(prompt), ratio, "x llama.cpp")
        self.bar(models, "generation", figures.ratio(generate), least, "x llama.cpp")
        if shape == LLAMA and recipe not in CODEBOOKS and not recipe.startswith("TQ"):
            least = LEAST_SHARE.get(recipe, PACKED_SHARE)
            self.bar(models, "prompt", figures.shares[prompt], least, " of the peak")
            share = figures.shares[generate]
            self.bar(models, "generation", share, BANDWIDTH_SHARE, " of bandwidth")

    def deep(self, models: Named) -> None:
        """The same after many tokens of context."""
        if models[0] == DEMO or models[1] not in DEEP_RECIPES:
            return
        figures = self.figures(models, LlamaBench, prompt=512, depths=(0, DEPTH))
        shallow, deep = ("generate", 1, 0), ("generate", 1, DEPTH)
        kept = figures.shares[deep] / figures.shares[shallow]
        what = f"generation at depth {DEPTH}, of what the KV bytes leave"
        self.bar(models, what, kept, DEEP_SHARE, "")
        what = f"generation at depth {DEPTH}"
        self.bar(models, what, figures.ratio(deep), 1.0, "x llama.cpp")
        ratio = figures.ratio(("prompt", 1, DEPTH))
        self.bar(models, f"prompt at depth {DEPTH}", ratio, DEEP_RATIO, "x llama.cpp")

    def batch(self, models: Named) -> None:
        """Several sequences generating together: fast against the peer, or near the limit."""
        if models[0] == DEMO:
            return
        figures = self.figures(models, LlamaBatched, batches=BATCHES, depths=(BATCH_PROMPT,))
        for size in BATCHES:
            test = ("generate", size, BATCH_PROMPT)
            ratio, share = figures.ratio(test), figures.shares[test]
            kept = max(share / BATCH_SHARE, 0.0 if ratio is None else ratio / BATCH_RATIO[size])
            told = "" if ratio is None else f"{ratio:.2f} of {BATCH_RATIO[size]:g}x llama.cpp or "
            told += f"{share:.0%} of {BATCH_SHARE:.0%} of the limit"
            self.bar(models, f"batch {size}: {told}", kept, 1.0, "")

    def load(self, models: Named) -> None:
        """A fresh process up to its first token."""
        if models != (LLAMA, "Q4_K_M"):
            return
        file = file_of(self.arguments, *models)
        threads = str(self.arguments.threads)
        runs = [
            child([sys.executable, HERE / "first_token.py", file, threads])
            for _ in range(max(3, self.arguments.rounds))
        ]
        kv = json.loads(runs[0].output[runs[0].output.index("{") :])["kv_bytes"]
        times = [run.first_output_seconds or run.seconds for run in runs]
        seconds = statistics.median(times)
        peak = max(run.peak_bytes for run in runs)
        extra = (peak - file.stat().st_size - kv) / 1e6
        name = f"{models[0]} {models[1]}"
        self.report.bars.append(Bar(f"{name} to the first token", seconds, LOAD_SECONDS, unit=" s"))
        what = f"{name} peak memory beyond file and KV"
        self.report.bars.append(Bar(what, extra, LOAD_EXTRA_MB, unit=" MB"))
        self.report.results.append(
            {"model": name, "first_token_seconds": times, "peak_bytes": peak}
        )
        self.rows.append([f"{name} first token", "-", f"{seconds:.2f} s", "-", "-", "-", "-"])

    def _note(self, models: Named, figures: Figures) -> None:
        for test, rate in figures.rates[Kvant.name].items():
            name, batch, depth = test
            best, ratio = figures.best_peer(test), figures.ratio(test)
            self.rows.append(
                [
                    f"{models[0]} {models[1]} {name}" + (f" x{batch}" if batch > 1 else ""),
                    str(depth),
                    f"{rate:.1f}",
                    f"{figures.shares[test]:.0%}",
                    "-" if best is None else f"{best[1]:.1f}",
                    "-" if ratio is None else f"{ratio:.2f}x",
                    "-" if best is None else best[0].removeprefix("llama.cpp in "),
                ]
            )
        self.report.results.append(
            {
                "model": f"{models[0]} {models[1]}",
                "rates": [
                    {"contender": c, "test": t[0], "batch": t[1], "depth": t[2], "rate": rate}
                    for c, rates in figures.rates.items()
                    for t, rate in rates.items()
                ],
                "shares": [
                    {"test": t[0], "batch": t[1], "depth": t[2], "share": share}
                    for t, share in figures.shares.items()
                ],
            }
        )


def chosen(names: Iterable[str]) -> list[Named]:
    """``SHAPE`` or ``SHAPE:RECIPE,RECIPE`` as pairs.

    Raises:
        SystemExit: there is no such shape or recipe.
    """
    pairs: list[Named] = []
    for name in names:
        shape, _, listed = name.partition(":")
        if shape not in RECIPES:
            raise SystemExit(f"no shape {shape!r}; there are {', '.join(RECIPES)}")
        recipes = listed.split(",") if listed else RECIPES[shape]
        unknown = [r for r in recipes if r not in RECIPES[LLAMA]]
        if unknown:
            raise SystemExit(f"no recipe {unknown[0]!r}; there are {', '.join(RECIPES[LLAMA])}")
        pairs += [(shape, recipe) for recipe in recipes]
    return pairs


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Time kvant's engine against llama.cpp and against the machine's limits."
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(RECIPES),
        metavar="SHAPE[:RECIPE,...]",
        help=f"of {', '.join(RECIPES)} (default: all)",
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--generate", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument(
        "--repeat", type=int, default=2, metavar="N", help="runs in each process (default 2)"
    )
    parser.add_argument(
        "--repack",
        type=lambda text: [bool(int(x)) for x in text.split(",")],
        default=[True, False],
        metavar="1,0",
        help="try llama.cpp with repacked weights, without, or both (default)",
    )
    parser.add_argument(
        "--vocabulary", type=Path, metavar="GGUF", help="Llama 3's tokenizer, for models made now"
    )
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where models are")
    add_options(parser)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    models = chosen(arguments.models)
    run = Run(arguments)
    run.report.machine["threads"] = str(arguments.threads)
    run.report.head()
    parts: dict[str, Callable[[Named], None]] = {
        "one": run.one,
        "deep": run.deep,
        "batch": run.batch,
        "load": run.load,
    }
    for part in arguments.parts:
        for each in models:
            parts[part](each)
    header = ["test", "depth", "kvant", "of limit", "llama.cpp", "ratio", "its best"]
    print(table(header, run.rows))
    print()
    return run.report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
