"""What a model loses in MLX's layout: kvant's folders against mlx_lm.convert's, of equal bytes.

Mean KL divergence from the unquantised model, on a text that calibration never saw, with the
standard error of the difference (paired by chunks of 512 tokens).

python bench/mlx_quality.py                               # the built-in model and texts
python bench/mlx_quality.py --model bench/models/qwen3-11m --levels 4bit 3bit --efforts balanced
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Bar, Report, add_options, child, kvant_command, machine, table

BAR = 0.6
"""The most that mean divergence may be at 4bit and balanced, as a multiple of mlx_lm.convert's."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Divergence in MLX's layout, at equal bytes.")
    parser.add_argument("--model", default="demo", help="what to quantise (default: demo)")
    parser.add_argument("--calibration", metavar="FILE", help="UTF-8 text (default: built in)")
    parser.add_argument("--text", metavar="FILE", help="text to evaluate on (default: built in)")
    parser.add_argument("--levels", nargs="+", default=["4bit"], metavar="LEVEL")
    parser.add_argument("--efforts", nargs="+", default=["importance", "balanced"])
    add_options(parser, rounds=None)
    arguments = parser.parse_args()
    report = Report("Divergence in MLX's layout", machine())
    report.head()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            row for level in arguments.levels for row in _level(arguments, level, scratch, report)
        ]
    header = ("level", "effort", "bpw", "kvant", "mlx_lm", "ratio", "difference", "se")
    print(table(header, rows))
    return report.finish(arguments)


def _level(
    arguments: argparse.Namespace, level: str, scratch: str, report: Report
) -> list[tuple[str, ...]]:
    from kvant.api.source import resolve
    from kvant.builtin import builtin_text

    calibration = arguments.calibration or builtin_text("calibration")
    folder = Path(scratch) / level
    folder.mkdir()
    bits, _, group = level.partition("bit")
    theirs = folder / "mlx_lm"
    size = group.removeprefix("-g") or "64"
    child(
        [
            *(sys.executable, "-m", "mlx_lm", "convert", "--hf-path", resolve(arguments.model)),
            *("--mlx-path", theirs, "-q", "--q-bits", bits, "--q-group-size", size),
        ]
    )
    ours: dict[str, Path] = {}
    for effort in arguments.efforts:
        ours[effort] = folder / effort
        command = [*kvant_command(), "quantize", arguments.model, level, "--to", "mlx"]
        command += ["-o", ours[effort]]
        if effort == "importance":
            matrix = folder / "importance.gguf"
            child(
                [
                    *kvant_command(),
                    "calibrate",
                    arguments.model,
                    "--text",
                    calibration,
                    "-o",
                    matrix,
                ]
            )
            command += ["--importance", matrix]
        else:
            command += ["--effort", effort, "--text", calibration]
        child(command)
    return _measured(arguments, level, theirs, ours, report)


def _measured(
    arguments: argparse.Namespace,
    level: str,
    theirs: Path,
    ours: dict[str, Path],
    report: Report,
) -> list[tuple[str, ...]]:
    from kvant import evaluate
    from kvant.builtin import builtin_text
    from kvant.evaluation import kld_difference

    text = arguments.text or builtin_text("evaluation")
    files = [theirs, *ours.values()]
    sizes = {sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in files}
    if max(sizes) - min(sizes) > 1024:  # headers may differ by a few bytes
        raise SystemExit(f"the folders differ in size: {sizes}")
    results = evaluate(files, arguments.model, text=text)[1:]
    rows: list[tuple[str, ...]] = []
    for effort, mine in zip(ours, results[1:], strict=True):
        assert mine.kld is not None
        assert results[0].kld is not None
        difference = kld_difference(mine, results[0])
        found: dict[str, Any] = {
            "model": arguments.model,
            "level": level,
            "effort": effort,
            "bpw": mine.bpw,
            "kvant": mine.kld,
            "mlx_lm": results[0].kld,
            "ratio": mine.kld / results[0].kld,
            "difference": difference.value,
            "difference_se": difference.se,
        }
        report.results.append(found)
        if level == "4bit" and effort != "importance":
            report.bars.append(Bar(f"{level}, {effort}", found["ratio"], BAR))
        rows.append(
            (
                *(level, effort, f"{found['bpw']:.2f}", f"{mine.kld:.5f}"),
                *(f"{results[0].kld:.5f}", f"{found['ratio']:.3f}"),
                *(f"{difference.value:+.5f}", f"{difference.se:.5f}"),
            )
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
