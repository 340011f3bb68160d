"""Peak memory of kvant quantize does not grow with the model: one, and one twice as large.

python bench/quantize_memory.py                  # Llama-3.2-1B's shape with 16 and 36 layers
"""

from __future__ import annotations

import argparse
import sys
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
)

PEAK_MB = 600.0
GROWTH = 1.05
"""Largest ratio of two peaks that counts as the same: buffers are allocated when first needed."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Peak memory of kvant quantize on a model and on one twice as large."
    )
    parser.add_argument("--shape", default="llama-3.2-1b", help="shape for synthetic.py")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[16, 36], metavar="N", help="layers of each model"
    )
    parser.add_argument("--recipes", nargs="+", default=["Q4_K_M", "Q8_0"], metavar="RECIPE")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where outputs go")
    add_options(parser, peer=False, rounds=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    report = Report("Peak memory of kvant quantize from a Hugging Face folder", machine())
    report.head()
    out = arguments.work / "kvant.gguf"
    rows = []
    peaks: dict[str, list[float]] = {recipe: [] for recipe in arguments.recipes}
    for layers in arguments.layers:
        command = [sys.executable, HERE / "synthetic.py", "--shape", arguments.shape]
        folder = Path(child([*command, "--layers", str(layers)]).output.splitlines()[-1])
        size = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
        for recipe in arguments.recipes:
            options = ["-o", out, "--threads", str(arguments.threads), "--force"]
            runs = [
                child([*kvant_command(), "quantize", folder, recipe, *options])
                for _ in range(arguments.rounds)
            ]
            peak = max(run.peak_bytes for run in runs) / 1e6
            peaks[recipe].append(peak)
            rows.append([f"{layers} layers", f"{size:.0f}", recipe, f"{peak:.0f}"])
            report.results.append(
                {"layers": layers, "source_mb": size, "recipe": recipe, "peak_mb": peak}
            )
            out.unlink(missing_ok=True)
    print(table(["model", "source MB", "recipe", "peak MB"], rows))
    print()
    for recipe, found in peaks.items():
        report.bars.append(Bar(f"{recipe} peak memory", max(found), PEAK_MB, unit=" MB"))
        growth = max(found) / found[0]
        report.bars.append(Bar(f"{recipe} peak, largest over first", growth, GROWTH, unit="x"))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
