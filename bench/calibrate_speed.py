"""How fast kvant calibrates, against llama-imatrix: whole processes on the same file and text.

    python bench/calibrate_speed.py --llama-cpp build-gcc --llama-cpp build-clang
    python bench/calibrate_speed.py --llama-cpp build-gcc --model model-BF16.gguf --text wiki.raw

Both run chunks of 512 tokens and take the head's inputs too. What they find is compared as well:
the largest relative distance between the mean squares of a tensor.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from common import (
    Bar,
    Report,
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

LEAST_RATIO = 1.5


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="what to calibrate (default: demo)")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text (default: the built-in one)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    add_options(parser)
    arguments = parser.parse_args()
    report = Report("Calibration, wall clock of whole processes", machine())
    report.head()
    with tempfile.TemporaryDirectory() as scratch:
        _measure(arguments, Path(scratch), report)
    return report.finish(arguments)


def _measure(arguments: argparse.Namespace, folder: Path, report: Report) -> None:
    from kvant.builtin import builtin_text

    model, text = folder / "model.gguf", Path(arguments.text or builtin_text("calibration"))
    if str(arguments.model).endswith(".gguf"):
        model = Path(arguments.model)
    else:
        child([*kvant_command(), "convert", arguments.model, "-o", model])
    ours = folder / "kvant.importance"
    threads = str(arguments.threads)
    words: list[str | Path] = [*kvant_command(), "calibrate", model, "--text", text]
    words += ["--threads", threads, "--force"]
    words += ["--tokens", str(_available(model, text))]  # all of it, as the peer does
    contenders = {"kvant": partial(child, [*words, "-o", ours])}
    found = {"kvant": ours}
    for label, program in peer_binaries(arguments, "llama-imatrix").items():
        found[label] = folder / f"{len(found)}.gguf"
        settings: list[str | Path] = ["-m", model, "-f", text, "-t", threads, "-c", "512"]
        settings += ["--process-output", "--no-ppl", "-o", found[label]]
        contenders[label] = partial(child, [program, *settings])
    warm(model)
    runs = alternate(contenders, arguments.rounds)
    seconds = {label: median(r) for label, r in runs.items()}
    tokens = _tokens(ours)
    rows = []
    for label, r in runs.items():
        peak = max(run.peak_bytes for run in r) / 1e6
        speed = _tokens(found[label]) / seconds[label]
        rows.append((label, f"{seconds[label]:.2f}", f"{speed:.0f}", f"{peak:.0f}"))
        report.results.append({"who": label, "seconds": seconds[label], "tokens_per_s": speed})
    print(table(("", "seconds", "tokens / s", "peak MB"), rows))
    peers = {label: s for label, s in seconds.items() if label != "kvant"}
    if peers:
        fastest = min(peers, key=lambda label: peers[label])
        ratio = peers[fastest] / _tokens(found[fastest]) * tokens / seconds["kvant"]
        report.bars += [
            Bar("tokens a second over the fastest peer's", ratio, LEAST_RATIO, at_most=False),
            Bar(
                "largest distance of a tensor's mean squares", _distance(ours, found[fastest]), 0.05
            ),
        ]


def _available(model: Path, text: Path) -> int:
    from kvant.api.calibration import calibration_chunks
    from kvant.api.source import open_source, tokenizer_of

    checkpoint = open_source(model)
    count = len(tokenizer_of(checkpoint).encode(text.read_bytes().decode()))
    return int(
        calibration_chunks(checkpoint, [text], tokens=count // 512 * 512, chunk=512).ids.size
    )


def _tokens(path: Path) -> int:
    from kvant.calibration import read_importance

    return max(read_importance(path).counts.values())


def _distance(ours: Path, theirs: Path) -> float:
    import numpy as np

    from kvant.calibration import read_importance

    a, b = read_importance(ours), read_importance(theirs)
    return max(
        float(np.linalg.norm(a.moments[n] - m) / np.linalg.norm(m)) for n, m in b.moments.items()
    )


if __name__ == "__main__":
    sys.exit(main())
