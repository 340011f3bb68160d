"""``kvant eval``: perplexity, and divergence from a base."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import Commands, positive
from kvant.cli.runners import add_runner, runner_choice
from kvant.errors import UsageError

if TYPE_CHECKING:
    from kvant.evaluation import EvalResult, Gate

__all__ = ["MISSED", "add"]

MISSED = 3
"""Exit status where everything was measured and a limit was not kept."""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "eval",
        help="measure perplexity, and divergence from a base model",
        description="Measure models on a text, by llama.cpp's protocol.",
        epilog="Exit status: 0 done, 1 an error, 2 a wrong command line, 3 a limit was missed.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="demo, a file or folder of any format, a name"
    )
    parser.add_argument("--against", metavar="BASE", help="the model to compare with")
    parser.add_argument(
        "--text", metavar="FILE", help="UTF-8 text (default: the built-in evaluation text)"
    )
    parser.add_argument(
        "--context", type=positive, metavar="N", help="tokens a chunk (default: 512)"
    )
    parser.add_argument(
        "--chunks", type=positive, metavar="N", help="use no more than the first N chunks"
    )
    limits = parser.add_argument_group("limits (a missed one is exit status 3)")
    limits.add_argument(
        "--max-kld", type=float, metavar="X", help="largest mean KL divergence, nats a token"
    )
    limits.add_argument(
        "--max-ppl-ratio", type=float, metavar="X", help="largest perplexity over the base's"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="processors to use (default: all)"
    )
    add_runner(parser)
    parser.add_argument(
        "--reference",
        action="store_true",
        help="the same as --runner reference: the NumPy interpreter: slow, the judge",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="add what was measured to the evidence beside each model (GGUF files)",
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.measurement import evaluate

    limited = _check_limits(arguments)
    if arguments.reference and arguments.runner:
        raise UsageError(
            "--reference is the same as --runner reference; leave out one of --reference and "
            f"--runner {arguments.runner[0]}."
        )
    if arguments.record:
        from kvant.api.evidence import check_recordable

        check_recordable(arguments.models)
    with show.token_progress("eval") as progress:
        results = evaluate(
            arguments.models,
            arguments.against,
            text=arguments.text,
            context=arguments.context,
            chunks=arguments.chunks,
            threads=arguments.threads,
            runner="reference" if arguments.reference else runner_choice(arguments.runner),
            progress=progress,
        )
    if arguments.record:
        from kvant.api.evidence import record_results

        named = results if arguments.against is None else results[1:]
        pairs = list(zip(arguments.models, named, strict=True))
        for path in record_results(pairs, arguments.against, arguments.text):
            show.note(f"recorded in {path}")
    found = _gates(arguments, results) if limited else ()
    if arguments.json:
        document: dict[str, object] = {"results": [r.to_json() for r in results]}
        if limited:
            document["gates"] = [gate.to_json() for gate in found]
        show.print_json(document)
    else:
        from kvant.evaluation.report import evaluation_table

        show.print_table(evaluation_table(results, runners=True))
    for gate in found:
        show.note(str(gate))
    return 0 if all(gate.held for gate in found) else MISSED


def _check_limits(arguments: argparse.Namespace) -> bool:
    """Whether limits are given; what is wrong with them is told before anything is measured."""
    from kvant.evaluation.gate import check_limits

    if arguments.max_kld is None and arguments.max_ppl_ratio is None:
        return False
    check_limits(arguments.max_kld, arguments.max_ppl_ratio)
    if arguments.against is None:
        raise UsageError(
            "--max-kld and --max-ppl-ratio compare with a base; name it with --against BASE."
        )
    return True


def _gates(arguments: argparse.Namespace, results: tuple[EvalResult, ...]) -> tuple[Gate, ...]:
    from kvant.evaluation import gates

    return gates(results, max_kld=arguments.max_kld, max_ppl_ratio=arguments.max_ppl_ratio)
