"""A budget against a fixed level of the same bytes, for ONNX and MLX.

Mean KL divergence from the unquantised model, on a text that calibration never saw, with the
standard error of the difference (paired by chunks of 512 tokens). The budget is the fixed level's
folder, to the byte; importance, method and texts are the same for both.

python bench/level_budgets.py                                 # the built-in model and texts
python bench/level_budgets.py --model bench/models/qwen3-11m --levels mlx=3bit --effort balanced
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Bar, Report, add_options, machine, table
from kvant import evaluate, kld_difference
from kvant.api.calibration import calibration_chunks
from kvant.api.source import open_source, threads_or_default
from kvant.api.target_search import TargetSearch
from kvant.api.targets import write_target
from kvant.builtin import builtin_text
from kvant.calibration import Chunks, Importance, collect_importance
from kvant.export.target import TargetOptions

LEVELS = ("onnx=int4-g32-sym", "onnx=int2-g16", "mlx=4bit", "mlx=3bit")
"""About 4.5 and 3.5 bits a weight."""

BAR = 0.95
"""The most that mean divergence may be, as a multiple of the fixed level's."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Budgets against fixed levels, at equal bytes.")
    parser.add_argument("--model", default="demo", help="what to quantise (default: demo)")
    parser.add_argument("--calibration", metavar="FILE", help="UTF-8 text (default: built in)")
    parser.add_argument("--text", metavar="FILE", help="text to evaluate on (default: built in)")
    parser.add_argument("--levels", nargs="+", default=LEVELS, metavar="TARGET=LEVEL")
    parser.add_argument("--effort", default="fast", help="of both folders (default: fast)")
    parser.add_argument("--threads", type=int, metavar="N")
    add_options(parser, peer=False, rounds=None)
    arguments = parser.parse_args()
    report = Report("Budgets against fixed levels", machine())
    report.head()
    comparison = _Comparison(arguments, report)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [comparison.row(text, Path(scratch)) for text in arguments.levels]
    header = ("against", "bytes", "bpw", "fixed", "budget", "ratio", "difference", "se", "expected")
    print(table(header, rows))
    return report.finish(arguments)


class _Comparison:
    """A model and what is known of it."""

    def __init__(self, arguments: argparse.Namespace, report: Report) -> None:
        self._arguments, self._report = arguments, report
        self._threads = threads_or_default(arguments.threads)
        self._text = arguments.text or builtin_text("evaluation")
        self._calibration = arguments.calibration or builtin_text("calibration")
        self._checkpoint = open_source(arguments.model)
        self._chunks: Chunks = calibration_chunks(self._checkpoint, [self._calibration])
        self._importance: Importance = collect_importance(
            self._checkpoint, self._chunks, threads=self._threads
        )
        self._searches: dict[str, TargetSearch] = {}

    def row(self, text: str, scratch: Path) -> tuple[str, ...]:
        """One line of the table."""
        to, _, level = text.partition("=")
        fixed, ours = scratch / f"{to}-{level}", scratch / f"{to}-{level}-budget"
        size = write_target(self._arguments.model, to, level, fixed, **self._how()).nbytes
        search = self._search(to)
        best = search.fit(size)
        found = write_target(self._arguments.model, to, search.named(best), ours, **self._how())
        assert found.nbytes <= size
        theirs, mine = evaluate([fixed, ours], self._arguments.model, text=self._text)[1:]
        assert mine.kld is not None
        assert theirs.kld is not None
        gap, ratio = kld_difference(mine, theirs), mine.kld / theirs.kld
        self._report.bars.append(Bar(f"{to}, bytes of {level}", ratio, BAR))
        self._report.results.append(
            {
                "model": self._arguments.model,
                "against": text,
                "bytes": found.nbytes,
                "bpw": found.bits_per_weight,
                "fixed": theirs.kld,
                "budget": mine.kld,
                "ratio": ratio,
                "difference": gap.value,
                "difference_se": gap.se,
                "expected": best.cost,
            }
        )
        return (
            *(text, f"{found.nbytes:,} of {size:,}", f"{found.bits_per_weight:.3f}"),
            *(f"{theirs.kld:.5f}", f"{mine.kld:.5f}", f"{ratio:.3f}"),
            *(f"{gap.value:+.5f}", f"{gap.se:.5f}", f"{best.cost:.5f}"),
        )

    def _how(self, *, dry: bool = False) -> dict[str, Any]:
        effort = "fast" if dry else self._arguments.effort
        return {
            "importance": self._importance,
            "effort": effort,
            "texts": () if effort == "fast" else [self._calibration],
            "threads": self._threads,
            "dry_run": dry,
        }

    def _search(self, to: str) -> TargetSearch:
        if to not in self._searches:
            search = TargetSearch(
                self._checkpoint,
                to,
                ("fast",),
                TargetOptions(),
                lambda mixture: write_target(
                    self._arguments.model, to, mixture, **self._how(dry=True)
                ),
            )
            search.measure(
                effort="balanced",
                written=self._arguments.effort,
                chunks=self._chunks,
                importance=self._importance,
                threads=self._threads,
            )
            self._searches[to] = search
        return self._searches[to]


if __name__ == "__main__":
    sys.exit(main())
