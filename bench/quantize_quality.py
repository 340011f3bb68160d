"""What a model loses at each preset: kvant's files against llama-quantize's, same bytes per tensor.

python bench/quantize_quality.py --llama-cpp build           # the built-in model and its text
python bench/quantize_quality.py --llama-cpp build --model FOLDER --text FILE
python bench/quantize_quality.py --llama-cpp build --importance     # both with the same, by kvant
python bench/quantize_quality.py --llama-cpp build --importance imatrix.gguf
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import Bar, Report, add_options, child, kvant_command, machine, peer_binaries, table

RECIPES = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Mean KL divergence of kvant's files and llama-quantize's from the same base."
    )
    parser.add_argument("--model", default="demo", help="what to quantise (default: demo)")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text (default: the built-in one)")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), metavar="RECIPE")
    parser.add_argument(
        "--importance",
        nargs="?",
        const="",
        metavar="FILE",
        help="give both this importance file; without FILE, one of the built-in calibration text",
    )
    add_options(parser, rounds=None)
    arguments = parser.parse_args()
    peers = peer_binaries(arguments, "llama-quantize")
    if not peers:
        raise SystemExit("name llama.cpp's folder with --llama-cpp; bench/README.md says how")
    quantizer = next(iter(peers.values()))
    how = "without" if arguments.importance is None else "with the same"
    report = Report(f"Divergence at each preset, {how} importance", machine())
    report.head()
    with tempfile.TemporaryDirectory() as scratch:
        rows = _measure(arguments, quantizer, Path(scratch), report)
    header = ("recipe", "kvant", "llama.cpp", "ratio", "difference", "standard error")
    print(table(header, rows))
    return report.finish(arguments)


def _measure(
    arguments: argparse.Namespace, quantizer: Path, folder: Path, report: Report
) -> list[tuple[str, ...]]:
    from kvant import evaluate
    from kvant.evaluation import kld_difference

    base = folder / "base.gguf"
    child([*kvant_command(), "convert", arguments.model, "-o", base])
    files = []
    ours_with, theirs_with = _importance(arguments, base)
    for recipe in arguments.recipes:
        ours, theirs = folder / f"kvant-{recipe}.gguf", folder / f"llama.cpp-{recipe}.gguf"
        child([*kvant_command(), "quantize", base, recipe, "-o", ours, *ours_with])
        child([quantizer, *theirs_with, base, theirs, recipe])
        files += [ours, theirs]
    # In float32, so that the weights alone are judged and not the rounding of activations.
    results = evaluate(files, base, text=arguments.text, runner="reference")[1:]
    rows: list[tuple[str, ...]] = []
    pairs = zip(arguments.recipes, results[::2], results[1::2], strict=True)
    for recipe, mine, peer in pairs:
        assert mine.kld is not None
        assert peer.kld is not None
        difference = kld_difference(mine, peer)
        ratio = mine.kld / peer.kld
        rows.append(
            (
                recipe,
                f"{mine.kld:.6f}",
                f"{peer.kld:.6f}",
                f"{ratio:.3f}",
                f"{difference.value:+.6f}",
                f"{difference.se:.6f}",
            )
        )
        report.results.append(
            {
                "recipe": recipe,
                "kvant": mine.kld,
                "llama.cpp": peer.kld,
                "ratio": ratio,
                "difference": difference.value,
                "difference_se": difference.se,
            }
        )
        report.bars.append(
            Bar(f"{recipe}: difference in standard errors", difference.value / difference.se, 2.0)
        )
    return rows


def _importance(
    arguments: argparse.Namespace, base: Path
) -> tuple[list[str | Path], list[str | Path]]:
    """The options that give kvant and llama-quantize the importance asked for."""
    if arguments.importance is None:
        return [], []
    file = Path(arguments.importance or base.with_suffix(".importance"))
    if not arguments.importance:
        child([*kvant_command(), "calibrate", base, "-o", file])
    return ["--importance", file], ["--imatrix", file]


if __name__ == "__main__":
    sys.exit(main())
