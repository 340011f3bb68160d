"""One model to all four targets at about four and a half bits, in one table of evidence.

Every folder is written by kvant, evaluated by one evaluator over the same tokens, and run by its
format's own runtime, which has to compute what kvant reads in the file: logits of unquantised
models within 1e-3, divergence of quantised ones below 1e-3. (vLLM does not run here; its folder is
measured as decoded, and its reader, compressed-tensors, is compared in the tests.)

python bench/four_targets.py                        # the built-in model
python bench/four_targets.py --model FOLDER --effort fast
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Bar, Report, add_options, machine

LEVELS = {
    "gguf": "IQ4_XS",
    "onnx": "int4-g32-sym",
    "mlx": "4bit",
    "vllm": "w4a16-g32",
}
"""The level of each target that is nearest to 4.5 bits a weight. Its folder for vLLM keeps the
embedding in 16 bits, which is little of a large model and much of a small one."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="what to convert (default: demo)")
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text (default: the built-in one)")
    parser.add_argument("--effort", default="balanced", help="default: balanced")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    add_options(parser, peer=False, rounds=None)
    arguments = parser.parse_args()
    report = Report("One model, four targets, about 4.5 bits", machine())
    report.head()
    with tempfile.TemporaryDirectory() as scratch:
        print(_measure(arguments, Path(scratch), report))
    return report.finish(arguments)


def _measure(arguments: argparse.Namespace, work: Path, report: Report) -> str:
    import kvant
    from kvant.evaluation.report import evaluation_table
    from kvant.evaluation.table import Column

    paths, matrices = [], []
    for target, level in LEVELS.items():
        out = work / (f"{target}.gguf" if target == "gguf" else target)
        found = kvant.quantize(
            arguments.model,
            level,
            out,
            to=target,
            effort=arguments.effort,
            threads=arguments.threads,
        )
        paths.append(out)
        matrices.append(_linear_bits(found))
    base, *results = kvant.evaluate(
        paths, arguments.model, text=arguments.text, threads=arguments.threads
    )
    checks = _checks(arguments, work, report)
    named = [
        replace(r, name=f"{t} {level}")
        for r, (t, level) in zip(results, LEVELS.items(), strict=True)
    ]
    table = evaluation_table([base, *named], runners=True)
    cells = ("–", *(f"{bits:.2f}" for bits in matrices))
    own = ("–", *(f"{checks[t]:.1e}" if t in checks else "–" for t in LEVELS))
    columns = list(table.columns)
    columns.insert(3, Column("linears", cells, right=True))
    columns.insert(len(columns) - 2, Column("own runtime", own, right=True))
    note = (
        f"{table.note} linears: bits per weight without the embedding. own runtime: divergence of "
        "the format's runtime from the weights as kvant decodes them, nats a token."
    )
    full = replace(table, columns=tuple(columns), note=note)
    report.results += [dict(r.to_json()) for r in (base, *named)]
    return full.markdown() if arguments.markdown else full.text()


def _linear_bits(artefact: Any) -> float:
    """Bits a weight of the matrices that are not the embedding."""
    own = [t for t in artefact.tensors if len(t.shape) == 2 and not t.name.startswith("token_embd")]
    weights = sum(int(t.shape[0] * t.shape[1]) for t in own)
    return 8.0 * sum(int(t.nbytes) for t in own) / weights


def _checks(arguments: argparse.Namespace, work: Path, report: Report) -> dict[str, float]:
    """Each format's runtime against the interpreter: floats of 32 and 16 bits, and the level."""
    import kvant
    from kvant.api.runtime_check import KLD_BOUND, LOGITS_BOUND, check_runtime

    found = {}
    for target in ("gguf", "onnx", "mlx"):
        suffix = ".gguf" if target == "gguf" else ""
        small: dict[str, Any] = {"context": 32, "chunks": 2} if target == "mlx" else {}
        for dtype in ("f32", "f16"):
            out = work / f"{target}-{dtype}{suffix}"
            kvant.convert(arguments.model, out, to=target, dtype=dtype, threads=arguments.threads)
            check = check_runtime(out, threads=arguments.threads, **small)
            label = f"{target} {dtype}, {check.runtime}: logits, relative"
            report.bars.append(Bar(label, check.relative, LOGITS_BOUND))
        check = check_runtime(work / f"{target}{suffix}", threads=arguments.threads, **small)
        label = f"{target} {LEVELS[target]}, {check.runtime}: divergence"
        report.bars.append(Bar(label, check.kld, KLD_BOUND))
        found[target] = check.kld
    return found


if __name__ == "__main__":
    sys.exit(main())
