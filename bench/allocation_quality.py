"""Divergence at equal bytes: kvant --fit against llama-quantize with its importance matrix.

python bench/allocation_quality.py --llama-cpp build           # the built-in model and texts
python bench/allocation_quality.py --llama-cpp build --model bench/models/qwen3-11m --confirm

For each preset llama.cpp's file is made with the importance matrix that llama-imatrix collects on
the calibration text; kvant gets as many bytes as that file has and the same text. Both are measured
against the unquantised model; ratios have standard errors by a paired bootstrap over chunks.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import Bar, Report, add_options, child, kvant_command, machine, peer_binaries, table
from kvant.api.budget import BudgetSearch, collected, plan_maker, search_budgets
from kvant.api.calibration import calibration_chunks
from kvant.api.conversion import quantize
from kvant.api.effort import EFFORTS, effort_of, making_of
from kvant.api.source import open_source, threads_or_default
from kvant.builtin import builtin_text
from kvant.calibration import Importance
from kvant.evidence import Making
from kvant.export.gguf.plan import model_metadata

LIMITS = {"Q4_K_M": 0.70, "Q3_K_M": 0.60, "Q2_K": 0.50, "Q6_K": 1.0}
RESAMPLES = 4000


@dataclass(frozen=True)
class Pair:
    """Two files of one size and their divergence by chunk."""

    preset: str
    nbytes: int
    ours: np.ndarray[tuple[int], np.dtype[np.float64]]
    theirs: np.ndarray[tuple[int], np.dtype[np.float64]]
    expected: float

    @property
    def ratio(self) -> float:
        """Our mean over theirs."""
        return float(self.ours.mean() / self.theirs.mean())

    @property
    def ratio_se(self) -> float:
        """By drawing chunks, the same for both, with replacement."""
        rng = np.random.default_rng(0)
        picked = rng.integers(0, len(self.ours), (RESAMPLES, len(self.ours)))
        ratios = self.ours[picked].mean(1) / self.theirs[picked].mean(1)
        return float(ratios.std(ddof=1))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Mean KL divergence of kvant's and llama-quantize's files of equal size."
    )
    parser.add_argument("--model", default="demo", help="what to quantise (default: demo)")
    parser.add_argument("--text", metavar="FILE", help="to judge on (default: the built-in one)")
    parser.add_argument("--calibration", metavar="FILE", help="to calibrate on (default: built in)")
    parser.add_argument("--presets", nargs="+", default=list(LIMITS), metavar="NAME")
    parser.add_argument("--effort", choices=EFFORTS, default="balanced")
    parser.add_argument("--packings", nargs="+", default=["fast"], metavar="NAME")
    parser.add_argument(
        "--confirm", action="store_true", help="measure with llama-perplexity as well"
    )
    add_options(parser, rounds=None)
    arguments = parser.parse_args()
    peers = peer_binaries(arguments, "llama-quantize")
    if not peers:
        raise SystemExit("name llama.cpp's folder with --llama-cpp; bench/README.md says how")
    tools = next(iter(peers.values())).parent
    report = Report(f"Divergence at equal bytes, {arguments.model}", machine())
    report.head()
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(arguments, tools, Path(scratch))
        pairs = bench.pairs()
        confirmed = bench.confirm() if arguments.confirm else {}
    _show(pairs, confirmed, report)
    return report.finish(arguments)


class _Bench:
    """The files and their figures."""

    def __init__(self, arguments: argparse.Namespace, tools: Path, folder: Path) -> None:
        self._arguments, self._tools, self._folder = arguments, tools, folder
        self._base = folder / "base.gguf"
        self._making = Making(target="a preset's size")
        self._text = Path(arguments.text or builtin_text("evaluation"))
        self._calibration = Path(arguments.calibration or builtin_text("calibration"))
        child([*kvant_command(), "convert", arguments.model, "-o", self._base])

    def pairs(self) -> list[Pair]:
        """Make and measure all files."""
        from kvant import evaluate

        matrix = self._folder / "imatrix.gguf"
        words: list[str | Path] = [
            self._tools / "llama-imatrix",
            "-m",
            self._base,
            "-f",
            self._calibration,
        ]
        child([*words, "-o", matrix, "-c", "512", "--no-ppl"])
        search, importance = self._search()
        files: list[Path] = []
        expected = []
        for preset in self._arguments.presets:
            theirs, ours = self._file("llama.cpp", preset), self._file("kvant", preset)
            child([self._tools / "llama-quantize", "--imatrix", matrix, self._base, theirs, preset])
            recipe, mixture = search.fit(theirs.stat().st_size)
            quantize(
                self._base,
                recipe,
                ours,
                importance=importance,
                effort=self._arguments.effort,
                texts=() if self._arguments.effort == "fast" else [self._calibration],
                evidence=False,
                making=self._making,
            )
            assert ours.stat().st_size <= theirs.stat().st_size
            expected.append(mixture.cost)
            files += [ours, theirs]
        results = evaluate(files, self._base, text=self._text)[1:]
        found = []
        for i, preset in enumerate(self._arguments.presets):
            mine, peer = results[2 * i].chunk_kld, results[2 * i + 1].chunk_kld
            assert mine is not None
            assert peer is not None
            size = files[2 * i].stat().st_size
            found.append(Pair(preset, size, mine, peer, expected[i]))
        return found

    def _search(self) -> tuple[BudgetSearch, Importance]:
        checkpoint, threads = open_source(self._base), threads_or_default(None)
        chunks = calibration_chunks(checkpoint, [self._calibration])
        importance = collected(checkpoint, chunks, threads, None)
        effort = effort_of(self._arguments.effort)
        if effort.method is not None:
            self._making = making_of(effort, chunks, self._making)
        plans = plan_maker(
            *(checkpoint, model_metadata(checkpoint), (), None, importance),
            making=self._making,
        )
        search = search_budgets(
            checkpoint,
            plans,
            effort=self._arguments.effort,
            packings=self._arguments.packings,
            chunks=chunks,
            importance=importance,
            threads=threads,
        )
        return search, importance

    def confirm(self) -> dict[str, tuple[float, float]]:
        """Mean divergence of ours and theirs as llama-perplexity measures it."""
        logits = self._folder / "logits"
        words: list[str | Path] = [self._tools / "llama-perplexity", "-f", self._text, "-c", "512"]
        words += ["--kl-divergence-base", logits]
        child([*words, "-m", self._base])
        found = {}
        for preset in self._arguments.presets:
            values = []
            for maker in ("kvant", "llama.cpp"):
                values.append(_their_kld([*words, "-m", self._file(maker, preset)]))
            found[preset] = (values[0], values[1])
        return found

    def _file(self, maker: str, preset: str) -> Path:
        return self._folder / f"{maker}-{preset}.gguf"


def _their_kld(words: list[str | Path]) -> float:
    """What llama-perplexity prints; on a busy machine it may end before its last lines are out."""
    output = ""
    for _ in range(5):
        output = child([*words, "--kl-divergence"]).output
        match = re.search(r"Mean\s+KLD:\s+([0-9.]+)", output)
        if match is not None:
            return float(match[1])
    raise SystemExit(f"llama-perplexity printed no divergence:\n{output[-1000:]}")


def _show(pairs: list[Pair], confirmed: dict[str, tuple[float, float]], report: Report) -> None:
    rows = []
    for pair in pairs:
        peer = confirmed.get(pair.preset)
        seen = f"{peer[0] / peer[1]:.3f}" if peer else ""
        rows.append(
            (
                *(pair.preset, f"{pair.nbytes:,}", f"{pair.ours.mean():.6f}"),
                *(f"{pair.theirs.mean():.6f}", f"{pair.ratio:.3f}", f"{pair.ratio_se:.3f}"),
                *(f"{pair.expected:.6f}", seen),
            )
        )
        report.results.append(
            {
                "preset": pair.preset,
                "bytes": pair.nbytes,
                "kvant": float(pair.ours.mean()),
                "llama.cpp": float(pair.theirs.mean()),
                "ratio": pair.ratio,
                "ratio_se": pair.ratio_se,
                "expected": pair.expected,
                "llama-perplexity": peer,
            }
        )
        if pair.preset == "Q6_K":
            difference = pair.ours - pair.theirs
            sure = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))
            report.bars.append(Bar("Q6_K: difference in standard errors", float(sure), 2.0))
        elif pair.preset in LIMITS:
            report.bars.append(Bar(f"{pair.preset}: ratio", pair.ratio, LIMITS[pair.preset]))
    header = ("preset", "bytes", "kvant", "llama.cpp", "ratio", "± SE", "expected", "their tool's")
    print(table(header, rows))


if __name__ == "__main__":
    sys.exit(main())
