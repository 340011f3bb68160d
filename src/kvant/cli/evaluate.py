"""``kvant eval``: perplexity, and divergence from a base."""

from __future__ import annotations

import argparse

from kvant.cli import show
from kvant.cli.options import Commands, positive

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "eval",
        help="measure perplexity, and divergence from a base model",
        description="Measure models on a text, by llama.cpp's protocol.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="what to measure")
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
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.measurement import evaluate

    with show.token_progress("eval") as progress:
        results = evaluate(
            arguments.models,
            arguments.against,
            text=arguments.text,
            context=arguments.context,
            chunks=arguments.chunks,
            progress=progress,
        )
    if arguments.json:
        show.print_json({"results": [r.to_json() for r in results]})
        return 0
    from kvant.evaluation.report import evaluation_table

    show.print_table(evaluation_table(results))
    return 0
