"""How fast a 4-bit MLX folder is written, against mlx_lm.convert on the same processors.

Both read the same Hugging Face folder and write the same bits (kvant also reads back and compares
what it wrote, unless --no-verify), each in a fresh process, in turns; the output of the run before
is deleted. mlx_lm.convert does not sync its files, so ``sync`` stands inside its time.

python bench/mlx_export.py                     # makes bench/synthetic.py's model first, 2.5 GB
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from common import (
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
    table,
    warm,
)

BAR = 3.0


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Seconds to write a 4-bit MLX folder.")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: synthetic)")
    parser.add_argument("--level", default="4bit")
    add_options(parser, rounds=3)
    arguments = parser.parse_args()
    source = arguments.model
    if source is None:
        from synthetic import make

        source = make("llama-3.2-1b")
    report = Report(f"Writing {arguments.level} MLX folders from {source.name}", machine())
    report.head()
    out = WORK / "mlx-export"
    WORK.mkdir(exist_ok=True)
    warm(*source.glob("*.safetensors"))
    ours = [*kvant_command(), "quantize", source, arguments.level, "--to", "mlx", "-o", out]
    theirs = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", source, "--mlx-path", out]
    theirs += ["-q", "--q-bits", arguments.level.partition("bit")[0]]

    def timed(command: list[str | Path], *, sync: bool = False) -> Run:
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        run = child(command)
        if sync:
            child(["sync", *out.iterdir()])
        return Run(time.perf_counter() - started, run.peak_bytes, run.output, None)

    found = alternate(
        {
            "kvant": lambda: timed([*ours, "--no-verify"]),
            "kvant, verified": lambda: timed(ours),
            "mlx_lm.convert": lambda: timed(theirs, sync=True),
        },
        arguments.rounds,
    )
    shutil.rmtree(out, ignore_errors=True)
    peer = median(found["mlx_lm.convert"])
    rows = []
    for name, runs in found.items():
        seconds, peak = median(runs), max(run.peak_bytes for run in runs) / 1e6
        rows.append((name, f"{seconds:.1f}", f"{peer / seconds:.1f}", f"{peak:.0f}"))
        report.results.append({"who": name, "seconds": seconds, "peak_mb": peak})
    print(table(("", "seconds", "times mlx_lm", "peak MB"), rows))
    ratio = peer / median(found["kvant"])
    report.bars.append(Bar("times as fast as mlx_lm.convert", ratio, BAR, at_most=False))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
