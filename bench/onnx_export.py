"""Exporting to ONNX int4: time and peak memory, beside onnxruntime-genai's model builder.

Both write the folder that onnxruntime-genai runs, from the same Hugging Face folder, in turn, both
in blocks of 32 and by their plain way (kvant: scales searched, every weight verified; the builder:
rounding). The builder needs torch and transformers and holds the model in memory.

python bench/onnx_export.py                         # Llama-3.2-1B's shape
python bench/onnx_export.py --model FOLDER --rounds 1
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from common import (
    HERE,
    WORK,
    Bar,
    Report,
    Run,
    add_options,
    child,
    kvant_command,
    machine,
    median,
    table,
)

PEAK_MB = 1000.0
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "CI": "true"}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-3.2-1b", help="shape for synthetic.py")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="instead of a made one")
    parser.add_argument("--level", default="int4-g32", metavar="LEVEL")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--no-peer", action="store_true", help="kvant alone")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="where outputs go")
    add_options(parser, peer=False, rounds=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    report = Report("Exporting to ONNX int4", machine())
    report.head()
    folder = arguments.model
    if folder is None:
        command = [sys.executable, HERE / "synthetic.py", "--shape", arguments.shape]
        folder = Path(child(command).output.splitlines()[-1])
    ours: list[Run] = []
    theirs: list[Run] = []
    for _ in range(arguments.rounds):
        ours.append(_kvant(arguments, folder))
        if not arguments.no_peer:
            theirs.append(_builder(arguments, folder))
    rows = [_row("kvant", ours)]
    report.bars.append(Bar("peak memory", _peak(ours), PEAK_MB, unit=" MB"))
    if theirs:
        rows.append(_row("model builder", theirs))
        ratio = median(ours) / median(theirs)
        report.bars.append(Bar("time, share of the builder's", ratio, 1.0, unit="x"))
    report.results += [{"who": row[0], "seconds": row[1], "peak_mb": row[2]} for row in rows]
    print(table(["who", "seconds", "peak MB"], rows))
    return report.finish(arguments)


def _row(name: str, runs: list[Run]) -> tuple[str, str, str]:
    return name, f"{median(runs):.1f}", f"{_peak(runs):,.0f}"


def _peak(runs: list[Run]) -> float:
    return max(run.peak_bytes for run in runs) / 1e6


def _kvant(arguments: argparse.Namespace, folder: Path) -> Run:
    out = arguments.work / "kvant-onnx"
    options = ["--to", "onnx", "-o", out, "--threads", str(arguments.threads), "--force"]
    run = child([*kvant_command(), "quantize", folder, arguments.level, *options])
    shutil.rmtree(out)
    return run


def _builder(arguments: argparse.Namespace, folder: Path) -> Run:
    out, cache = arguments.work / "builder-onnx", arguments.work / "builder-cache"
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    options = ["-i", folder, "-o", out, "-p", "int4", "-e", "cpu", "-c", cache]
    options += ["--extra_options", "int4_block_size=32"]
    run = child([*command, *options], environment=QUIET)
    shutil.rmtree(out)
    shutil.rmtree(cache, ignore_errors=True)
    return run


if __name__ == "__main__":
    sys.exit(main())
