"""How fast kvant evaluates, against llama-perplexity: whole processes, and the same figures.

Two jobs on the same text of some 300 kB: the perplexity of a quantised file, and its divergence
from its BF16 original. For the second llama.cpp needs two runs, the first of which stores all
logits of the original; both count. Each build of llama.cpp given is first tried on a few chunks
with and without flash attention and repacked weights, and the fastest then takes turns with kvant.

    python bench/evaluate_speed.py --llama-cpp build-gcc --llama-cpp build-clang --text wiki.raw
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from common import (
    HERE,
    WORK,
    Bar,
    Report,
    Run,
    add_options,
    alternate,
    child,
    kvant_command,
    machine,
    median,
    peer_binaries,
    table,
    warm,
)

MODELS = {"demo": "demo", "qwen3-11m": str(HERE / "models" / "qwen3-11m")}
RECIPE = "Q4_K_M"
TEXT_BYTES = 300_000
LEAST_RATIO, PPL_WITHIN, KLD_WITHIN = 1.5, 0.002, 0.03
TRIAL_CHUNKS = 16
JOBS = ("perplexity", "divergence")


@dataclass(frozen=True)
class Figures:
    """What a program found."""

    perplexity: float
    kld: float | None = None


@dataclass(frozen=True)
class Peer:
    """A build of llama-perplexity and its settings."""

    label: str
    program: Path
    flash: bool
    repack: bool
    threads: int

    def perplexity(self, model: Path, text: Path, *more: str | Path) -> Run:
        """One run over a text."""
        settings: list[str | Path] = ["-m", model, "-f", text, "-t", str(self.threads), "-c", "512"]
        settings += ["-fa", "on" if self.flash else "off"]
        settings += [] if self.repack else ["--no-repack"]
        return child([self.program, *settings, *more])

    def divergence(self, base: Path, model: Path, text: Path, logits: Path) -> Run:
        """Both runs; the seconds are of both, the output is the second one's."""
        logits.unlink(missing_ok=True)
        started = time.perf_counter()
        first = self.perplexity(base, text, "--kl-divergence-base", logits)
        second = self.perplexity(model, text, "--kl-divergence-base", logits, "--kl-divergence")
        seconds = time.perf_counter() - started
        return Run(seconds, max(first.peak_bytes, second.peak_bytes), second.output)


def fastest(arguments: argparse.Namespace, model: Path, text: Path) -> Peer | None:
    """The build and settings that are the fastest on a few chunks."""
    tried = []
    programs = peer_binaries(arguments, "llama-perplexity")
    for (label, program), flash, repack in product(programs.items(), (True, False), (True, False)):
        peer = Peer(label, program, flash, repack, arguments.threads)
        run = min(
            (peer.perplexity(model, text, "--chunks", str(TRIAL_CHUNKS)) for _ in range(2)),
            key=lambda run: run.seconds,
        )
        name = f"{label}, flash attention {'on' if flash else 'off'}, "
        name += "repacked" if repack else "not repacked"
        print(f"  tried {name}: {run.seconds:.2f} s", file=sys.stderr, flush=True)
        tried.append((run.seconds, name, peer))
    return min(tried, key=lambda t: t[0])[2] if tried else None


def kvant_eval(threads: int, text: Path, model: Path, base: Path | None = None) -> Run:
    """Run ``kvant eval``."""
    against: list[str | Path] = [] if base is None else ["--against", base]
    words: list[str | Path] = ["eval", model, *against, "--text", text, "--threads", str(threads)]
    return child([*kvant_command(), *words, "--json"])


def kvant_figures(run: Run) -> Figures:
    """The last result of a run: the base comes before what is compared with it."""
    result = json.loads(run.output[run.output.index("{\n") :])["results"][-1]
    return Figures(result["perplexity"], result["kld"])


def peer_figures(run: Run) -> Figures:
    """Out of what llama-perplexity prints.

    Raises:
        SystemExit: it printed no figures.
    """
    plain = re.search(r"Final estimate: PPL = ([0-9.]+)", run.output)
    if plain:
        return Figures(float(plain[1]))
    found = re.search(r"Mean PPL\(Q\) *: *([0-9.]+)", run.output)
    kld = re.search(r"Mean +KLD: *([0-9.]+)", run.output)
    if found is None or kld is None:
        raise SystemExit(f"llama-perplexity printed no figures:\n{run.output[-2000:]}")
    return Figures(float(found[1]), float(kld[1]))


