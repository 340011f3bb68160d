"""``kvant quantize``: a checkpoint becomes a quantised GGUF file."""

from __future__ import annotations

import argparse

from kvant.cli.artefact import print_artefact
from kvant.cli.options import Commands, add_output, without_matrices
from kvant.cli.show import weight_progress

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "quantize",
        help="write a quantised GGUF file",
        description="Write a quantised GGUF file, in one pass and little memory.",
    )
    parser.add_argument("source", metavar="SRC", help="demo, a Hugging Face folder, a GGUF file")
    parser.add_argument(
        "recipe", metavar="RECIPE", help="such as Q4_K_M; `kvant formats` lists all"
    )
    add_output(parser)
    parser.add_argument(
        "--tensor",
        action="append",
        default=[],
        metavar="REGEX=PACKING",
        help="packing for tensors whose name has the expression; may be given several times",
    )
    parser.add_argument(
        "--importance",
        metavar="FILE",
        help="importance of each input, from `kvant calibrate` or llama.cpp (imatrix)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    without_matrices()
    from kvant.api.conversion import quantize

    with weight_progress(arguments.recipe) as progress:
        artefact = quantize(
            arguments.source,
            arguments.recipe,
            arguments.output,
            threads=arguments.threads,
            tensors=arguments.tensor,
            importance=arguments.importance,
            split_size=arguments.split_size,
            pre_tokenizer=arguments.pre_tokenizer,
            force=arguments.force,
            dry_run=arguments.dry_run,
            progress=progress,
        )
    print_artefact(artefact, as_json=arguments.json)
    return 0
