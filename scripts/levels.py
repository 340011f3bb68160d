"""Write docs/levels.md: every level of every target, measured on the built-in model.

Each level is written, evaluated against the model it was made from on the built-in text, timed on
its own runtime where that is a processor's, and run by its own runtime to see that it computes what
kvant reads in the file. A test fails where a level is missing on the page.

Usage: python scripts/levels.py [--only gguf|onnx|mlx|vllm] [--threads N]

The whole page takes some ten minutes, in which nothing else should run. With --only, the sections
of the other targets stay as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kvant
from kvant.api.benchmark import benchmark
from kvant.api.runtime_check import RuntimeCheck, check_runtime
from kvant.api.targets import target_levels
from kvant.devices.machine import cpu_name
from kvant.evaluation import EvalResult
from kvant.evaluation.report import evaluation_table
from kvant.evaluation.table import Column, Table
from kvant.quant.presets import PRESETS
from kvant.units import NOTHING

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "levels.md"

TARGETS = {
    "gguf": "GGUF",
    "onnx": "ONNX",
    "mlx": "MLX",
    "vllm": "vLLM",
}
_CHUNKS = 16
"""Of the evaluation text: what tells levels apart, and lets the page be written in minutes."""

_SAID = {
    "gguf": "Run by kvant's engine; the last column compares llama.cpp with the interpreter.",
    "onnx": "Run by ONNX Runtime; the last column compares it with the interpreter.",
    "mlx": "Run by kvant's engine on the weights as decoded. MLX on a processor is too slow for a "
    "whole text and its speed there says nothing of a Mac's; the last column compares it, on 60 "
    "tokens and in float32, with the interpreter.",
    "vllm": "Run by kvant's engine on the weights as decoded: vLLM was not run. What rounds "
    "activations there (w8a8, fp8) is not in these figures. The embedding stays in 16 bits, which "
    "is much of a model as small as this.",
}
_HEAD = """\
# Level by level

<!-- Written by scripts/levels.py; do not edit. -->

Every level of every target on the built-in model (5.8 million weights, so each level costs it more
than it would a large one): class, bits per weight of the whole model, size of the files, perplexity
and divergence from the original on the built-in evaluation text, and speed in tokens a second.
Scales are searched with the importance of the built-in calibration text; nothing slower
(`--effort balanced` loses about half as much at four bits, [methods](methods.md)).

**own runtime** is the divergence of what the format's own runtime computes from what kvant decodes,
in nats a token (`kvant verify FOLDER --runtime`): where it is far below the level's own divergence,
the figures on this page are also that runtime's.
"""


@dataclass(frozen=True)
class Row:
    """A level and where its artefact is."""

    name: str
    precision_class: str
    path: Path
    bpw: float


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TARGETS, help="write this target's section alone")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    arguments = parser.parse_args()
    sections = _sections()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        kvant.calibrate("demo", output=work / "demo.importance", threads=arguments.threads)
        for target in TARGETS if arguments.only is None else (arguments.only,):
            sections[target] = section(target, work, arguments.threads)
            print(f"measured {target}", file=sys.stderr)
    body = "\n".join(sections[target] for target in TARGETS if target in sections)
    PAGE.write_text(f"{_HEAD}\n{body}")
    print(f"wrote {PAGE}", file=sys.stderr)
    return 0


def levels(target: str) -> list[tuple[str, str]]:
    """Names and classes of a target's levels, fewest bits first."""
    if target == "gguf":
        found = [(p.name, p.precision_class) for p in PRESETS if p.precision_class != "full"]
        return [each for each in found if each[0] != "MXFP4_MOE"]  # for experts, which it has not
    return [(level.name, level.precision_class) for level in target_levels(target)]


def section(target: str, work: Path, threads: int) -> str:
    """Heading, sentence and table of a target."""
    rows = sorted((_written(work, target, *each, threads) for each in levels(target)), key=_bits)
    results = _evaluated(rows, threads)
    speeds = [_speed(row, target, threads) for row in rows]
    checks = [_check(row, target, threads) for row in rows]
    table = _table(rows, results, speeds, checks)
    text = table.markdown()
    machine = f" Two threads of {cpu_name()}." if any(speeds) else ""
    return f"## {TARGETS[target]}\n\n{_SAID[target]}{machine}\n\n{text}"


def _bits(row: Row) -> float:
    return row.bpw


def _written(work: Path, target: str, level: str, class_: str, threads: int) -> Row:
    out = work / (f"{level}.gguf" if target == "gguf" else f"{target}-{level}")
    importance = work / "demo.importance"
    found = kvant.quantize("demo", level, out, to=target, importance=importance, threads=threads)
    return Row(level, class_, out, found.bits_per_weight)


def _evaluated(rows: Sequence[Row], threads: int) -> list[EvalResult]:
    """One result a row; some at a time, because all are in memory together."""
    found: list[EvalResult] = []
    for start in range(0, len(rows), 8):
        paths = [row.path for row in rows[start : start + 8]]
        found += kvant.evaluate(paths, "demo", chunks=_CHUNKS, threads=threads)[1:]
    return found


def _speed(row: Row, target: str, threads: int) -> tuple[float, float] | None:
    """Prompt and generation, tokens a second, on the runtime the table is about."""
    if target not in ("gguf", "onnx"):
        return None
    report = benchmark(
        row.path, prompts=(256,), generate=32, batches=(1,), threads=threads, repeat=2
    )
    rates = {result.test: result.rate for result in report.results}
    return rates["prompt"], rates["generate"]


def _check(row: Row, target: str, threads: int) -> RuntimeCheck | None:
    if target == "vllm":
        return None
    context = 32 if target == "mlx" else 64
    return check_runtime(row.path, context=context, chunks=2, threads=threads)


def _table(
    rows: Sequence[Row],
    results: Sequence[EvalResult],
    speeds: Sequence[tuple[float, float] | None],
    checks: Sequence[RuntimeCheck | None],
) -> Table:
    measured = evaluation_table(results)
    columns = {column.title: column for column in measured.columns}
    extra = [
        Column("level", tuple(row.name for row in rows)),
        Column("class", tuple(row.precision_class for row in rows)),
        *(columns[t] for t in ("bpw", "size", "perplexity", "KL divergence", "same top token")),
    ]
    if any(speeds):
        extra += [
            Column(title, tuple(NOTHING if s is None else f"{s[i]:,.0f}" for s in speeds), True)
            for i, title in enumerate(("prompt", "generation"))
        ]
    if any(checks):
        cells = tuple(NOTHING if c is None else f"{c.kld:.1e}" for c in checks)
        extra.append(Column("own runtime", cells, True))
    return Table(tuple(extra), measured.note)


def _sections() -> dict[str, str]:
    """The sections that are on the page now, by target."""
    if not PAGE.exists():
        return {}
    found = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        target = next(t for t, title in TARGETS.items() if title == part.partition("\n")[0])
        found[target] = f"## {part}".rstrip("\n") + "\n"
    return found


if __name__ == "__main__":
    raise SystemExit(main())