def prepare(arguments: argparse.Namespace, name: str) -> tuple[Path, Path]:
    """The BF16 file of a model and the quantised one, made anew."""
    source, work = MODELS[name], arguments.work
    base, quantised = work / f"{name}-BF16.gguf", work / f"{name}-{RECIPE}.gguf"
    child([*kvant_command(), "convert", source, "--dtype", "bf16", "-o", base, "--force"])
    child([*kvant_command(), "quantize", source, RECIPE, "-o", quantised, "--force"])
    warm(base, quantised)
    return base, quantised


def shortened(text: Path, work: Path, size: int) -> Path:
    """The first lines of a text, ``size`` bytes of it.

    Raises:
        SystemExit: the text is not there, or shorter.
    """
    if not text.is_file():
        raise SystemExit(
            f"{text} is not there; name a UTF-8 text of {size // 1000} kB or more with --text"
        )
    content = text.read_bytes()
    if len(content) < size:
        raise SystemExit(f"{text} has {len(content)} bytes, expected {size}; name a longer text")
    out = work / "evaluation.txt"
    out.write_bytes(content[: content.index(b"\n", size) + 1])
    return out


def measure(arguments: argparse.Namespace, name: str, text: Path, report: Report) -> list[str]:
    """Both jobs on one model; a line of the table."""
    base, model = prepare(arguments, name)
    peer = fastest(arguments, model, text)
    logits = arguments.work / "logits.bin"
    jobs: dict[str, dict[str, list[Run]]] = {}
    for job in arguments.jobs:
        against = base if job == "divergence" else None
        contenders: dict[str, Callable[[], Run]] = {
            "kvant": partial(kvant_eval, arguments.threads, text, model, against)
        }
        if peer is not None and against is not None:
            contenders["llama.cpp"] = partial(peer.divergence, against, model, text, logits)
        elif peer is not None:
            contenders["llama.cpp"] = partial(peer.perplexity, model, text)
        print(f"{name}, {job}", file=sys.stderr)
        jobs[job] = alternate(contenders, arguments.rounds)
    logits.unlink(missing_ok=True)
    cells = [name]
    for job, runs in jobs.items():
        seconds = {who: median(found) for who, found in runs.items()}
        ours = kvant_figures(runs["kvant"][0])
        result: dict[str, object] = {"model": name, "job": job, "seconds": seconds}
        result["kvant"] = vars(ours)
        cells += [f"{seconds['kvant']:.2f}"]
        if peer is None:
            cells += ["-", "-"]
        else:
            theirs = peer_figures(runs["llama.cpp"][0])
            result["llama.cpp"] = vars(theirs)
            ratio = seconds["llama.cpp"] / seconds["kvant"]
            cells += [f"{seconds['llama.cpp']:.2f}", f"{ratio:.2f}x"]
            judge(report, f"{name}, {job}", ratio, ours, theirs)
        report.results.append(result)
    return cells


def judge(report: Report, what: str, ratio: float, ours: Figures, theirs: Figures) -> None:
    """The bars of one job."""
    report.bars.append(Bar(f"{what}: speed", ratio, LEAST_RATIO, False, "x llama.cpp"))
    off = abs(ours.perplexity / theirs.perplexity - 1)
    report.bars.append(Bar(f"{what}: perplexity differs by", 100 * off, 100 * PPL_WITHIN, unit="%"))
    if ours.kld is None or theirs.kld is None:
        return
    off = abs(ours.kld / theirs.kld - 1)
    told = f"{what}: KL divergence {ours.kld:.6f}, llama.cpp's {theirs.kld:.6f}, differs by"
    report.bars.append(Bar(told, 100 * off, 100 * KLD_WITHIN, unit="%"))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Time kvant eval against llama-perplexity, and compare what they find."
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--jobs", nargs="+", default=list(JOBS), choices=JOBS, help="which (default: both)"
    )
    data = HERE.parent.parent / "shared" / "data"
    parser.add_argument(
        "--text",
        type=Path,
        default=data / "text" / "wiki.valid.raw",
        metavar="FILE",
        help="UTF-8 text",
    )
    parser.add_argument(
        "--bytes", type=int, default=TEXT_BYTES, metavar="N", help=f"default {TEXT_BYTES}"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where files go")
    add_options(parser)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    text = shortened(arguments.text, arguments.work, arguments.bytes)
    report = Report("Evaluating: seconds (medians) of whole processes", machine(arguments.work))
    report.machine["text"] = f"{arguments.text.name}, {text.stat().st_size / 1e3:.0f} kB"
    report.head()
    rows = [measure(arguments, name, text, report) for name in arguments.models]
    header = ["model"]
    for job in arguments.jobs:
        header += [f"{job}: kvant", "llama.cpp", "ratio"]
    print(table(header, rows))
    print()
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
