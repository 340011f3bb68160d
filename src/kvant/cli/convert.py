"""``kvant convert``: a checkpoint becomes an unquantised GGUF file."""

from __future__ import annotations

import argparse

from kvant.cli.artefact import print_artefact
from kvant.cli.options import Commands, add_output, without_matrices
from kvant.cli.show import weight_progress

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("convert", help="write an unquantised GGUF file")
    parser.add_argument("source", metavar="SRC", help="demo, a Hugging Face folder, a GGUF file")
    parser.add_argument(
        "--dtype",
        default="bf16",
        type=str.lower,
        choices=("bf16", "f16", "f32"),
        help="type of weight matrices (default: bf16)",
    )
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    without_matrices()
    from kvant.api.conversion import convert

    with weight_progress(arguments.dtype) as progress:
        artefact = convert(
            arguments.source,
            arguments.output,
            dtype=arguments.dtype,
            lora=arguments.lora,
            threads=arguments.threads,
            split_size=arguments.split_size,
            pre_tokenizer=arguments.pre_tokenizer,
            force=arguments.force,
            dry_run=arguments.dry_run,
            progress=progress,
        )
    print_artefact(artefact, as_json=arguments.json)
    return 0
