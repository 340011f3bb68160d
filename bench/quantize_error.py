"""Squared error of kvant's K-packings over ggml's, by kind of weights, with and without importance.

ggml is llama.cpp's own quantiser, called in this process through the xllamacpp wheel. A figure
below 1 means kvant's file is nearer the original at exactly the same size. With importance the
errors are weighted by it, which is what each of the two minimises then.

    python bench/quantize_error.py
    python bench/quantize_error.py --model DIR/model.safetensors --rows 512
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from common import Bar, Report, add_options, machine, oracle, table
from kvant.packing import all_packings, dequantize, quantize

Floats = npt.NDArray[Any]
SPREADS = {"equal": None, "skewed": 1.0, "very skewed": 2.0}
"""Kinds of importance: log-normal with this standard deviation of the logarithm."""


def sources(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Floats]]]:
    """Name and matrices: each kind of synthetic weights, then the built-in and a given model."""
    kinds = oracle("weights")
    for name in kinds.KINDS:
        yield name, [kinds.kind(name, arguments.rows, 2048, arguments.seed)]
    paths = {"built-in model": kinds.builtin_model(), "given model": arguments.model}
    for name, path in paths.items():
        if path is not None:
            yield name, [x for _, x in kinds.tensors(path, arguments.rows)]


@dataclass
class Errors:
    """Error of both quantisers in one packing, summed, and the worst ratio of a single tensor."""

    ours: float = 0.0
    theirs: float = 0.0
    worst: float = 0.0

    def add(self, ours: float, theirs: float) -> None:
        """Take in one tensor."""
        self.ours += ours
        self.theirs += theirs
        self.worst = max(self.worst, ours / theirs if theirs else float(ours > 0))

    @property
    def ratio(self) -> float:
        """Ours over theirs, all tensors together."""
        return self.ours / self.theirs if self.theirs else float(self.ours > 0)


def compare(ggml: Any, matrices: list[Floats], spread: float | None) -> dict[str, Errors]:
    """Quantise and decode all matrices in every K-packing with both."""
    kinds = oracle("weights")
    errors = {p.name: Errors() for p in all_packings() if p.block == 256}
    for x in matrices:
        w = None if spread is None else kinds.importance(x.shape[1], 1, spread)
        for name, both in errors.items():
            packed = quantize(name, x, w), ggml.quantize(name, x, w)
            both.add(*(kinds.squared_error(x, dequantize(name, data), w) for data in packed))
    return errors


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Squared error of kvant's K-packings over ggml's; below 1 is better."
    )
    parser.add_argument("--rows", type=int, default=512, metavar="N", help="rows of each matrix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, metavar="FILE", help="also this safetensors file")
    add_options(parser, peer=False, rounds=None)
    arguments = parser.parse_args()
    try:
        ggml = oracle("ggml").load()
    except ImportError as reason:
        raise SystemExit(f"needs the xllamacpp wheel (pip install xllamacpp): {reason}") from None
    report = Report("Squared error, kvant over ggml", machine())
    report.head()
    rows = []
    for name, matrices in sources(arguments):
        for label, spread in SPREADS.items():
            errors = compare(ggml, matrices, spread)
            several = f" ({len(matrices)} tensors)" if len(matrices) > 1 else ""
            rows.append([name + several, label, *(f"{e.ratio:.4f}" for e in errors.values())])
            if several:
                rows.append(["  worst tensor", label, *(f"{e.worst:.4f}" for e in errors.values())])
            report.results.append(
                {
                    "weights": name,
                    "importance": label,
                    "ratio": {p: e.ratio for p, e in errors.items()},
                    "worst": {p: e.worst for p, e in errors.items()},
                }
            )
            most = max(e.worst for e in errors.values())
            report.bars.append(Bar(f"{name}, {label}: worst packing and tensor", most, 1.0))
    print(table(["weights", "importance", *errors], rows))
    print()
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
