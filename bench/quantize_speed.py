"""How fast kvant quantises: against llama.cpp's quantiser, and against the disk.

All contenders read the same BF16 GGUF, or kvant the Hugging Face folder it was made from, with
the page cache warm, use the same number of threads, and write to the same folder. kvant syncs its
output before it gives it its name, so the peer's time includes a `sync` of its output too.

For the plain packings the floor is measured as well: reading the source and writing as many bytes
as the output has, by copy_io.py, the faster of two ways to sync.

    python bench/quantize_speed.py --llama-cpp DIR                  # every recipe with a bar
    python bench/quantize_speed.py --llama-cpp DIR --recipes Q4_K_M --rounds 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
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

SEARCHED = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K")
"""Recipes over K-packings: at least `SPEED_UP` times the peer's speed."""
PLAIN = ("Q4_0", "Q5_1", "Q8_0")
"""Recipes over formulas: at most `OVER_IO` times the time of input and output alone."""
SPEED_UP = 5.0
OVER_IO = 1.3
PEAK_MB = 600.0


def quantize(source: Path, recipe: str, out: Path, threads: int) -> Run:
    """Run ``kvant quantize``."""
    out.unlink(missing_ok=True)
    options = ["-o", str(out), "--threads", str(threads), "--force"]
    return child([*kvant_command(), "quantize", source, recipe, *options])


def peer_quantize(program: Path, source: Path, recipe: str, out: Path, threads: int) -> Run:
    """Run ``llama-quantize`` and sync what it wrote."""
    out.unlink(missing_ok=True)
    script = '"$0" "$1" "$2" "$3" "$4" && sync "$2"'
    return child(["sh", "-c", script, program, source, out, recipe, str(threads)])


def copy(source: Path, out: Path, size: int, threads: int, *, flush: bool) -> Run:
    """Read the source and write ``size`` bytes."""
    command: list[str | Path] = [sys.executable, "-S", HERE / "copy_io.py", source, "-o", out]
    command += ["--bytes", str(size), "--threads", str(threads), *(["--flush"] if flush else [])]
    return child(command)


def prepare(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The model folder and its BF16 GGUF, made if they are not there; both in the page cache."""
    folder = arguments.model
    if folder is None:
        options = ["--shape", arguments.shape]
        options += [] if arguments.layers is None else ["--layers", str(arguments.layers)]
        made = child([sys.executable, HERE / "synthetic.py", *options])
        folder = Path(made.output.splitlines()[-1])
    source = arguments.work / f"{folder.name}-BF16.gguf"
    newest = max(p.stat().st_mtime for p in folder.iterdir())
    if not source.is_file() or source.stat().st_mtime < newest:
        child([*kvant_command(), "convert", folder, "-o", source, "--dtype", "bf16", "--force"])
    warm(folder, source)
    return folder, source


def measure(arguments: argparse.Namespace, folder: Path, source: Path, recipe: str) -> Report:
    """All contenders of one recipe, in turn."""
    ours, theirs = arguments.work / "kvant.gguf", arguments.work / "peer.gguf"
    threads = arguments.threads
    contenders: dict[str, Callable[[], Run]] = {
        "kvant": partial(quantize, source, recipe, ours, threads),
        "kvant from HF": partial(quantize, folder, recipe, ours, threads),
    }
    peers = peer_binaries(arguments, "llama-quantize")
    for name, program in peers.items():
        contenders[name] = partial(peer_quantize, program, source, recipe, theirs, threads)
    quantize(source, recipe, ours, threads)  # also tells how large the output is
    size = ours.stat().st_size
    if recipe in PLAIN:
        for name, flush in (("copy", False), ("copy, flushing", True)):
            out = arguments.work / "copy.bin"
            contenders[name] = partial(copy, source, out, size, threads, flush=flush)
    print(f"{recipe}: {', '.join(contenders)}", file=sys.stderr)
    runs = alternate(contenders, arguments.rounds)
    seconds = {name: median(r) for name, r in runs.items()}
    peak = {name: max(r.peak_bytes for r in rs) / 1e6 for name, rs in runs.items()}
    report = Report(recipe)
    report.results.append(
        {
            "recipe": recipe,
            "bytes": size,
            "peer_bytes": theirs.stat().st_size if peers else None,
            "seconds": seconds,
            "peak_mb": peak,
            "runs": {name: [r.seconds for r in rs] for name, rs in runs.items()},
        }
    )
    judge(report, recipe, seconds, peak, list(peers))
    for path in (ours, theirs, arguments.work / "copy.bin"):
        path.unlink(missing_ok=True)
    return report


def judge(
    report: Report,
    recipe: str,
    seconds: dict[str, float],
    peak: dict[str, float],
    peers: list[str],
) -> None:
    """The bars of one recipe."""
    if peers and recipe in SEARCHED:
        ratio = min(seconds[name] for name in peers) / seconds["kvant"]
        report.bars.append(Bar(f"{recipe} speed against llama.cpp", ratio, SPEED_UP, False, "x"))
    if recipe in PLAIN:
        floor = min(seconds["copy"], seconds["copy, flushing"])
        ratio = seconds["kvant"] / floor
        report.bars.append(Bar(f"{recipe} time over input and output", ratio, OVER_IO, unit="x"))
    most = max(peak["kvant"], peak["kvant from HF"])
    report.bars.append(Bar(f"{recipe} peak memory", most, PEAK_MB, unit=" MB"))


def row(result: dict[str, object], columns: list[str]) -> list[str]:
    """One line of the table."""
    seconds, peak = result["seconds"], result["peak_mb"]
    assert isinstance(seconds, dict)
    assert isinstance(peak, dict)
    cells = [str(result["recipe"]), f"{int(str(result['bytes'])) / 1e6:.0f}"]
    for name in columns:
        cells.append(f"{seconds[name]:.2f}" if name in seconds else "-")
    peers = [seconds[name] for name in seconds if name.startswith("llama.cpp")]
    cells.append(f"{min(peers) / seconds['kvant']:.1f}x" if peers else "-")
    copies = [seconds[name] for name in seconds if name.startswith("copy")]
    cells.append(f"{seconds['kvant'] / min(copies):.2f}x" if copies else "-")
    cells.append(f"{peak['kvant']:.0f}")
    theirs = [peak[name] for name in peak if name.startswith("llama.cpp")]
    cells.append(f"{min(theirs):.0f}" if theirs else "-")
    return cells


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Time kvant quantize against llama-quantize and against plain input and output."
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face folder")
    parser.add_argument("--shape", default="llama-3.2-1b", help="else: shape for synthetic.py")
    parser.add_argument("--layers", type=int, metavar="N", help="and its layers")
    parser.add_argument(
        "--recipes", nargs="+", default=[*SEARCHED, *PLAIN], metavar="RECIPE", help="which recipes"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where outputs go")
    add_options(parser)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder, source = prepare(arguments)
    report = Report("Quantising: seconds (medians), ratios, peak memory", machine(arguments.work))
    report.machine["threads"] = str(arguments.threads)
    report.machine["source"] = f"{source.name}, {source.stat().st_size / 1e6:.0f} MB"
    report.head()
    for recipe in arguments.recipes:
        part = measure(arguments, folder, source, recipe)
        report.results += part.results
        report.bars += part.bars
    named: dict[str, None] = {}
    for result in report.results:
        seconds = result["seconds"]
        assert isinstance(seconds, dict)
        named |= dict.fromkeys(seconds)
    header = ["recipe", "MB", *named, "vs peer", "vs copy", "peak MB", "peer MB"]
    print(table(header, [row(result, list(named)) for result in report.results]))
    print()
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
