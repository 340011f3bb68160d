"""Methods alone: kvant's files at each effort against llama-quantize's with importance.

Same packings tensor by tensor, one calibration text for both; the evaluation text is another.

python bench/quality_methods.py --llama-cpp build                     # the built-in model and texts
python bench/quality_methods.py --llama-cpp build --model bench/models/qwen3-11m \
    --calibration FILE --text FILE --confirm
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Bar, Report, add_options, child, kvant_command, machine, peer_binaries, table

BARS = {"Q4_K_M": 0.85, "Q3_K_M": 0.75, "Q2_K": 0.65, "IQ3_S": 0.65, "IQ2_XS": 0.60}
"""The most that mean divergence may be, as a multiple of llama-quantize's."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Mean KL divergence of kvant's files at each effort and of llama-quantize's "
        "with llama-imatrix, from one base, calibrated on one text."
    )
    parser.add_argument("--model", default="demo", help="what to quantise (default: demo)")
    parser.add_argument("--calibration", metavar="FILE", help="UTF-8 text (default: built in)")
    parser.add_argument("--text", metavar="FILE", help="text to evaluate on (default: built in)")
    parser.add_argument("--recipes", nargs="+", default=list(BARS), metavar="RECIPE")
    parser.add_argument("--efforts", nargs="+", default=["balanced", "best"], metavar="EFFORT")
    parser.add_argument(
        "--confirm", action="store_true", help="measure with llama-perplexity too (slow)"
    )
    add_options(parser, rounds=None)
    arguments = parser.parse_args()
    report = Report("Divergence by method, same packings, same calibration text", machine())
    report.head()
    with tempfile.TemporaryDirectory() as scratch:
        _measure(arguments, Path(scratch), report)
    return report.finish(arguments)


def _tool(arguments: argparse.Namespace, name: str) -> Path:
    found = peer_binaries(arguments, name)
    if not found:
        raise SystemExit(f"name llama.cpp's folder with --llama-cpp; {name} is wanted")
    return next(iter(found.values()))


def _measure(arguments: argparse.Namespace, folder: Path, report: Report) -> None:
    from kvant import evaluate
    from kvant.builtin import builtin_text
    from kvant.evaluation import kld_difference

    calibration = Path(arguments.calibration or builtin_text("calibration"))
    text = Path(arguments.text or builtin_text("evaluation"))
    base, matrix = folder / "base.gguf", folder / "imatrix.gguf"
    child([*kvant_command(), "convert", arguments.model, "-o", base])
    imatrix = _tool(arguments, "llama-imatrix")
    child([imatrix, "-m", base, "-f", calibration, "-o", matrix, "-c", "512"])
    quantizer = _tool(arguments, "llama-quantize")
    rows = []
    for recipe in arguments.recipes:
        theirs = folder / f"llama.cpp-{recipe}.gguf"
        child([quantizer, "--imatrix", matrix, base, theirs, recipe])
        ours = {}
        for effort in arguments.efforts:
            ours[effort] = folder / f"{effort}-{recipe}.gguf"
            command = [*kvant_command(), "quantize", base, recipe, "-o", ours[effort]]
            if effort != "fast":
                command += ["--effort", effort, "--text", calibration]
            child(command)
        _same_packings(theirs, *ours.values())
        # In float32, so that the weights alone are judged and not the rounding of activations.
        files = [theirs, *ours.values()]
        results = evaluate(files, base, text=text, runner="reference")[1:]
        confirmed = _confirmed(arguments, base, files, text, folder) if arguments.confirm else {}
        for effort, mine in zip(ours, results[1:], strict=True):
            assert mine.kld is not None
            assert results[0].kld is not None
            difference = kld_difference(mine, results[0])
            found: dict[str, Any] = {
                "model": arguments.model,
                "recipe": recipe,
                "effort": effort,
                "kvant": mine.kld,
                "llama.cpp": results[0].kld,
                "ratio": mine.kld / results[0].kld,
                "difference": difference.value,
                "difference_se": difference.se,
                "llama-perplexity's ratio": confirmed
                and confirmed[ours[effort]] / confirmed[theirs],
            }
            report.results.append(found)
            rows.append(_row(found))
            if effort != "fast" and recipe in BARS:
                report.bars.append(Bar(f"{recipe}, {effort}", found["ratio"], BARS[recipe]))
    header = ("recipe", "effort", "kvant", "llama.cpp", "ratio", "difference", "se", "llama.cpp's")
    print(table(header, rows))


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    confirmed = found["llama-perplexity's ratio"]
    return (
        found["recipe"],
        found["effort"],
        f"{found['kvant']:.6f}",
        f"{found['llama.cpp']:.6f}",
        f"{found['ratio']:.3f}",
        f"{found['difference']:+.6f}",
        f"{found['difference_se']:.6f}",
        f"{confirmed:.3f}" if confirmed else "-",
    )


def _same_packings(*files: Path) -> None:
    from kvant.checkpoint import open_checkpoint

    kinds = [{n: w.stored.type.name for n, w in open_checkpoint(f).weights.items()} for f in files]
    if any(k != kinds[0] for k in kinds):
        raise SystemExit("the files differ in packings: methods are not what is compared")


def _confirmed(
    arguments: argparse.Namespace, base: Path, files: list[Path], text: Path, folder: Path
) -> dict[Path, float]:
    """Mean divergence of each file as llama-perplexity measures it."""
    tool, logits = _tool(arguments, "llama-perplexity"), folder / "base.logits"
    if not logits.exists():
        child([tool, "-m", base, "-f", text, "-c", "512", "--kl-divergence-base", logits])
    found = {}
    for file in files:
        run = child([tool, "-m", file, "--kl-divergence-base", logits, "--kl-divergence"])
        match = re.search(r"Mean\s+KLD:\s+([0-9.]+)", run.output)
        if match is None:  # it now and then loses the end of what it prints; a line a chunk remains
            rows = r"^ *\d+ +[\d.]+ ± +[\d.]+ +[-\d.]+ ± +[\d.]+ +([\d.]+) ±"
            match = next(reversed(list(re.finditer(rows, run.output, re.MULTILINE))), None)
        if match is None:
            raise SystemExit(
                f"llama-perplexity said no mean divergence of {file}:\n{run.output[-2000:]}"
            )
        found[file] = float(match[1])
    return found


if __name__ == "__main__":
    sys.exit(main())
